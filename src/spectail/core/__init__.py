"""Pure functions over tensors and arrays, without layer names, files or global random state."""
