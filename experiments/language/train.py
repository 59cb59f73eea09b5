"""One training run of a small Llama over bytes, with or without a Balancer.

AdamW, Muon or HTMuon, warm-up and cosine.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from transformers import LlamaConfig, LlamaForCausalLM

import spectail as st
from experiments.images.train import alphas
from experiments.language.data import Corpus, batch, spaced
from experiments.language.spectral import SpectralPower
from spectail.training.rules import Rule

POWERS = {"exact Muon": 0.0, "HTMuon": 0.125}
"""Powers of the singular values; HTMuon's is that of its paper (arXiv 2603.10067)."""


@dataclass(frozen=True, kw_only=True)
class Recipe:
    """How to train; the same for every method but for its rule."""

    optimizer: str
    lr: float
    seed: int
    steps: int
    batch: int
    length: int
    every: int
    """Steps between measurements of the weights, and of the validation loss."""
    weight_decay: float = 0.1
    scored: int = 32
    """Pieces of text that a loss is measured on."""
    device: str = "cpu"


def llama(hidden: int, layers: int, length: int) -> nn.Module:
    """A Llama over 256 byte values, heads of 64; an MLP of 2.75 times the width."""
    heads = max(1, hidden // 64)
    config = LlamaConfig(
        vocab_size=256,
        hidden_size=hidden,
        intermediate_size=hidden * 11 // 4,
        num_hidden_layers=layers,
        num_attention_heads=heads,
        num_key_value_heads=heads,
        max_position_embeddings=length,
    )
    return LlamaForCausalLM(config)


def optimizers(model: nn.Module, recipe: Recipe) -> list[torch.optim.Optimizer]:
    """AdamW for all, or another for the matrices inside of blocks and AdamW for the rest.

    Both have one rate. The other is torch's Muon or one of POWERS.
    """
    options: dict[str, Any] = {"lr": recipe.lr, "weight_decay": recipe.weight_decay}
    if recipe.optimizer == "AdamW":
        return [torch.optim.AdamW(model.parameters(), betas=(0.9, 0.95), **options)]
    inside = [p for name, p in model.named_parameters() if ".layers." in name and p.ndim == 2]
    known = set(map(id, inside))
    rest = [p for p in model.parameters() if id(p) not in known]
    muon = (
        SpectralPower(inside, power=POWERS[recipe.optimizer], **options)
        if recipe.optimizer in POWERS
        else torch.optim.Muon(inside, adjust_lr_fn="match_rms_adamw", **options)
    )
    return [muon, torch.optim.AdamW(rest, betas=(0.9, 0.95), **options)]


def share_of_rate(step: int, steps: int) -> float:
    """Warm-up over the first tenth, then half a cosine down to a tenth."""
    warm = max(1, steps // 10)
    if step < warm:
        return (step + 1) / warm
    return 0.55 + 0.45 * math.cos(math.pi * (step - warm) / max(1, steps - warm))


def fit(
    model: nn.Module, text: Corpus, recipe: Recipe, rule: Rule | None, look: st.Spec | None
) -> dict[str, Any]:
    """Train and return the validation loss by step, and alphas before and after.

    Losses are in nats a byte; alphas are those of every layer. ``rule`` scales what it scales of
    the first optimizer (None: nothing). ``look`` is how alphas are measured for the record, the
    same for every method; with None they are not.
    """
    model = model.to(recipe.device).train()
    generator = torch.Generator().manual_seed(recipe.seed)
    chosen = optimizers(model, recipe)
    schedules = [
        torch.optim.lr_scheduler.LambdaLR(o, lambda s: share_of_rate(s, recipe.steps))
        for o in chosen
    ]
    if rule:
        st.Balancer(model, chosen[0], rule, every=recipe.every)
    before = alphas(model, look) if look else {}
    losses = {0: loss(model, text.validation, recipe)}
    for step in range(1, recipe.steps + 1):
        tokens = batch(text.train, size=recipe.batch, length=recipe.length, generator=generator).to(
            recipe.device
        )
        model.zero_grad()
        model(input_ids=tokens, labels=tokens).loss.backward()
        nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        for optimizer, schedule in zip(chosen, schedules, strict=True):
            optimizer.step()
            schedule.step()
        if step % recipe.every == 0 or step == recipe.steps:
            losses[step] = loss(model, text.validation, recipe)
    return {
        "losses": losses,
        "validation": losses[recipe.steps],
        "alphas before": before,
        "alphas": alphas(model, look) if look else {},
    }


def loss(model: nn.Module, text: Tensor, recipe: Recipe) -> float:
    """Mean loss in nats a byte over pieces that are evenly spaced in the text."""
    model.eval()
    pieces = spaced(text, size=recipe.scored, length=recipe.length).to(recipe.device)
    with torch.inference_mode():
        losses = [
            float(model(input_ids=part, labels=part).loss) * len(part) for part in pieces.split(16)
        ]
    model.train()
    return sum(losses) / len(pieces)
