"""The formulas by which each form of adapter changes a weight.

Every function takes the adapter's pieces by role and the facts that its configuration states. It
returns the change in the orientation (out, in, *kernel). The functions also run on the meta device,
which has no values; this gives the shape of the change and tells whether the pieces fit together.
``p["base"]`` is the weight that the adapter changes, (out, in, *kernel).
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any, TypeAlias

import torch
from torch import Tensor

from spectail.basics.checks import is_whole

Pieces: TypeAlias = Mapping[str, Tensor]
"""The tensors of one adapter by role, in float64."""


@dataclass(frozen=True)
class Facts:
    """What is known about an adapter besides its tensors."""

    scale: float | None = None
    """Factor of the whole change; None if the adapter does not state it, and 1 is used instead."""
    rank: int | None = None
    """The rank in the configuration; None if it states none."""
    config: Mapping[str, Any] = field(default_factory=dict)
    """The adapter's configuration, unchanged."""
    note: str = ""
    """What a user should know about the adapter."""

    @property
    def factor(self) -> float:
        """The scale, or 1 if it is not known."""
        return 1.0 if self.scale is None else self.scale


Formula: TypeAlias = Callable[[Pieces, Facts], Tensor]
"""Computes the change of a weight from an adapter's pieces and facts."""


def lora(p: Pieces, facts: Facts) -> Tensor:
    """Return the change of LoRA (Hu et al. 2021): s B A.

    In a convolution, a Tucker core may lie between the factors (LoCon).
    """
    down, up = p["down"], p["up"]
    if "mid" in p:
        change = torch.einsum("pi, ijkl, jr -> prkl", up.flatten(1), p["mid"], down.flatten(1))
    else:
        change = torch.tensordot(up.flatten(1), down, dims=1)
    return decomposed(change * facts.factor, p)


def lora_embedding(p: Pieces, facts: Facts) -> Tensor:
    """Return the change of LoRA of an embedding, (words, features): s (B A)^T.

    DoRA takes its norm for every feature here.
    """
    change = (p["up"] @ p["down"]).T * facts.factor
    return change if "base" not in p else decomposed(change.T, {**p, "base": p["base"].T}).T


def decomposed(change: Tensor, p: Pieces) -> Tensor:
    """Return the change of DoRA (Liu et al. 2024): m (W + D) / ||W + D|| - W.

    D is the plain change, which is returned without base weight or magnitude m. The norm is taken
    for every output. LyCORIS may take it for every input instead; the magnitude then has the shape
    (1, in, ...).
    """
    if "magnitude" not in p or "base" not in p:
        return change
    base, magnitude = p["base"], p["magnitude"]
    adapted = base + change.reshape(base.shape)
    by_input = (
        magnitude.ndim > 1 and magnitude.shape[0] == 1 and magnitude.shape[1] != base.shape[0]
    )
    axis = 1 if by_input else 0
    sizes = [1] * base.ndim
    sizes[axis] = base.shape[axis]
    others = [d for d in range(base.ndim) if d != axis]
    norm = torch.linalg.vector_norm(adapted, dim=others, keepdim=True)
    result: Tensor = magnitude.reshape(sizes) * adapted / norm - base
    return result


def adalora(p: Pieces, facts: Facts) -> Tensor:
    """Return the change of AdaLoRA (Zhang et al. 2023): s B (A * E) / rank.

    The rank is the one at the start of training. peft adds 1e-5 to it, and stores the scale s
    itself, not s / rank, as ``lora_alpha``.
    """
    start = facts.config.get("init_r")
    # Training prunes ranks, so the factors may be smaller than at the start.
    start = start if isinstance(start, int) and start > 0 else p["down"].shape[0]
    alpha = facts.config.get("lora_alpha")
    alpha = alpha if isinstance(alpha, int | float) and alpha > 0 else start
    return as_base(p["up"] @ (p["down"] * p["singular"]) * (alpha / (start + 1e-5)), p)


def loha(p: Pieces, facts: Facts) -> Tensor:
    """Return the change of LoHa (FedPara, Hyeon-Woo et al. 2022): s (W1a W1b) * (W2a W2b).

    The outer product is entrywise.
    """
    products = [_product(p.get(f"t{i}"), p[f"w{i}_a"], p[f"w{i}_b"]) for i in (1, 2)]
    return decomposed(as_base(products[0] * products[1] * facts.factor, p), p)


