"""Adapters: changes of a weight that are stored apart from it, such as LoRA and its relatives."""
