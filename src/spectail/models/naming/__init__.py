"""What the names of parameters tell: blocks, kinds, no weights, pairs of models. No torch."""