def lokr(p: Pieces, facts: Facts) -> Tensor:
    """Return the change of LoKr (LyCORIS, Yeh et al. 2023): s kron(W1, W2).

    Each of the two matrices may be stored as a product of two factors.
    """
    left = p["w1"] if "w1" in p else p["w1_a"] @ p["w1_b"]
    right = p["w2"] if "w2" in p else _product(p.get("t2"), p["w2_a"], p["w2_b"])
    # kron() needs as many dimensions on the left: ones for the kernel.
    left = left.reshape(*left.shape, *[1] * (right.ndim - 2))
    return decomposed(as_base(torch.kron(left, right) * facts.factor, p), p)


def _product(core: Tensor | None, a: Tensor, b: Tensor) -> Tensor:
    """Return A B, or the product of a Tucker core (ra, rb, *kernel) with (ra, out) and (rb, in)."""
    return a @ b if core is None else torch.einsum("ijkl, ip, jr -> prkl", core, a, b)


def as_base(change: Tensor, p: Pieces) -> Tensor:
    """Reshape a change that is stored as a matrix to the shape of its weight, if that is known."""
    return change.reshape(p["base"].shape) if "base" in p else change


def difference(p: Pieces, facts: Facts) -> Tensor:
    """Return the change of LyCORIS' full training, which is stored itself."""
    return p["diff"] * facts.factor


def vera(p: Pieces, facts: Facts) -> Tensor:
    """Return the change of VeRA (Kopiczko et al. 2024): diag(b) B diag(d) A.

    A and B are cut from two random matrices that all layers share.
    """
    rows, columns = p["base"].shape
    return (p["b"].unsqueeze(1) * p["B"][:rows]) @ (p["d"].unsqueeze(1) * p["A"][:, :columns])


def randlora(p: Pieces, facts: Facts) -> Tensor:
    """Return the change of RandLoRA (Albert et al. 2025).

    It is the scaled sum over the bases i of B_i diag(lambda_i) A_i diag(gamma_i), where A_i lies
    along the shorter side of the weight.
    """
    shape = p["base"].shape
    short, long = min(shape), max(shape)
    bases = p["lambda"].shape[1]
    a = p["lambda"].unsqueeze(2) * p["A"][:, :bases, :short] * p["gamma"].unsqueeze(0)
    b = p["B"][:long, :bases].flatten(1)
    change = b @ a.flatten(0, 1)
    # peft's defaults.
    scale = float(facts.config.get("randlora_alpha", 640) / facts.config.get("r", 32))
    return (change if shape[1] == short else change.T) * scale


def vblora(p: Pieces, facts: Facts) -> Tensor:
    """Return the change of VB-LoRA (Li et al. 2024): B A.

    The pieces of B and A are softmax mixtures of the k best vectors of a bank that all layers
    share.
    """
    k = facts.config.get("topk", 2)
    down = _mixture(p["logits_A"], p["bank"], k).flatten(1)
    up = _mixture(p["logits_B"], p["bank"], k).transpose(1, 2).flatten(0, 1)
    return up @ down


def _mixture(logits: Tensor, bank: Tensor, k: int) -> Tensor:
    """Mix the k vectors of a bank that have the largest logits."""
    # The softmax runs over the k chosen logits only.
    best, which = logits.topk(k, dim=-1)
    return (best.softmax(-1).unsqueeze(-1) * bank[which]).sum(-2)


def fourierft(p: Pieces, facts: Facts) -> Tensor:
    """Return the change of FourierFT (Gao et al. 2024): s Re(ifft2(F)).

    F is zero except at positions that a random seed determines.
    """
    rows, columns = p["base"].shape
    # The positions are not stored; they follow from peft's seed, whose default is 777.
    seed = facts.config.get("random_loc_seed") or 777
    places = torch.randperm(rows * columns, generator=torch.Generator().manual_seed(seed))[
        : p["spectrum"].shape[0]
    ]
    dense = torch.zeros(rows * columns, dtype=p["spectrum"].dtype, device=p["spectrum"].device)
    dense[places.to(dense.device)] = p["spectrum"]
    change: Tensor = torch.fft.ifft2(dense.reshape(rows, columns)).real
    return change * float(facts.config.get("scaling", 150.0))


