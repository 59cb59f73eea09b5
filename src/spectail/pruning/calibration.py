"""Calibration text: draw token ids from a text, and check token ids that are given."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

from spectail.basics.checks import check_seed, check_whole
from spectail.errors import EvaluationError, PruneError
from spectail.evaluation.bos import Bos, needed_bos, resolve, room_for_text, text_setting

_WHOLE_NUMBERS = (torch.int64, torch.int32, torch.int16, torch.int8, torch.uint8)
"""Types that token ids may have."""


def calibration_tokens(
    tokenizer: Any,
    text: str,
    *,
    samples: int = 128,
    seq_len: int = 2048,
    seed: int = 0,
    bos: str = "auto",
    model: nn.Module | None = None,
) -> Tensor:
    """Draw token ids (samples, seq_len) from a text that is tokenised as a whole.

    The text is cut into sequences from a random offset on. ``samples`` of them are drawn without
    repetition, or all of them if there are fewer. Wanda and SparseGPT publish 128 x 2048.

    Args:
        tokenizer: the tokenizer of the model.
        text: the text to draw from.
        samples: the number of sequences.
        seq_len: the number of tokens in a sequence, BOS (the beginning-of-sequence token) included.
        seed: seed of the random draw.
        bos: ``every`` puts BOS in front of every sample, which then holds ``seq_len - 1`` tokens of
            the text. Under ``first`` and ``none`` no sample has a BOS: samples are drawn from
            inside the text, as published. ``auto`` chooses as in ``st.perplexity``.
        model: the model that ``auto`` chooses for. Without it ``auto`` knows only the tokenizer's
            class, and means ``every`` for Gemma's tokenizers alone.

    Raises:
        PruneError: a number is out of range, the text is shorter than one sequence, or the
            tokenizer lacks the BOS needed.

    """
    check_draw(samples, seq_len, seed)
    rule, room = _rule(tokenizer, bos, model, seq_len)
    # The whole text is tokenised once: tokenising pieces would break words at the cuts.
    ids = _whole(tokenizer, text)
    if ids.numel() < room:
        beside = " beside BOS" if rule.in_block else ""
        raise PruneError(
            f"the calibration text has {ids.numel()} tokens, and one sequence takes "
            f"{room}{beside}: give a longer text, or a shorter seq-len"
        )
    return rule.open(_drawn(ids, room, samples, seed))


def check_draw(samples: int, seq_len: int, seed: int) -> None:
    """Refuse numbers by which no calibration text can be drawn; no model is needed for that.

    Raises:
        PruneError: a number is no whole number in its range.

    """
    check_whole(PruneError, samples=samples, seq_len=seq_len)
    check_seed(PruneError, seed)


def _rule(tokenizer: Any, bos: str, model: nn.Module | None, seq_len: int) -> tuple[Bos, int]:
    """Return the rule for BOS, and how many tokens of text it leaves in a sequence."""
    try:
        rule = resolve(bos, tokenizer, model)
        return rule, room_for_text(rule, seq_len)
    except EvaluationError as error:
        raise PruneError(str(error)) from None


def _drawn(ids: Tensor, room: int, samples: int, seed: int) -> Tensor:
    """Draw sequences of ``room`` tokens, (samples, room), from the ids of a text."""
    draw = torch.Generator().manual_seed(seed)
    # A random offset keeps the cuts from falling at the same places for every seed.
    spare = ids.numel() % room
    offset = int(torch.randint(spare + 1, (), generator=draw))
    count = (ids.numel() - offset) // room
    chosen = torch.randperm(count, generator=draw)[:samples]
    return ids[offset : offset + count * room].reshape(count, room)[chosen]


def _whole(tokenizer: Any, text: str) -> Tensor:
    """Return the token ids of a whole text, without special tokens."""
    longest = getattr(tokenizer, "model_max_length", None)
    if longest is not None:
        # The tokenizer would warn that the text is too long, but no model sees it whole.
        tokenizer.model_max_length = int(1e30)
    try:
        found = tokenizer(text, add_special_tokens=False)["input_ids"]
    finally:
        if longest is not None:
            tokenizer.model_max_length = longest
    return torch.as_tensor(found, dtype=torch.long).reshape(-1)


def missing_bos(tokens: Tensor, model: nn.Module) -> str | None:
    """Return a remark on samples that lack a BOS which the model's family needs, or None."""
    needed = needed_bos(model)
    # Without BOS these families predict badly, so their inputs say little about real use.
    if needed is None or bool((tokens[:, 0] == needed[1]).all()):
        return None
    family, token = needed
    without = int((tokens[:, 0] != token).sum())
    return (
        f"{without} of {len(tokens)} samples do not start with BOS (token {token}), which {family} "
        "models need: draw them with bos every"
    )


def as_tokens(calibration: Any, model: nn.Module, method: str) -> Tensor:
    """Return calibration as a tensor of token ids, (samples, length), that fit the model.

    ``calibration`` is such a tensor or a list of samples of one length; ``method`` is named in the
    error if there is none.

    Raises:
        PruneError: the ids have another type or shape, are empty, or exceed the vocabulary or the
            positions of the model.

    """
    if calibration is None:
        raise PruneError(
            f"{method} needs calibration: token ids (samples, length), as "
            "spectail.pruning.calibration draws them"
        )
    tokens = _as_matrix(calibration)
    _check_fits(tokens, model)
    return tokens


def _as_matrix(calibration: Any) -> Tensor:
    """Return token ids, given as one tensor or one per sample, as one tensor (samples, length)."""
    if (
        isinstance(calibration, list | tuple)
        and all(isinstance(x, Tensor) for x in calibration)
        and calibration
    ):
        if len({x.shape[-1] for x in calibration}) > 1:
            raise PruneError("calibration samples must all have one length")
        # Samples may be vectors or matrices with one row, as the published scripts make them.
        calibration = torch.cat([x.reshape(1, -1) if x.ndim < 2 else x for x in calibration])
    if (
        not isinstance(calibration, Tensor)
        or calibration.dtype not in _WHOLE_NUMBERS
        or calibration.ndim != 2
    ):
        # A tensor is described by its shape; its values would fill the screen.
        what = (
            f"a tensor of shape {tuple(calibration.shape)} of type {calibration.dtype}"
            if isinstance(calibration, Tensor)
            else repr(calibration)
        )
        raise PruneError(f"calibration must be token ids (samples, length), not {what[:80]}")
    if not calibration.numel():
        raise PruneError("calibration holds no tokens")
    # Embeddings take no smaller types.
    return calibration.long()


def _check_fits(tokens: Tensor, model: nn.Module) -> None:
    """Refuse sequences longer than the model's positions, and tokens outside its vocabulary."""
    # Longer positions would index past the table of learned positions.
    most = text_setting(model, "max_position_embeddings")
    if most is not None and tokens.shape[1] > most:
        raise PruneError(
            f"calibration sequences of {tokens.shape[1]} tokens exceed the model's {most} positions"
        )
    words = text_setting(model, "vocab_size")
    if words is None:
        return
    for token in (int(tokens.min()), int(tokens.max())):
        if not 0 <= token < words:
            raise PruneError(
                f"calibration holds token {token}, the model knows {words}: another tokenizer?"
            )
