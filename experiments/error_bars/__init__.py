"""Whether the error bar holds.

The mean of alpha_se over many draws, against how much alpha really moves between them.
"""
