"""From alphas to one value per layer: sparsities, bits, learning rates, weight decays.

The function is ``spectail.allocate``; the package has another name, so that importing it does not
hide the function. Nothing here imports torch.
"""
