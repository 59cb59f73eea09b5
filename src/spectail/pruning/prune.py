"""prune: a model's weights become zero as an allocation says, block by block, in place."""

from __future__ import annotations

import time
from collections.abc import Iterator, Mapping, Sequence
from numbers import Real
from typing import Protocol

import torch
from torch import Tensor, nn

from spectail.allocation.allocation import Allocation
from spectail.allocation.coverage import LeftOut
from spectail.errors import PruneError
from spectail.models.live.eval_mode import evaluating
from spectail.models.naming.blocks import unit_of
from spectail.pruning.blocks import find_blocks, start
from spectail.pruning.calibration import as_tokens, missing_bos
from spectail.pruning.layers import Target, choose_targets
from spectail.pruning.methods import Method, as_method, settings
from spectail.pruning.owl import uniform
from spectail.pruning.quotas import Pattern, Quota, Zeros
from spectail.pruning.reach import check_reached, scope_of
from spectail.pruning.report import PrunedLayer, PruneReport
from spectail.pruning.statistics import Statistic, check_seen, site_of, watching

SHARED = "pruned by the inputs of the first"
"""What is said of a weight that several blocks share."""


class Progress(Protocol):
    """What ``prune`` tells while it works."""

    def __call__(self, name: str | None, done: int, total: int) -> None:
        """``done`` of ``total`` weights are pruned; the layer or block ``name`` is next, None at the end."""


class PruningInterrupted(KeyboardInterrupt):
    """Pruning was interrupted: the layers of ``report`` are pruned, all others as they were."""

    def __init__(self, report: PruneReport, total: int) -> None:
        last = f", the last {report.layers[-1].name}" if report.layers else ""
        super().__init__(
            f"interrupted after {len(report.layers)} of {total} layers{last}; the others are as they were"
        )
        self.report = report


def prune(
    model: nn.Module,
    allocation: Allocation | Mapping[str, float] | float,
    *,
    method: Method | str = "magnitude",
    calibration: Tensor | Sequence[Tensor] | None = None,
    pattern: Pattern | str | None = None,
    include: Sequence[str] = (),
    exclude: Sequence[str] = (),
    progress: Progress | None = None,
) -> PruneReport:
    """Set weights of ``model`` to zero, in place, and say what was reached.

    Args:
        model: a model of transformers that runs on token ids, or for magnitude any module. Of a
            multi-modal model the language model is pruned. Other weights are not touched.
        allocation: ratio of zeros by layer, as ``st.allocate`` gives it for sparsity, any mapping
            from all layers to ratios, or one ratio for all matrices inside blocks. A convolution is
            one matrix, (out, in x kernel).
        method: ``magnitude``, ``wanda``, ``wanda-variant``, ``sparsegpt``, or a type of
            ``pruning.methods``. Magnitude and Wanda leave every weight that stays bit for bit as it
            was; SparseGPT updates it.
        calibration: token ids (samples, length) for all but magnitude, which needs none. Blocks are
            pruned in order, and each sees inputs that have gone through the pruned blocks before
            it.
        pattern: ``2:4`` for 2 zeros in every 4 weights along the input; a layer gets the most n:4
            that its ratio allows, and one more as long as the total stays below the one asked for.
            Its N/M must be the mean ratio.
        include: with one ratio, globs of layers that would stay dense, such as a vision tower's.
        exclude: with one ratio, globs of layers that stay dense.
        progress: called with the next name and numbers of weights.

    Returns:
        Sparsity asked and reached, per layer and in total. Without a pattern the number of zeros is
        exact: each layer within one weight of its ratio (plus what was zero before and is not
        chosen), the total rounded.

    Raises:
        PruneError: the allocation, the model or the text cannot be pruned with; one clear line.
            What is found before the first layer is pruned leaves the model as it was.
        PruningInterrupted: on Ctrl-C, with the report of what is pruned.

    """
    rule = as_method(method)
    groups_of = Pattern.parse(pattern) if isinstance(pattern, str) else pattern
    tokens = as_tokens(calibration, model, rule.name) if rule.statistic else None
    targets, left_out = _choose(model, allocation, groups_of, tokens, scope=(include, exclude))
    work = (
        _by_text(model, targets, rule, tokens) if tokens is not None else _by_weights(targets, rule)
    )
    began, done, layers = time.perf_counter(), 0, list[PrunedLayer]()
    total = sum(target.numel for target in targets)
    lacking = missing_bos(tokens, model) if tokens is not None else None

    def report(*, complete: bool) -> PruneReport:
        return PruneReport(
            method="wanda-variant" if getattr(rule, "variant", False) else rule.name,
            settings=settings(rule),
            pattern=str(groups_of) if groups_of else None,
            layers=tuple(layers),
            calibration=(tokens.shape[0], tokens.shape[1]) if tokens is not None else None,
            seconds=round(time.perf_counter() - began, 3),
            complete=complete,
            left_out=left_out,
            remarks=(f"calibration: {lacking}",) if lacking else (),
        )

    try:
        with torch.no_grad(), evaluating(model):
            for step in work:
                if isinstance(step, PrunedLayer):
                    layers.append(step)
                    done += step.numel
                elif progress:
                    progress(step, done, total)
    except KeyboardInterrupt:
        raise PruningInterrupted(report(complete=False), len(targets)) from None
    if progress:
        progress(None, total, total)
    return report(complete=True)


