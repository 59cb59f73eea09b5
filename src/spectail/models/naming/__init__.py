"""Facts that the names of parameters tell: blocks, kinds, roles, pairs of models. No torch."""
