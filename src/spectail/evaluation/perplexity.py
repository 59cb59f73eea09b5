"""Token perplexity of a language model, as the pruning literature defines it."""

from __future__ import annotations

import inspect
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
from spectail.evaluation.bos import WORDS, Bos, Rule, resolve, text_setting
from spectail.models.live.eval_mode import evaluating

Progress: TypeAlias = Callable[[int, int], None]
"""Called with the number of sequences done and their total."""

POSITIONS = 256
"""How many positions' logits are widened to float32 at a time."""


class Perplexity(float):
    """A perplexity: a number, with its standard error and what it was measured on.

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
    """Where BOS was: ``first``, ``every`` or ``none``; None if it is not known."""
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
        """From the mean negative log-likelihoods of the sequences."""
        self = super().__new__(cls, _exp(fmean(losses)))
        self.losses, self.seq_len = tuple(losses), seq_len
        self.bos, self.unpredicted = bos, unpredicted
        return self

    def __getnewargs_ex__(self) -> tuple[tuple[Any, ...], dict[str, Any]]:
        named = {"seq_len": self.seq_len, "bos": self.bos, "unpredicted": self.unpredicted}
        return (self.losses,), named

    @property
    def loss(self) -> float:
        """Mean negative log-likelihood of a token, in nats."""
        return fmean(self.losses)

    @property
    def se(self) -> float:
        """Standard error over sequences: the perplexity times that of the mean loss.

        NaN for one sequence.
        """
        n = len(self.losses)
        if n < 2 or not math.isfinite(self):
            return math.nan
        return float(self) * stdev(self.losses) / math.sqrt(n)

    @property
    def n_tokens(self) -> int:
        """How many tokens were predicted: ``seq_len - 1`` in every sequence (GLM: - 2)."""
        return len(self.losses) * (self.seq_len - self.unpredicted)

    def describe(self) -> str:
        """One line: the number, its standard error, on how much text, and where BOS was."""
        n = len(self.losses)
        spread = f" +- {self.se:.2g}" if math.isfinite(self.se) else ""
        sequences = f"{n} {'sequence' if n == 1 else 'sequences'} of {self.seq_len} tokens"
        bos = f", BOS: {WORDS[self.bos]}" if self.bos else ""
        return f"perplexity {self:.4f}{spread} ({sequences}{bos})"

    def to_dict(self) -> dict[str, Any]:
        """Plain JSON values; what is not finite is null."""
        numbers = {"perplexity": float(self), "standard_error": self.se, "loss": self.loss}
        finite = {name: x if math.isfinite(x) else None for name, x in numbers.items()}
        counts = {"sequences": len(self.losses), "tokens": self.n_tokens}
        return {**finite, "seq_len": self.seq_len, **counts, "bos": self.bos}


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
    """Token perplexity on blocks that do not overlap, as in the tables of GPTQ, SparseGPT and Wanda.

    The text is joined once and tokenised in one call, and the token ids are cut into blocks of
    ``seq_len``, of which the incomplete last one is dropped. The result is exp of the mean negative
    log-likelihood of all predicted tokens, the last ``seq_len - 1`` of every block. The published
    scripts multiply every block's mean by ``seq_len`` and divide the sum by ``n * seq_len``, which
    is the same number for blocks of one length. It is not lm-eval's ``wikitext``, which counts
    words.

    Args:
        model: a causal language model of transformers, or a module that gives (batch, seq_len,
            vocabulary) logits. Evaluated where its embedding is, without dropout; its mode is as
            before afterwards.
        tokenizer: that of the model.
        text: a text, a list of texts (joined by an empty line), or the path of a UTF-8 file as a
            ``Path``.
        seq_len: tokens in a block, BOS included.
        max_sequences: evaluate only the first ones.
        batch_size: blocks per forward pass. The model's logits take batch_size x seq_len x
            vocabulary in its own dtype; they are widened to float32 a few positions at a time.
        bos: where the beginning-of-sequence token goes. ``first``: one at the start of the text, as
            in the published LLaMA tables. ``every``: one at the start of every block, which then
            takes ``seq_len - 1`` tokens of the text. ``none``: no BOS, also where the tokenizer
            adds one. ``auto`` chooses by the model and its tokenizer, see
            ``evaluation.bos.resolve``; Gemma and GLM get ``every``, LLaMA ``first``. The result
            says which.
        progress: called with the number of blocks done and their total.

    Raises:
        EvaluationError: too little text, blocks longer than the model's positions, tokens that the
            model lacks, a BOS that the tokenizer lacks, NaN.

    """
    _check_counts(
        seq_len=(seq_len, 2),
        batch_size=(batch_size, 1),
        max_sequences=(1 if max_sequences is None else max_sequences, 1),
    )
    _check_decoder(model)
    _check_positions(model, seq_len)
    rule = resolve(bos, tokenizer, model)
    blocks = token_blocks(tokenizer, text, seq_len, rule)[:max_sequences]
    _check_vocabulary(model, blocks)
    losses: list[float] = []
    with torch.inference_mode(), evaluating(model):
        for batch in torch.split(blocks, batch_size):
            losses += batch_losses(model, batch, unpredicted=rule.unpredicted)
            if math.isnan(sum(losses)):
                raise EvaluationError(
                    f"the model gives NaN on sequence {_first_nan(losses)} of {len(blocks)}: weights or activations "
                    "are not finite; try float32, or look at what was done to the weights"
                )
            if progress:
                progress(len(losses), len(blocks))
    return Perplexity(losses, seq_len=seq_len, bos=rule.rule, unpredicted=rule.unpredicted)


def batch_losses(model: nn.Module, batch: Tensor, *, unpredicted: int = 1) -> list[float]:
    """Mean negative log-likelihood, in nats, of every block of token ids, in one forward pass.

    ``batch`` is (n, seq_len); the first ``unpredicted`` tokens of a block are only read.
    """
    logits = _logits(model, batch.to(_device(model)))
    return [_loss(rows, ids, unpredicted) for rows, ids in zip(logits, batch, strict=True)]


def token_blocks(
    tokenizer: Any,
    text: str | os.PathLike[str] | Sequence[str],
    seq_len: int,
    bos: Bos | None = None,
) -> Tensor:
    """Join, tokenise in one call and cut into (n, seq_len) token ids; the rest is dropped.

    ``bos`` is where BOS goes; None is ``auto`` by the tokenizer alone.
    """
    rule = resolve("auto", tokenizer) if bos is None else bos
    return rule.cut(rule.tokens(tokenizer, _joined(text)), seq_len)


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
        reason = error.strerror or error
        raise EvaluationError(f"cannot read {os.fspath(text)}: {reason}") from None


def _check_counts(**counts: tuple[int, int]) -> None:
    for name, (value, least) in counts.items():
        if isinstance(value, bool) or not isinstance(value, int) or value < least:
            raise EvaluationError(
                f"{name} must be a whole number of at least {least}, not {value!r}"
            )


def _check_decoder(model: nn.Module) -> None:
    """Refuse a model whose encoder would read the text that its decoder is to predict."""
    if getattr(getattr(model, "config", None), "is_encoder_decoder", False) is True:
        raise EvaluationError(
            f"{type(model).__name__} is an encoder-decoder: it gives text a probability only in answer to another "
            "text, so a text alone has no perplexity; evaluate it on tasks"
        )


def _check_positions(model: nn.Module, seq_len: int) -> None:
    positions = text_setting(model, "max_position_embeddings")
    if positions is not None and 0 < positions < seq_len:
        raise EvaluationError(
            f"the model has {positions} positions, fewer than seq_len {seq_len}: give a smaller one"
        )


def _check_vocabulary(model: nn.Module, blocks: Tensor) -> None:
    words = text_setting(model, "vocab_size")
    if words is not None and int(blocks.max()) >= words:
        raise EvaluationError(
            f"the tokenizer gives token {int(blocks.max())}, but the model knows {words}: is it the model's tokenizer?"
        )


def _logits(model: nn.Module, ids: Tensor) -> Tensor:
    """Give (batch, seq_len, vocabulary); a transformers model is told not to keep keys and values."""
    if not hasattr(model, "config"):
        output = model(ids)
    elif "input_ids" not in inspect.signature(model.forward).parameters:
        output = model(ids, use_cache=False)
    else:
        output = _of_text_alone(model, ids)
    logits: Tensor = getattr(output, "logits", output)
    return logits


def _of_text_alone(model: nn.Module, ids: Tensor) -> Any:
    """Call a model of transformers that may want images or audio beside the text; BLIP-2 and Idefics must have them."""
    try:
        return model(input_ids=ids, use_cache=False)
    except (TypeError, ValueError, AttributeError) as error:
        lines = str(error).strip().splitlines() or [type(error).__name__]
        raise EvaluationError(
            f"{type(model).__name__} does not run on text alone: {lines[0][:200]}"
        ) from error


def _loss(logits: Tensor, tokens: Tensor, unpredicted: int) -> float:
    """Mean negative log-likelihood of a block: logits (seq_len, vocabulary), token ids (seq_len,).

    Position i predicts token i + 1, so the first token is never predicted.
    """
    targets = tokens[unpredicted:].to(logits.device)
    pieces = zip(
        torch.split(logits[unpredicted - 1 : -1], POSITIONS),
        torch.split(targets, POSITIONS),
        strict=True,
    )
    sums = [
        functional.cross_entropy(rows.float(), words, reduction="sum").double()
        for rows, words in pieces
    ]
    return float(torch.stack(sums).sum()) / len(targets)


def _device(model: nn.Module) -> torch.device:
    """Where the token ids go: the embedding's device.

    In a model spread over several devices that need not be the device of its first parameter.
    """
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
