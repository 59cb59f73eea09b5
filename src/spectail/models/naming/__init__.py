"""Facts that the names of parameters tell: blocks, kinds, what is no weight, pairs of models. No torch."""
