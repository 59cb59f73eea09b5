"""How large windows should be, and how few of them are enough.

Real layers, and drawn ones of the shapes of a 7B model.
"""
