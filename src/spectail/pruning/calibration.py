"""Calibration text: token ids drawn from a text, and their check."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

from spectail.errors import EvaluationError, PruneError
from spectail.evaluation.bos import needed_bos, resolve, room_for_text, text_setting


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

    The text is cut into sequences from a drawn offset on, and some of them are drawn without
    repetition; all of them where there are no more than ``samples``. 128 x 2048 is what Wanda and
    SparseGPT publish.

    Args:
        tokenizer: that of the model.
        text: what to draw from.
        samples: how many sequences.
        seq_len: tokens in a sequence, BOS included.
        seed: of the draw.
        bos: ``every`` puts BOS in front of every sample, which then holds ``seq_len - 1`` tokens of
            the text. Under ``first`` and ``none`` no sample has a BOS: samples are drawn from
            inside of the text, as published. ``auto`` chooses as in ``st.perplexity``.
        model: what ``auto`` chooses by. Without it only the tokenizer's class tells the family, and
            ``auto`` is ``every`` for Gemma's tokenizers alone.

    Raises:
        PruneError: the text is shorter than one sequence; a BOS that the tokenizer lacks.

    """
    for name, value in (("samples", samples), ("seq_len", seq_len)):
        if isinstance(value, bool) or not isinstance(value, int) or value < 1:
            raise PruneError(f"{name} must be a whole number of at least 1, not {value!r}")
    try:
        rule = resolve(bos, tokenizer, model)
        room = room_for_text(rule, seq_len)
    except EvaluationError as error:
        raise PruneError(str(error)) from None
    ids = _whole(tokenizer, text)
    if ids.numel() < room:
        beside = " beside BOS" if rule.in_block else ""
        raise PruneError(
            f"the calibration text has {ids.numel()} tokens, and one sequence takes {room}{beside}: "
            "give a longer text, or a shorter seq-len"
        )
    draw = torch.Generator().manual_seed(seed)
    spare = ids.numel() % room
    offset = int(torch.randint(spare + 1, (), generator=draw))
    count = (ids.numel() - offset) // room
    chosen = torch.randperm(count, generator=draw)[:samples]
    return rule.open(ids[offset : offset + count * room].reshape(count, room)[chosen])


def _whole(tokenizer: Any, text: str) -> Tensor:
    """Token ids of a text, without special tokens."""
    longest = getattr(tokenizer, "model_max_length", None)
    if longest is not None:
        tokenizer.model_max_length = int(
            1e30
        )  # else the tokenizer warns of a text that no model sees whole
    try:
        found = tokenizer(text, add_special_tokens=False)["input_ids"]
    finally:
        if longest is not None:
            tokenizer.model_max_length = longest
    return torch.as_tensor(found, dtype=torch.long).reshape(-1)


def missing_bos(tokens: Tensor, model: nn.Module) -> str | None:
    """What to say of samples without the BOS that the model's family needs; None if all is well."""
    needed = needed_bos(model)
    if needed is None or bool((tokens[:, 0] == needed[1]).all()):
        return None
    family, token = needed
    without = int((tokens[:, 0] != token).sum())
    return (
        f"{without} of {len(tokens)} samples do not start with BOS (token {token}), which {family} "
        "models need: draw them with bos every"
    )


def as_tokens(calibration: Any, model: nn.Module, method: str) -> Tensor:
    """Check token ids: (samples, length), whole numbers that the model's vocabulary and positions hold."""
    if calibration is None:
        raise PruneError(
            f"{method} needs calibration: token ids (samples, length), as spectail.pruning.calibration draws them"
        )
    if (
        isinstance(calibration, list | tuple)
        and all(isinstance(x, Tensor) for x in calibration)
        and calibration
    ):
        if len({x.shape[-1] for x in calibration}) > 1:
            raise PruneError("calibration samples must all have one length")
        calibration = torch.cat([x.reshape(1, -1) if x.ndim < 2 else x for x in calibration])
    if (
        not isinstance(calibration, Tensor)
        or calibration.is_floating_point()
        or calibration.ndim != 2
    ):
        what = (
            f"a tensor of shape {tuple(calibration.shape)}"
            if isinstance(calibration, Tensor)
            else repr(calibration)
        )
        raise PruneError(f"calibration must be token ids (samples, length), not {what[:80]}")
    if not calibration.numel():
        raise PruneError("calibration holds no tokens")
    most = text_setting(model, "max_position_embeddings")
    if most is not None and calibration.shape[1] > most:
        raise PruneError(
            f"calibration sequences of {calibration.shape[1]} tokens exceed the model's {most} positions"
        )
    words = text_setting(model, "vocab_size")
    if words is not None and (int(calibration.max()) >= words or int(calibration.min()) < 0):
        raise PruneError(
            f"calibration holds token {int(calibration.max())}, the model knows {words}: another tokenizer?"
        )
    return calibration
