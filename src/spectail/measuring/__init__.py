"""Measuring a model: the plan of a run, one layer's numbers, the journal of a run, and engines."""
