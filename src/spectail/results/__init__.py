"""What came out: records, their table, and the comparison of two runs. No torch."""
