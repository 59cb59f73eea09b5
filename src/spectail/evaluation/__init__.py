"""Measure how good a language model is: token perplexity, and tasks of lm-eval."""

from spectail.evaluation.bos import CHOICES, Rule
from spectail.evaluation.perplexity import (
    Perplexity,
    Progress,
    batch_losses,
    perplexity,
    token_blocks,
)
from spectail.evaluation.tasks import evaluate_tasks

__all__ = [
    "CHOICES",
    "Perplexity",
    "Progress",
    "Rule",
    "batch_losses",
    "evaluate_tasks",
    "perplexity",
    "token_blocks",
]
