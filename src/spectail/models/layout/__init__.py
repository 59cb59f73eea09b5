"""How a parameter is stored: the matrices it holds, and how they are cut out of it."""
