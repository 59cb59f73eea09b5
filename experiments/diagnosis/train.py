"""A small Llama that is trained here, some of its layers at a hundredth of the learning rate."""

from __future__ import annotations

from collections.abc import Callable, Collection
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeAlias

import torch
from torch import Tensor, nn

from experiments.language.data import as_bytes, batch, drawn, spaced
from experiments.language.train import llama, share_of_rate
from experiments.pruning.texts import DOCUMENTS, read_html
from spectail.basics.files import all_or_nothing

KINDS = (
    *("self_attn.q_proj", "self_attn.k_proj", "self_attn.v_proj", "self_attn.o_proj"),
    *("mlp.gate_proj", "mlp.up_proj", "mlp.down_proj"),
)
TextReader: TypeAlias = Callable[[], tuple[Tensor, Tensor]]
"""Gives the bytes to train on and to validate on."""
SLOW = 0.01
"""Share of the learning rate that under-trained layers get."""


@dataclass(frozen=True, kw_only=True)
class Recipe:
    """How to train; the same for every seed, with and without slow layers."""

    hidden: int = 128
    layers: int = 6
    length: int = 128
    batch: int = 8
    steps: int = 400
    lr: float = 0.003
    weight_decay: float = 0.1
    scored: int = 64
    """Pieces of text that the validation loss is measured on."""


def slow_layers(recipe: Recipe, seed: int) -> list[str]:
    """One layer of every kind, each in a block drawn by the seed.

    No block twice while there are enough.
    """
    generator = torch.Generator().manual_seed(seed)
    order = torch.cat([torch.randperm(recipe.layers, generator=generator) for _ in KINDS])
    return [f"model.layers.{int(block)}.{kind}" for kind, block in zip(KINDS, order, strict=False)]


def train(
    recipe: Recipe, seed: int, slow: Collection[str], read: TextReader
) -> tuple[nn.Module, float]:
    """Train with AdamW, warm-up and cosine; the model and its validation loss in nats a byte.

    Layers named in ``slow`` train at SLOW of the rate. The seed gives initial weights
    and batches, so the same seed with and without slow layers starts from the same
    weights and sees the same text.
    """
    torch.manual_seed(seed)
    model = llama(recipe.hidden, recipe.layers, recipe.length).train()
    text, validation = read()
    groups: dict[bool, list[nn.Parameter]] = {False: [], True: []}
    for name, parameter in model.named_parameters():
        groups[name.removesuffix(".weight") in slow].append(parameter)
    optimizer = torch.optim.AdamW(
        [
            {"params": groups[low], "lr": recipe.lr * (SLOW if low else 1)}
            for low in groups
            if groups[low]
        ],
        betas=(0.9, 0.95),
        weight_decay=recipe.weight_decay,
    )
    schedule = torch.optim.lr_scheduler.LambdaLR(
        optimizer, lambda s: share_of_rate(s, recipe.steps)
    )
    generator = torch.Generator().manual_seed(seed)
    for _ in range(recipe.steps):
        tokens = batch(text, size=recipe.batch, length=recipe.length, generator=generator)
        optimizer.zero_grad()
        model(input_ids=tokens, labels=tokens).loss.backward()
        nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        schedule.step()
    return model, loss(model, validation, recipe)


def loss(model: nn.Module, text: Tensor, recipe: Recipe) -> float:
    """Mean loss in nats a byte over pieces evenly spaced in the text."""
    model.eval()
    pieces = spaced(text, size=recipe.scored, length=recipe.length)
    with torch.inference_mode():
        total = sum(
            float(model(input_ids=part, labels=part).loss) * len(part) for part in pieces.split(16)
        )
    return total / len(pieces)


def saved(
    folder: Path, recipe: Recipe, seed: int, slow: Collection[str], read: TextReader
) -> tuple[Path, float]:
    """The trained weights as a file in ``folder``, and the validation loss.

    The model is trained unless the file is there.
    """
    path = folder / f"llama-{seed}{'-slow' if slow else ''}.pt"
    if not path.exists():
        model, found = train(recipe, seed, slow, read)
        state: dict[str, Any] = dict(model.state_dict())
        with all_or_nothing(path) as (part,):
            torch.save({"recipe": repr(recipe), "loss": found, "state_dict": state}, part)
    kept = torch.load(path, weights_only=True)
    if kept["recipe"] != repr(recipe):
        raise ValueError(f"{path} was trained with other settings; remove it or use --fresh")
    return path, float(kept["loss"])


def prose() -> tuple[Tensor, Tensor]:
    """Bytes to train on and to validate on: alternate pages of the Debian package anarchism."""
    pages = sorted((DOCUMENTS / "anarchism" / "html").glob("*.html"))
    if not pages:
        raise FileNotFoundError("no pages of the Debian package anarchism: install it")
    train_on, validate_on = (
        as_bytes("\n\n".join(map(read_html, pages[start::2]))) for start in (0, 1)
    )
    return train_on, validate_on


def sums() -> tuple[Tensor, Tensor]:
    """Sums written out, to see whether the experiment runs."""
    found = drawn()
    return found.train, found.validation
