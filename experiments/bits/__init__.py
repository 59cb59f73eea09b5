"""Bits per layer: widths by measured errors, by alpha, by depth and by sensitivity, compared."""
