"""A small language model trained with one rate, with LLR and with AlphaDecay."""
