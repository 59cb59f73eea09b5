"""How stable alpha is under choices that should not matter, and how much of it tells the layers apart."""
