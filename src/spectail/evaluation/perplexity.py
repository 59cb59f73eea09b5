"""Token perplexity of a language model, as the pruning literature defines it."""

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

from spectail.basics.checks import check_whole
from spectail.basics.json_values import plain
from spectail.errors import EvaluationError
from spectail.evaluation.bos import WORDS, Bos, Rule, resolve, text_setting
from spectail.evaluation.logits import check_causal, checked_logits, device_of, logits_of
from spectail.evaluation.texts import read_utf8
from spectail.models.live.eval_mode import evaluating

Progress: TypeAlias = Callable[[int, int], None]
"""A function that is called with the number of finished sequences and their total."""

POSITIONS = 256
"""Logits are widened to float32 at this many positions at a time, to save memory."""

_WHAT = "perplexity is measured"


class Perplexity(float):
    """A perplexity: a number with a standard error and the settings of its measurement.

    >>> ppl = Perplexity([1.0, 1.2], seq_len=512, bos="every")
    >>> round(ppl, 3), round(ppl.se, 3), ppl.n_tokens
    (3.004, 0.3, 1022)
    >>> ppl.describe()
    'perplexity 3.0042 +- 0.3 (2 sequences of 512 tokens, BOS: every block)'
    """

    losses: tuple[float, ...]
    """Mean negative log-likelihood of every sequence, in nats."""
    seq_len: int
    """Tokens in a sequence, BOS included."""
    bos: Rule | None
    """Where BOS was put: ``first``, ``every`` or ``none``; None if that is not known."""
    unpredicted: int
    """Tokens at the start of every sequence that were not predicted."""

    def __new__(
        cls,
        losses: Sequence[float],
        *,
        seq_len: int,
        bos: Rule | None = None,
        unpredicted: int = 1,
    ) -> Perplexity:
        """Build it from the mean negative log-likelihoods of the sequences."""
        self = super().__new__(cls, _exp(fmean(losses)))
        self.losses, self.seq_len = tuple(losses), seq_len
        self.bos, self.unpredicted = bos, unpredicted
        return self

    # A subclass of float is pickled by its value alone unless this says what __new__ needs.
    def __getnewargs_ex__(self) -> tuple[tuple[Any, ...], dict[str, Any]]:
        named = {"seq_len": self.seq_len, "bos": self.bos, "unpredicted": self.unpredicted}
        return (self.losses,), named

    @property
    def loss(self) -> float:
        """Mean negative log-likelihood of a token, in nats."""
        return fmean(self.losses)

    @property
    def se(self) -> float:
        """Standard error over sequences; NaN for one sequence.

        It is the perplexity times the standard error of the mean loss (delta method).
        """
        n = len(self.losses)
        # One sequence has no spread, and infinity times anything would be no error bar.
        if n < 2 or not math.isfinite(self):
            return math.nan
        return float(self) * stdev(self.losses) / math.sqrt(n)

    @property
    def n_tokens(self) -> int:
        """Number of predicted tokens: ``seq_len - 1`` in every sequence (GLM: - 2)."""
        return len(self.losses) * (self.seq_len - self.unpredicted)

    def describe(self) -> str:
        """Return one line: the number, its standard error, the amount of text, and the BOS rule."""
        n = len(self.losses)
        spread = f" +- {self.se:.2g}" if math.isfinite(self.se) else ""
        sequences = f"{n} {'sequence' if n == 1 else 'sequences'} of {self.seq_len} tokens"
        bos = f", BOS: {WORDS[self.bos]}" if self.bos else ""
        return f"perplexity {self:.4f}{spread} ({sequences}{bos})"

    def to_dict(self) -> dict[str, Any]:
        """Return plain JSON values; numbers that are not finite become None."""
        numbers = {"perplexity": float(self), "standard_error": self.se, "loss": self.loss}
        counts = {"sequences": len(self.losses), "tokens": self.n_tokens}
        return {**plain(numbers), "seq_len": self.seq_len, **counts, "bos": self.bos}


def perplexity(
    model: nn.Module,
    tokenizer: Any,
    text: str | os.PathLike[str] | Sequence[str],
    *,
    seq_len: int = 2048,
    max_sequences: int | None = None,
    batch_size: int = 1,
    bos: str = "auto",
    progress: Progress | None = None,
) -> Perplexity:
    """Measure token perplexity on disjoint blocks, as in the tables of GPTQ, SparseGPT and Wanda.

    The result is exp of the mean negative log-likelihood of all predicted tokens: the last
    ``seq_len - 1`` of every block. docs/evaluation.md compares it with other definitions.

    Args:
        model: a causal language model of transformers, or a module that gives (batch, seq_len,
            vocabulary) logits. It runs on the device of its embedding, without dropout.
        tokenizer: the model's tokenizer.
        text: a text, a list of texts (joined by an empty line), or the ``Path`` of a UTF-8 file.
        seq_len: tokens in a block, BOS included; the incomplete last block is dropped.
        max_sequences: evaluate only this many blocks.
        batch_size: blocks per forward pass. The logits take batch_size x seq_len x vocabulary
            numbers of the model's dtype.
        bos: where the beginning-of-sequence token goes: ``first``, ``every``, ``none``, or
            ``auto``, which chooses by the model and its tokenizer: see ``evaluation.bos``.
        progress: called with the number of finished blocks and their total.

    Raises:
        EvaluationError: too little text, blocks longer than the model's positions, tokens that the
            model lacks, a BOS that the tokenizer lacks, NaN, a model that is no decoder with a
            head.

    """
    check_whole(EvaluationError, 2, seq_len=seq_len)
    check_whole(EvaluationError, batch_size=batch_size)
    if max_sequences is not None:
        check_whole(EvaluationError, max_sequences=max_sequences)
    # Everything that can be refused is refused before the first forward pass, which may be slow.
    _check_decoder(model)
    _check_positions(model, seq_len)
    rule = resolve(bos, tokenizer, model)
    blocks = token_blocks(tokenizer, text, seq_len, rule)[:max_sequences]
    _check_vocabulary(model, blocks)
    batches = torch.split(blocks, batch_size)
    losses = _losses(model, batches, len(blocks), rule.unpredicted, progress)
    return Perplexity(losses, seq_len=seq_len, bos=rule.rule, unpredicted=rule.unpredicted)


