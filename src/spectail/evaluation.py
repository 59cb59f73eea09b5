"""How good a language model is: token perplexity as the pruning literature defines it, and tasks through lm-eval."""

from __future__ import annotations

import math
import os
from collections.abc import Callable, Sequence
from pathlib import Path
from statistics import fmean, stdev
from typing import Any, TypeAlias

import torch
from torch import Tensor, nn
from torch.nn import functional

from spectail.errors import EvaluationError
from spectail.models.live.eval_mode import evaluating

Progress: TypeAlias = Callable[[int, int], None]
"""Called with the number of sequences done and their total."""

POSITIONS = 256
"""How many positions' logits are widened to float32 at a time."""


class Perplexity(float):
    """A perplexity: a number, with its standard error and what it was measured on.

    >>> ppl = Perplexity([1.0, 1.2], seq_len=512)
    >>> round(ppl, 3), round(ppl.se, 3), ppl.n_tokens
    (3.004, 0.3, 1022)
    """

    losses: tuple[float, ...]
    """Mean negative log-likelihood of every sequence, in nats."""
    seq_len: int

    def __new__(cls, losses: Sequence[float], *, seq_len: int) -> Perplexity:
        """From the mean negative log-likelihoods of the sequences."""
        self = super().__new__(cls, _exp(fmean(losses)))
        self.losses, self.seq_len = tuple(losses), seq_len
        return self

    def __getnewargs_ex__(self) -> tuple[tuple[Any, ...], dict[str, Any]]:
        return (self.losses,), {"seq_len": self.seq_len}

    @property
    def loss(self) -> float:
        """Mean negative log-likelihood of a token, in nats."""
        return fmean(self.losses)

    @property
    def se(self) -> float:
        """Standard error over sequences: the perplexity times that of the mean loss; NaN for one sequence."""
        n = len(self.losses)
        return float(self) * stdev(self.losses) / math.sqrt(n) if n > 1 and math.isfinite(self) else math.nan

    @property
    def n_tokens(self) -> int:
        """How many tokens were predicted: seq_len - 1 in every sequence."""
        return len(self.losses) * (self.seq_len - 1)

    def describe(self) -> str:
        """One line: the number, its standard error, and on how much text."""
        n = len(self.losses)
        spread = f" +- {self.se:.2g}" if math.isfinite(self.se) else ""
        return f"perplexity {self:.4f}{spread} ({n} {'sequence' if n == 1 else 'sequences'} of {self.seq_len} tokens)"

    def to_dict(self) -> dict[str, Any]:
        """Plain JSON values; what is not finite is null."""
        numbers = {"perplexity": float(self), "standard_error": self.se, "loss": self.loss}
        finite = {name: value if math.isfinite(value) else None for name, value in numbers.items()}
        return {**finite, "seq_len": self.seq_len, "sequences": len(self.losses), "tokens": self.n_tokens}


def perplexity(
    model: nn.Module,
    tokenizer: Any,
    text: str | os.PathLike[str] | Sequence[str],
    *,
    seq_len: int = 2048,
    max_sequences: int | None = None,
    batch_size: int = 1,
    progress: Progress | None = None,
) -> Perplexity:
    """Token perplexity on non-overlapping blocks, as in the tables of GPTQ, SparseGPT, Wanda and AlphaPruning.

    The text is joined once and tokenised once, with the special tokens that the tokenizer adds by itself (at most one
    at the start), and cut into blocks of ``seq_len`` tokens, of which the incomplete last one is dropped. The result is
    exp of the mean negative log-likelihood of all predicted tokens, the last ``seq_len - 1`` of every block. The
    published scripts multiply every block's mean by ``seq_len`` and divide the sum by ``n * seq_len``, which is the
    same number for blocks of one length. It is not lm-eval's ``wikitext``, which counts words.

    Args:
        model: a causal language model of transformers, or a module that gives (batch, seq_len, vocabulary) logits.
            Evaluated where its embedding is, without dropout; its mode is as before afterwards.
        tokenizer: that of the model.
        text: a text, a list of texts (joined by an empty line), or the path of a UTF-8 file as a ``Path``.
        seq_len: tokens in a block.
        max_sequences: evaluate only the first ones.
        batch_size: blocks per forward pass. The model's logits take batch_size x seq_len x vocabulary in its own
            dtype; they are widened to float32 a few positions at a time.
        progress: called with the number of blocks done and their total.

    Raises:
        EvaluationError: too little text, blocks longer than the model's positions, tokens that the model lacks, NaN.

    """
    _check_counts(
        seq_len=(seq_len, 2),
        batch_size=(batch_size, 1),
        max_sequences=(1 if max_sequences is None else max_sequences, 1),
    )
    _check_positions(model, seq_len)
    blocks = token_blocks(tokenizer, text, seq_len)[:max_sequences]
    _check_vocabulary(model, blocks)
    losses: list[float] = []
    with torch.inference_mode(), evaluating(model):
        for batch in torch.split(blocks, batch_size):
            losses += batch_losses(model, batch)
            if math.isnan(sum(losses)):
                raise EvaluationError(
                    f"the model gives NaN on sequence {_first_nan(losses)} of {len(blocks)}: weights or activations "
                    "are not finite; try float32, or look at what was done to the weights"
                )
            if progress:
                progress(len(losses), len(blocks))
    return Perplexity(losses, seq_len=seq_len)


