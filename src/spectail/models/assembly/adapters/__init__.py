"""Adapters stored apart from the weight that they change: LoRA and its relatives."""
