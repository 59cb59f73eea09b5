"""How stable alpha is under choices that should not matter.

It is compared with how much of alpha tells the layers apart.
"""