def batch_losses(model: nn.Module, batch: Tensor) -> list[float]:
    """Mean negative log-likelihood, in nats, of every block of token ids (n, seq_len), in one forward pass."""
    logits = _logits(model, batch.to(_device(model)))
    return [_loss(rows, tokens) for rows, tokens in zip(logits, batch, strict=True)]


def token_blocks(tokenizer: Any, text: str | os.PathLike[str] | Sequence[str], seq_len: int) -> Tensor:
    """Join, tokenise once and cut into (n, seq_len) token ids; the incomplete last block is dropped."""
    ids = tokenizer(_joined(text), verbose=False)["input_ids"]
    n = len(ids) // seq_len
    if n == 0:
        raise EvaluationError(
            f"the text has {len(ids)} tokens, fewer than one block of {seq_len}: give more text or a smaller seq_len"
        )
    return torch.tensor(ids[: n * seq_len], dtype=torch.long).view(n, seq_len)


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
    """Score a model in memory on tasks of lm-eval: from task to its metrics and their standard errors.

    ``limit`` takes only the first questions of every task, ``few_shot`` puts that many examples before a question
    (None: what the task says), ``include_path`` is a folder of tasks of your own (YAML files).
    """
    names = [tasks] if isinstance(tasks, str) else list(tasks)
    try:
        from lm_eval import simple_evaluate
        from lm_eval.models.huggingface import HFLM
        from lm_eval.tasks import TaskManager
    except ImportError:
        raise EvaluationError("tasks need lm-eval: pip install 'spectail[eval]'") from None
    manager = TaskManager(include_path=None if include_path is None else str(include_path))
    unknown = [name for name in names if name not in manager.all_tasks]
    if unknown or not names:
        raise EvaluationError(f"lm-eval has no task {', '.join(unknown) or 'to run'}; lm-eval ls tasks lists them")
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
    """The metrics of a task: lm-eval calls them ``acc,none`` and ``acc_stderr,none``, with texts among them."""
    named = ((key.removesuffix(",none"), value) for key, value in scores.items())
    return {key: float(v) for key, v in named if isinstance(v, int | float) and key not in {"sample_len", "alias"}}


def _joined(text: str | os.PathLike[str] | Sequence[str]) -> str:
    if isinstance(text, str):
        return text
    if not isinstance(text, os.PathLike):
        return "\n\n".join(text)
    try:
        return Path(text).read_text(encoding="utf-8")
    except UnicodeDecodeError:
        raise EvaluationError(f"{os.fspath(text)} is no UTF-8 text") from None
    except OSError as error:
        raise EvaluationError(f"cannot read {os.fspath(text)}: {error.strerror or error}") from None


def _check_counts(**counts: tuple[int, int]) -> None:
    for name, (value, least) in counts.items():
        if isinstance(value, bool) or not isinstance(value, int) or value < least:
            raise EvaluationError(f"{name} must be a whole number of at least {least}, not {value!r}")


def _check_positions(model: nn.Module, seq_len: int) -> None:
    positions = getattr(getattr(model, "config", None), "max_position_embeddings", None)
    if isinstance(positions, int) and 0 < positions < seq_len:
        raise EvaluationError(f"the model has {positions} positions, fewer than seq_len {seq_len}: give a smaller one")


def _check_vocabulary(model: nn.Module, blocks: Tensor) -> None:
    words = getattr(getattr(model, "config", None), "vocab_size", None)
    if isinstance(words, int) and int(blocks.max()) >= words:
        raise EvaluationError(
            f"the tokenizer gives token {int(blocks.max())}, but the model knows {words}: is it the model's tokenizer?"
        )


def _logits(model: nn.Module, ids: Tensor) -> Tensor:
    """Give (batch, seq_len, vocabulary); a model of transformers is asked not to keep keys and values."""
    output = model(ids, use_cache=False) if hasattr(model, "config") else model(ids)
    logits: Tensor = getattr(output, "logits", output)
    return logits


def _loss(logits: Tensor, tokens: Tensor) -> float:
    """Mean negative log-likelihood of a block's tokens but the first: (seq_len, vocabulary) and (seq_len,)."""
    targets = tokens[1:].to(logits.device)
    pieces = zip(torch.split(logits[:-1], POSITIONS), torch.split(targets, POSITIONS), strict=True)
    sums = [functional.cross_entropy(rows.float(), words, reduction="sum").double() for rows, words in pieces]
    return float(torch.stack(sums).sum()) / len(targets)


def _device(model: nn.Module) -> torch.device:
    """Where the token ids go: the embedding's device, which in a model over several devices need not be the first."""
    embedding = getattr(model, "get_input_embeddings", lambda: None)()
    parameter = next((embedding or model).parameters(), None)
    return torch.device("cpu") if parameter is None else parameter.device


def _first_nan(losses: Sequence[float]) -> int:
    return 1 + next(i for i, loss in enumerate(losses) if math.isnan(loss))


def _exp(loss: float) -> float:
    try:
        return math.exp(loss)
    except OverflowError:
        return math.inf
