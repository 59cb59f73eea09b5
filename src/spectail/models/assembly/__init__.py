"""From stored tensors to the weights that a model uses: quantisers, adapters, norms, masks."""
