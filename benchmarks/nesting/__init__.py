"""The comparison of nested kinds: its parts, what kept results show, tables.

`nested.py` beside this folder is its command; protocols, trials and results are `comparison`'s.
"""
