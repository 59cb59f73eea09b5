"""Scripts that produce the evidence behind the docs: ``python -m experiments.NAME``, results beside each script."""
