"""Modules in memory: their parameters, weights that can be written, evaluation mode, language models."""
