"""Which number finds a damaged or under-trained layer.

Faults are planted at known places in trained models.
"""
