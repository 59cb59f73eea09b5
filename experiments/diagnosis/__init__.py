"""Which number finds a damaged or under-trained layer: faults are planted at known places in trained models."""
