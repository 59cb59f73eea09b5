"""Score a language model in memory on tasks of lm-eval (lm-evaluation-harness)."""

from __future__ import annotations

import os
from collections.abc import Sequence
from typing import Any

from spectail.errors import EvaluationError
from spectail.models.live.eval_mode import evaluating


def evaluate_tasks(
    model: Any,
    tokenizer: Any,
    tasks: Sequence[str],
    *,
    limit: int | None = None,
    few_shot: int | None = None,
    batch_size: int = 1,
    include_path: str | os.PathLike[str] | None = None,
) -> dict[str, dict[str, float]]:
    """Return the metrics and standard errors of every task.

    ``limit`` takes only the first questions of every task. ``few_shot`` puts that many examples
    before a question; None is the task's own setting. ``include_path`` is a folder of further tasks
    (YAML files).

    Raises:
        EvaluationError: lm-eval is not installed, or it has no task of that name.

    """
    # A text is a sequence of letters too.
    names = [tasks] if isinstance(tasks, str) else list(tasks)
    # Imported here: lm-eval is optional and takes seconds to import.
    try:
        from lm_eval import simple_evaluate
        from lm_eval.models.huggingface import HFLM
        from lm_eval.tasks import TaskManager
    except ImportError:
        raise EvaluationError("tasks need lm-eval: pip install 'spectail[eval]'") from None
    manager = TaskManager(include_path=None if include_path is None else str(include_path))
    unknown = [name for name in names if name not in manager.all_tasks]
    if unknown or not names:
        named = ", ".join(unknown) or "to run"
        raise EvaluationError(f"lm-eval has no task {named}; lm-eval ls tasks lists them")
    with evaluating(model):
        results = simple_evaluate(
            model=HFLM(pretrained=model, tokenizer=tokenizer, batch_size=batch_size),
            tasks=names,
            num_fewshot=few_shot,
            limit=limit,
            task_manager=manager,
        )
    return {task: _numbers(scores) for task, scores in results["results"].items()}


def _numbers(scores: dict[str, Any]) -> dict[str, float]:
    """Return the metrics of a task, which lm-eval calls ``acc,none`` and ``acc_stderr,none``."""
    named = ((key.removesuffix(",none"), value) for key, value in scores.items())
    left_out = {"sample_len", "alias"}  # how many questions, and the task's name
    return {k: float(v) for k, v in named if isinstance(v, int | float) and k not in left_out}
