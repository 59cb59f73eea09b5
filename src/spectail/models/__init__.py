"""Turn a live module or a checkpoint into named matrices; start at ``models.open.open_source``."""
