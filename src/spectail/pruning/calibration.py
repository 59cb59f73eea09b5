"""Calibration text: token ids drawn from a text, and their check."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

from spectail.errors import PruneError


def calibration_tokens(tokenizer: Any, text: str, *, samples: int = 128, seq_len: int = 2048, seed: int = 0) -> Tensor:
    """Draw token ids (samples, seq_len) from a text that is tokenised as a whole.

    The text is cut into sequences from a drawn offset on, and some of them are drawn without repetition; all of them
    where there are no more than ``samples``. 128 x 2048 is what Wanda and SparseGPT publish.

    Raises:
        PruneError: the text is shorter than one sequence.

    """
    for name, value in (("samples", samples), ("seq_len", seq_len)):
        if isinstance(value, bool) or not isinstance(value, int) or value < 1:
            raise PruneError(f"{name} must be a whole number of at least 1, not {value!r}")
    longest = getattr(tokenizer, "model_max_length", None)
    if longest is not None:
        tokenizer.model_max_length = int(1e30)  # else the tokenizer warns of a text that no model sees whole
    try:
        ids = torch.as_tensor(tokenizer(text, add_special_tokens=False)["input_ids"], dtype=torch.long).reshape(-1)
    finally:
        if longest is not None:
            tokenizer.model_max_length = longest
    if ids.numel() < seq_len:
        raise PruneError(
            f"the calibration text has {ids.numel()} tokens, and one sequence takes {seq_len}: "
            "give a longer text, or a shorter seq-len"
        )
    draw = torch.Generator().manual_seed(seed)
    spare = ids.numel() % seq_len
    offset = int(torch.randint(spare + 1, (), generator=draw))
    count = (ids.numel() - offset) // seq_len
    chosen = torch.randperm(count, generator=draw)[:samples]
    return ids[offset : offset + count * seq_len].reshape(count, seq_len)[chosen]


def as_tokens(calibration: Any, model: nn.Module, method: str) -> Tensor:
    """Check token ids: (samples, length), whole numbers that the model's vocabulary and positions hold."""
    if calibration is None:
        raise PruneError(
            f"{method} needs calibration: token ids (samples, length), as spectail.pruning.calibration draws them"
        )
    if isinstance(calibration, list | tuple) and all(isinstance(x, Tensor) for x in calibration) and calibration:
        if len({x.shape[-1] for x in calibration}) > 1:
            raise PruneError("calibration samples must all have one length")
        calibration = torch.cat([x.reshape(1, -1) if x.ndim < 2 else x for x in calibration])
    if not isinstance(calibration, Tensor) or calibration.is_floating_point() or calibration.ndim != 2:
        what = f"a tensor of shape {tuple(calibration.shape)}" if isinstance(calibration, Tensor) else repr(calibration)
        raise PruneError(f"calibration must be token ids (samples, length), not {what[:80]}")
    if not calibration.numel():
        raise PruneError("calibration holds no tokens")
    config = getattr(model, "config", None)
    most = getattr(config, "max_position_embeddings", None)
    if isinstance(most, int) and calibration.shape[1] > most:
        raise PruneError(f"calibration sequences of {calibration.shape[1]} tokens exceed the model's {most} positions")
    words = getattr(config, "vocab_size", None)
    if isinstance(words, int) and (int(calibration.max()) >= words or int(calibration.min()) < 0):
        raise PruneError(
            f"calibration holds token {int(calibration.max())}, the model knows {words}: another tokenizer?"
        )
    return calibration
