"""What names say: blocks, kinds, wrappers to take off, selection by globs. No torch."""
