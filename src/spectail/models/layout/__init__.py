"""How a parameter is laid out: which matrices it holds, and how they are cut out of it."""
