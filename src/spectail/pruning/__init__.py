"""From an allocation of sparsities to a pruned model: magnitude, Wanda, SparseGPT, unstructured and N:M.

The function is ``spectail.prune``; the package has another name, so that importing it does not hide
the function.
"""
