"""A few windows in place of all of a dense grid.

How many --tolerance takes, and whether alpha keeps the promise.
"""
