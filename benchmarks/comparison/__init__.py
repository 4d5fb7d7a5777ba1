"""The comparison of methods: protocols, cases, trials, kept results and what they show.

`accuracy.py` beside this folder is its command.
"""
