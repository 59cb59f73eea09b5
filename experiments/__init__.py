"""Scripts that produce the evidence behind the docs: ``python -m experiments.NAME``.

Results lie beside each script.
"""
