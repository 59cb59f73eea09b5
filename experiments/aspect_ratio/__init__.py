"""What the shape of a matrix and the size of a window do to alpha.

The law of the entries stays the same.
"""
