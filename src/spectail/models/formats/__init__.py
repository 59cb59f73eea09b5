"""File formats: each module reads one, ``folders`` finds the files of a model and which format they are in."""