def hra(p: Pieces, facts: Facts) -> Tensor:
    """Return the change of Householder reflection adaptation (Yuan et al. 2024): W H_1 ... H_r - W.

    With ``apply_GS``, the vectors of the reflections are made orthonormal first.
    """
    vectors, base = p["u"], p["base"].flatten(1)
    if facts.config.get("apply_GS"):
        # QR may flip the sign of a vector, which does not change its reflection.
        vectors, _ = torch.linalg.qr(vectors)
    vectors = vectors / torch.linalg.vector_norm(vectors, dim=0)
    adapted = base
    for vector in vectors.T:
        # W (I - 2 v v^T), without building the reflection.
        adapted = adapted - 2 * torch.outer(adapted @ vector, vector)
    return as_base(adapted - base, p)


def oft(p: Pieces, facts: Facts) -> Tensor:
    """Return the change of OFT (Qiu et al. 2023): W R^T - W.

    R is block-diagonal; each block is the Cayley transform of a skew-symmetric matrix.
    """
    base = p["base"].flatten(1)
    count, entries = p["R"].shape
    # entries = size (size - 1) / 2, solved for the size of a block.
    size = round((1 + (1 + 8 * entries) ** 0.5) / 2)
    skew = torch.zeros(count, size, size, dtype=base.dtype, device=base.device)
    rows, columns = torch.triu_indices(size, size, 1, device=base.device)
    # R holds the entries above the diagonal.
    skew[:, rows, columns] = p["R"]
    blocks = _cayley(skew - skew.transpose(1, 2), facts.config)
    # A single block may be shared by all groups of inputs.
    repeated = blocks.expand(base.shape[1] // size, -1, -1)
    split = base.reshape(base.shape[0], -1, size)
    adapted = torch.einsum("obk, bck -> obc", split, repeated).flatten(1)
    return as_base(adapted - base, p)


_MOST_TERMS = 64
"""peft takes 5 by default. More than these add nothing to the series."""


def _cayley(skew: Tensor, config: Mapping[str, Any]) -> Tensor:
    """Return the Cayley transform (I - Q)(I + Q)^-1, or peft's series I + 2 Q + 2 Q^2 + ... + Q^n.

    The series has the opposite sign of Q, and three terms give the same as four. Both are so in
    peft.
    """
    identity = torch.eye(skew.shape[-1], dtype=skew.dtype, device=skew.device).expand_as(skew)
    if not config.get("use_cayley_neumann", True):
        exact: Tensor = torch.linalg.solve(identity + skew, identity - skew, left=False)
        return exact
    terms = config.get("num_cayley_neumann_terms", 5)
    if not is_whole(terms) or terms > _MOST_TERMS:
        raise ValueError(f"a series of {terms!r} terms")
    last = max(terms - 1, 3) if terms > 2 else terms - 1
    result, power = identity, identity
    for exponent in range(1, last + 1):
        power = power @ skew
        result = result + power * (1 if exponent == last > 1 else 2)
    return result


def hira(p: Pieces, facts: Facts) -> Tensor:
    """Return the change of HiRA (Huang et al. 2025): W * (B A), entrywise."""
    return p["base"] * (p["up"] @ p["down"])


def delora(p: Pieces, facts: Facts) -> Tensor:
    """Return the change of DeLoRA (Bini et al. 2025): B diag(l / (r |a_i| |b_i|)) A.

    Its columns are multiplied by the norms of the base weight's columns.
    """
    down, up = p["down"], p["up"]
    # peft clamps the norms in the same way, so that a factor of zeros gives no change.
    norms = torch.linalg.vector_norm(down, dim=1).clamp(min=1e-4) * torch.linalg.vector_norm(
        up, dim=0
    ).clamp(min=1e-4)
    change: Tensor = (up * (p["lambda"] / down.shape[0] / norms)) @ down * p["w_norm"]
    return change
