"""Pure functions over tensors and arrays: no layer names, files, printing or global random state."""