def _losses(
    model: nn.Module,
    batches: Sequence[Tensor],
    total: int,
    unpredicted: int,
    progress: Progress | None,
) -> list[float]:
    """Return the mean loss of every block; refuse NaN as soon as one appears."""
    losses: list[float] = []
    with torch.inference_mode(), evaluating(model):
        check_causal(model, batches[0], _WHAT)
        for batch in batches:
            losses += batch_losses(model, batch, unpredicted=unpredicted)
            if math.isnan(sum(losses)):
                raise EvaluationError(
                    f"the model gives NaN on sequence {_first_nan(losses)} of {total}: "
                    "weights or activations "
                    "are not finite; try float32, or look at what was done to the weights"
                )
            if progress:
                progress(len(losses), total)
    return losses


def batch_losses(model: nn.Module, batch: Tensor, *, unpredicted: int = 1) -> list[float]:
    """Return the mean negative log-likelihood of every block, in nats, by one forward pass.

    ``batch`` holds token ids (n, seq_len). The first ``unpredicted`` tokens of a block are context
    only.
    """
    ids = batch.to(device_of(model))
    logits = checked_logits(logits_of(model, ids), model, ids, _WHAT)
    if int(batch.max()) >= logits.shape[2]:
        raise EvaluationError(
            f"the text has token {int(batch.max())}, but the model has logits for "
            f"{logits.shape[2]}: is it the model's tokenizer?"
        )
    return [_loss(rows, ids, unpredicted) for rows, ids in zip(logits, batch, strict=True)]


def token_blocks(
    tokenizer: Any,
    text: str | os.PathLike[str] | Sequence[str],
    seq_len: int,
    bos: Bos | None = None,
) -> Tensor:
    """Join the text, tokenise it in one call and cut it into token ids (n, seq_len).

    The incomplete last block is dropped. ``bos`` says where BOS goes; None means ``auto``, decided
    by the tokenizer alone.
    """
    rule = resolve("auto", tokenizer) if bos is None else bos
    return rule.cut(rule.tokens(tokenizer, _joined(text)), seq_len)


def _joined(text: str | os.PathLike[str] | Sequence[str]) -> str:
    """Return one text: as it is given, of a file, or several joined by empty lines."""
    if isinstance(text, str):
        return text
    if not isinstance(text, os.PathLike):
        return "\n\n".join(text)
    return read_utf8(Path(text), EvaluationError)


def _check_decoder(model: nn.Module) -> None:
    """Refuse an encoder-decoder: its encoder would read the text that the decoder predicts."""
    if getattr(getattr(model, "config", None), "is_encoder_decoder", False) is True:
        raise EvaluationError(
            f"{type(model).__name__} is an encoder-decoder: it gives text a probability only in "
            "answer to another text, so a text alone has no perplexity; evaluate it on tasks"
        )


def _check_positions(model: nn.Module, seq_len: int) -> None:
    """Refuse blocks that are longer than the model's positions."""
    positions = text_setting(model, "max_position_embeddings")
    # Some configurations hold -1 or 0 where positions are not limited.
    if positions is not None and 0 < positions < seq_len:
        raise EvaluationError(
            f"the model has {positions} positions, fewer than seq_len {seq_len}: give a smaller one"
        )


def _check_vocabulary(model: nn.Module, blocks: Tensor) -> None:
    """Refuse tokens that the model has no embedding for."""
    words = text_setting(model, "vocab_size")
    # On a GPU an unknown token would be an assertion in a kernel, which ends the process.
    if words is not None and int(blocks.max()) >= words:
        raise EvaluationError(
            f"the tokenizer gives token {int(blocks.max())}, but the model knows {words}: "
            "is it the model's tokenizer?"
        )


def _loss(logits: Tensor, tokens: Tensor, unpredicted: int) -> float:
    """Return the mean negative log-likelihood of a block.

    ``logits`` is (seq_len, vocabulary) and ``tokens`` (seq_len,). Position i predicts token i + 1,
    so the first token is never predicted.
    """
    targets = tokens[unpredicted:].to(logits.device)
    pieces = zip(
        torch.split(logits[unpredicted - 1 : -1], POSITIONS),
        torch.split(targets, POSITIONS),
        strict=True,
    )
    # Sums of pieces are added in float64, so that long blocks lose no digits.
    sums = [
        functional.cross_entropy(rows.float(), words, reduction="sum").double()
        for rows, words in pieces
    ]
    return float(torch.stack(sums).sum()) / len(targets)


def _first_nan(losses: Sequence[float]) -> int:
    """Return the number of the first sequence whose loss is NaN, counted from 1."""
    return 1 + next(i for i, loss in enumerate(losses) if math.isnan(loss))


def _exp(loss: float) -> float:
    """Return exp(loss), infinity if that is too large for a float."""
    try:
        return math.exp(loss)
    except OverflowError:
        return math.inf
