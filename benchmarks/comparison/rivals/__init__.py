"""Rivals that are no methods of the library: recipes of others' papers, for comparison alone.

As in `nestling.methods` a recipe is a file with a function of its name; `layers` is what all share.
"""
