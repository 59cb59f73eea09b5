"""Image classifiers trained with one learning rate or with TempBalance.

TempBalance measures whole matrices, or windows.
"""
