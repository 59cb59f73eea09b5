"""Training with alpha: one learning rate or weight decay per layer, computed from its spectrum.

The class is ``spectail.Balancer``. The rules it can follow are in ``rules``, the callbacks for
trainers in ``huggingface`` and ``lightning``.
"""
