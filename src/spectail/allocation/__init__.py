"""From alphas to one value per layer that meets a budget: sparsities, bits, learning rates, weight decays. No torch.

The function is ``spectail.allocate``; the package has another name, so that importing it does not
hide the function.
"""
