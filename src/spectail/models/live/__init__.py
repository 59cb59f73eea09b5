"""Models in memory: their parameters, writable weights, evaluation mode and language models."""
