"""The quantiles from which ``spectail.core.goodness`` computes its p-values."""
