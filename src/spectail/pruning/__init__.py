"""Pruning: set weights of a model to zero, layer by layer, as an allocation of sparsities says.

Methods are magnitude, Wanda and SparseGPT, unstructured or N:M. The function is ``spectail.prune``;
the package has another name, so that importing the package does not hide the function.
"""
