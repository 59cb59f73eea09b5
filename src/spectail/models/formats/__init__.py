"""File formats: one module reads each, ``table`` lists them, ``folders`` finds a model's files."""