def _choose(
    model: nn.Module,
    allocation: Allocation | Mapping[str, float] | float,
    pattern: Pattern | None,
    tokens: Tensor | None,
    *,
    scope: tuple[Sequence[str], Sequence[str]],
) -> tuple[list[Target], tuple[LeftOut, ...]]:
    """Say what each layer is to lose, and which layers stay dense; ``scope`` holds globs to include and exclude."""
    if isinstance(allocation, Real) and not isinstance(allocation, bool):
        allocation = uniform(model, float(allocation), scope=scope_of(model, tokens, *scope))
    elif any(scope):
        raise PruneError(
            "include and exclude go with one ratio for all layers: an allocation names its layers"
        )
    targets, left_out = choose_targets(model, allocation, pattern)
    if pattern:
        _check_mean(pattern, targets)
    if tokens is not None:
        check_reached(
            model, [target.weight for target in targets if not _is_nothing(target.quota)], tokens
        )
    return targets, left_out


def _by_weights(targets: Sequence[Target], rule: Method) -> Iterator[str | PrunedLayer]:
    """Prune layer by layer; yields each name before and each result after."""
    for target in targets:
        yield target.weight.name
        yield prune_weight(target, rule, None)


def _by_text(
    model: nn.Module, targets: Sequence[Target], rule: Method, tokens: Tensor
) -> Iterator[str | PrunedLayer]:
    """Prune block by block, sending the calibration inputs on through each pruned block."""
    kind = rule.statistic
    if kind is None:
        raise PruneError(f"{rule.name} looks at no text")
    blocks = find_blocks(model, [target.weight.path for target in targets])
    inside: dict[str | None, list[Target]] = {}
    for target in targets:
        inside.setdefault(unit_of(target.weight.path), []).append(target)
    last = max((i for i, (name, _) in enumerate(blocks) if name in inside), default=-1)
    yield "calibration text"
    stream = start(model, [block for _, block in blocks], tokens)
    for number, (name, block) in enumerate(blocks[: last + 1]):
        yield name
        chosen = [target for target in inside.get(name, ()) if not _is_nothing(target.quota)]
        with watching([target.weight for target in chosen], kind) as seen:
            if chosen:
                stream.run(block, number, keep=False)
        check_seen([target.weight for target in chosen], seen)
        for target in inside.get(name, ()):
            yield prune_weight(target, rule, seen.get(site_of(target.weight)))
        del seen
        if number < last:
            stream.run(block, number, keep=True)


def _is_nothing(quota: Quota) -> bool:
    """Whether a layer stays as it is."""
    return (quota.count if isinstance(quota, Zeros) else quota.n) == 0


def prune_weight(target: Target, rule: Method, seen: Statistic | None) -> PrunedLayer:
    """Prune one weight in place: what the method masks becomes zero, what it updates is written, all else stays."""
    weight, quota, note = target.weight, target.quota, ""
    current = weight.read()
    if not _is_nothing(quota):
        wide = (
            current if current.is_complex() or current.dtype == torch.float64 else current.float()
        )
        try:
            outcome = rule.apply(wide, quota, seen)
        except PruneError as error:
            raise PruneError(f"{weight.name}: {error}") from None
        if outcome.weights is not None:
            current = outcome.weights.to(current.dtype)
        current = current.masked_fill(outcome.mask, 0)
        weight.write(current)
        note = outcome.note
        if weight.shared and seen is not None:
            note = "; ".join(
                filter(None, [note, f"shared by {1 + len(weight.shared)} modules: {SHARED}"])
            )
    zeros = int((current == 0).sum())
    shown = str(quota.count) if isinstance(quota, Zeros) else str(quota)
    return PrunedLayer(
        weight.name, target.ratio, zeros / target.numel, zeros, target.numel, shown, note
    )


def _check_mean(pattern: Pattern, targets: Sequence[Target]) -> None:
    """A pattern states a sparsity; the allocation must be of the same."""
    mean = sum(target.ratio * target.numel for target in targets) / sum(
        target.numel for target in targets
    )
    if abs(mean - pattern.n / pattern.m) > 1e-6:
        raise PruneError(
            f"pattern {pattern} is a sparsity of {pattern.n / pattern.m:g}, the allocation's mean is {mean:g}: "
            "make them equal"
        )
