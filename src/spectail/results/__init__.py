"""Results: records of layers, their table, and the comparison of two runs. No torch."""
