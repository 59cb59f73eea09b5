"""Training with alpha: a learning rate or weight decay per layer, as its spectrum asks for.

The class is ``spectail.Balancer``; ``rules`` holds what it can follow, ``huggingface`` and
``lightning`` the callbacks.
"""
