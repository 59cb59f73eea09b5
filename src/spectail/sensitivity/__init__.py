"""Measure how much noise in each layer changes the predictions of a language model.

The result, ``allocation.sensitivities.Sensitivities``, weighs the errors of bit widths.
"""
