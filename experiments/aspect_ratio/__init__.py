"""What the shape of a matrix, and the size of a window, do to alpha where the law of the entries stays the same."""
