"""From stored tensors to the weights that the model computes with: quantisers, adapters, weight norm, masks."""
