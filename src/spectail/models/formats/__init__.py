"""File formats: each module reads one, ``table`` lists them, ``folders`` finds the files of a model."""
