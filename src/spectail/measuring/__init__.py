"""Measuring a model: planning a run, one layer's numbers, the journal that survives a kill, and engines."""
