"""From a live module or a checkpoint to named matrices; start at :func:`spectail.models.open.open_source`."""
