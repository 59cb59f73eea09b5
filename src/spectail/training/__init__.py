"""Training with alpha: every layer gets the learning rate or weight decay that its spectrum asks for.

The class is ``spectail.Balancer``; ``rules`` holds what it can follow, ``huggingface`` and ``lightning`` the callbacks.
"""
