"""``prune``: set weights of a model to zero as an allocation says, block by block and in place."""

from __future__ import annotations

import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from numbers import Real
from typing import Protocol

import torch
from torch import Tensor, nn

from spectail.allocation.allocation import Allocation
from spectail.allocation.left_out import LeftOut
from spectail.errors import PruneError
from spectail.models.live.eval_mode import evaluating
from spectail.models.naming.blocks import unit_of
from spectail.models.naming.select import KindFilter
from spectail.pruning.allocators.uniform import uniform
from spectail.pruning.blocks import find_blocks, start
from spectail.pruning.calibration import as_tokens, missing_bos
from spectail.pruning.methods import Method, as_method
from spectail.pruning.quotas import Pattern, Quota, Zeros
from spectail.pruning.reached_layers import check_reached, scope_of
from spectail.pruning.report import Note, PrunedLayer, PruneReport
from spectail.pruning.statistics import Statistic, check_seen, site_of, watching
from spectail.pruning.weights_to_prune import PruningTarget, Scope, choose_targets
from spectail.results.depth import DepthCorrelations

SHARED = "pruned by the inputs of the first"
"""Note on a weight that several blocks share."""


class LayerProgress(Protocol):
    """A function that ``prune`` calls before each layer or block, and once at the end."""

    def __call__(self, name: str | None, done: int, total: int) -> None:
        """Show the progress: ``done`` of ``total`` weights are pruned.

        ``name`` is the layer or block that comes next; None at the end.
        """


class PruningInterrupted(KeyboardInterrupt):
    """Pruning was interrupted: the layers of ``report`` are pruned, all others are unchanged."""

    def __init__(self, report: PruneReport, total: int) -> None:
        last = f", the last {report.layers[-1].name}" if report.layers else ""
        super().__init__(
            f"interrupted after {len(report.layers)} of {total} layers{last}; "
            "the others are as they were"
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
    kinds: str | Sequence[str] = (),
    types: str | Sequence[str] = (),
    progress: LayerProgress | None = None,
) -> PruneReport:
    """Set weights of ``model`` to zero, in place, and report the sparsity reached.

    Args:
        model: a model of transformers that runs on token ids; for magnitude any module. Of a
            multi-modal model the language model is pruned. Other weights are not touched.
        allocation: the ratio of zeros of each layer: an allocation that ``st.allocate`` made for
            sparsity, a mapping that names all layers, or one ratio for all matrices inside blocks
            (for all matrices, in a model without blocks). A convolution counts as one matrix, (out,
            in x kernel).
        method: ``magnitude``, ``wanda``, ``wanda-variant``, ``sparsegpt``, or an object of a type
            in ``pruning.methods``. Magnitude and Wanda keep every weight that stays bit for bit;
            SparseGPT updates it.
        calibration: token ids (samples, length) for all methods but magnitude, which needs none.
            Blocks are pruned in order, and each one sees inputs that have passed through the pruned
            blocks before it.
        pattern: ``2:4`` for 2 zeros in every 4 weights along the input. Each layer gets the largest
            n:4 that its ratio allows, and one more zero per group as long as the total stays at or
            below the one asked for. N/M must equal the mean ratio.
        include: with one ratio, globs of layers that would stay dense, such as a vision tower's.
        exclude: with one ratio, globs of layers that stay dense.
        kinds: with one ratio, kinds of layers to prune, as ``"q,k"``; others stay dense.
        types: with one ratio, types of layers to prune, as ``"conv"``; others stay dense.
        progress: called with the name of what comes next and with numbers of weights.

    Returns:
        The sparsity asked for and reached, per layer and in total. Without a pattern the total
        number of zeros is exact after rounding, and each layer is within one weight of its ratio;
        zeros that were there before and are not chosen come on top.

    Raises:
        PruneError: the allocation, the model or the text cannot be used; one clear line. Whatever
            is found before the first layer is pruned leaves the model unchanged.
        PruningInterrupted: on Ctrl-C, with a report of the layers that are pruned.

    """
    rule = as_method(method)
    groups_of = Pattern.parse(pattern) if isinstance(pattern, str) else pattern
    if groups_of:
        rule.check_pattern(groups_of)
    # Text that a method does not need is ignored, so one call serves all methods.
    tokens = as_tokens(calibration, model, rule.name) if rule.statistic else None
    # All checks come before the first weight is changed.
    scope = Scope(tuple(include), tuple(exclude), KindFilter.of(kinds, types))
    shared = _shared_out(model, allocation, tokens, scope)
    targets, left_out = _choose(model, shared, groups_of, tokens)
    depth = shared.depth_correlations if isinstance(shared, Allocation) else None
    # Notes of an allocation that the caller made are in its own summary.
    notes = shared.notes if isinstance(shared, Allocation) and shared is not allocation else ()
    return _Job(model, rule, groups_of, tokens, targets, left_out, depth, notes).run(progress)


@dataclass(frozen=True)
class _Job:
    """One call of ``prune`` after its arguments are checked."""

    model: nn.Module
    rule: Method
    pattern: Pattern | None
    tokens: Tensor | None
    targets: list[PruningTarget]
    left_out: tuple[LeftOut, ...]
    depth: DepthCorrelations | None
    notes: tuple[str, ...]
    """What to tell the user about the layers that were chosen."""

    def run(self, progress: LayerProgress | None) -> PruneReport:
        """Prune all targets; on Ctrl-C raise PruningInterrupted with what was done so far."""
        layers: list[PrunedLayer] = []
        began, done = time.perf_counter(), 0
        total = sum(target.numel for target in self.targets)
        try:
            with torch.no_grad(), evaluating(self.model):
                for step in self._steps():
                    if isinstance(step, PrunedLayer):
                        layers.append(step)
                        done += step.numel
                    elif progress:
                        progress(step, done, total)
        except KeyboardInterrupt:
            partial = self._report(layers, began, complete=False)
            raise PruningInterrupted(partial, len(self.targets)) from None
        if progress:
            progress(None, total, total)
        return self._report(layers, began, complete=True)

    def _steps(self) -> Iterator[str | PrunedLayer]:
        """Prune step by step; yields the name of what comes next, and the result of each layer."""
        if self.tokens is None:
            return _by_weights(self.targets, self.rule)
        return _by_text(self.model, self.targets, self.rule, self.tokens)

    def _report(self, layers: list[PrunedLayer], began: float, *, complete: bool) -> PruneReport:
        tokens = self.tokens
        lacking = missing_bos(tokens, self.model) if tokens is not None else None
        return PruneReport(
            method=self.rule.name,
            settings=self.rule.settings(),
            pattern=str(self.pattern) if self.pattern else None,
            layers=tuple(layers),
            calibration=(tokens.shape[0], tokens.shape[1]) if tokens is not None else None,
            seconds=round(time.perf_counter() - began, 3),
            complete=complete,
            left_out=self.left_out,
            remarks=(
                *(Note("layers", text) for text in self.notes),
                *((Note("calibration", lacking),) if lacking else ()),
            ),
            depth=self.depth,
        )


def _shared_out(
    model: nn.Module,
    allocation: Allocation | Mapping[str, float] | float,
    tokens: Tensor | None,
    scope: Scope,
) -> Allocation | Mapping[str, float]:
    """Return the ratios by layer; one number is given to all layers of the scope."""
    if isinstance(allocation, Real) and not isinstance(allocation, bool):
        scope = scope_of(model, tokens, scope.include, scope.exclude, scope.of)
        return uniform(model, float(allocation), scope=scope)
    if scope.chosen:
        raise PruneError(
            "include, exclude, kinds and types go with one ratio for all layers: "
            "an allocation names its layers"
        )
    return allocation  # type: ignore[return-value]


def _choose(
    model: nn.Module,
    allocation: Allocation | Mapping[str, float],
    pattern: Pattern | None,
    tokens: Tensor | None,
) -> tuple[list[PruningTarget], tuple[LeftOut, ...]]:
    """Return what to prune of each layer, and the layers that stay dense with their reasons."""
    targets, left_out = choose_targets(model, allocation, pattern)
    if pattern:
        total = sum(target.numel for target in targets)
        pattern.check_mean(sum(target.ratio * target.numel for target in targets) / total)
    if tokens is not None:
        # A layer that loses nothing may be one that text does not reach.
        check_reached(
            model, [target.weight for target in targets if not _is_nothing(target.quota)], tokens
        )
    return targets, left_out


def _by_weights(targets: Sequence[PruningTarget], rule: Method) -> Iterator[str | PrunedLayer]:
    """Prune layer by layer; yields the name of each layer before, and its result after."""
    for target in targets:
        yield target.weight.name
        yield prune_weight(target, rule, None)


def _by_text(
    model: nn.Module, targets: Sequence[PruningTarget], rule: Method, tokens: Tensor
) -> Iterator[str | PrunedLayer]:
    """Prune block by block, sending the calibration inputs on through each pruned block."""
    kind = rule.statistic
    if kind is None:
        raise PruneError(f"{rule.name} looks at no text")
    blocks = find_blocks(model, [target.weight.path for target in targets])
    inside: dict[str | None, list[PruningTarget]] = {}
    for target in targets:
        # A weight that several blocks share lies in the first of them.
        inside.setdefault(unit_of(target.weight.path), []).append(target)
    # Blocks behind the last pruned one need no inputs.
    last = max((i for i, (name, _) in enumerate(blocks) if name in inside), default=-1)
    yield "calibration text"
    stream = start(model, [block for _, block in blocks], tokens)
    for number, (name, block) in enumerate(blocks[: last + 1]):
        yield name
        # Two passes per block: the first gathers statistics from the dense block, the second sends
        # the inputs on through the pruned one, so that later blocks see the errors made so far.
        chosen = [target for target in inside.get(name, ()) if not _is_nothing(target.quota)]
        with watching([target.weight for target in chosen], kind) as seen:
            if chosen:
                stream.run(block, number, keep=False)
        check_seen([target.weight for target in chosen], seen)
        for target in inside.get(name, ()):
            yield prune_weight(target, rule, seen.get(site_of(target.weight)))
        del seen  # frees the block's statistics before the next ones are made
        if number < last:
            stream.run(block, number, keep=True)


def _is_nothing(quota: Quota) -> bool:
    """Whether a quota asks for no zeros at all."""
    return (quota.count if isinstance(quota, Zeros) else quota.n) == 0


def prune_weight(target: PruningTarget, rule: Method, seen: Statistic | None) -> PrunedLayer:
    """Prune one weight in place.

    Weights that the method masks become zero, and those that it updates get their new values.
    """
    weight, quota, note = target.weight, target.quota, ""
    current = weight.read()
    if not _is_nothing(quota):
        try:
            outcome = rule.apply(_wide(current), quota, seen)
        except PruneError as error:
            raise PruneError(f"{weight.name}: {error}") from None
        if outcome.weights is not None:
            current = _stored(outcome.weights, current.dtype, weight.name)
        current = current.masked_fill(outcome.mask, 0)
        weight.write(current)
        shared = f"shared by {1 + len(weight.shared)} modules: {SHARED}"
        notes = [outcome.note, shared if weight.shared and seen is not None else ""]
        notes.append(_without_group(quota, weight.cols))
        note = "; ".join(filter(None, notes))
    # Counted in the weights that were written, so zeros that were there before count too.
    zeros = int((current == 0).sum())
    shown = str(quota.count) if isinstance(quota, Zeros) else str(quota)
    return PrunedLayer(
        weight.name, target.ratio, zeros / target.numel, zeros, target.numel, shown, note
    )


def _stored(updated: Tensor, dtype: torch.dtype, name: str) -> Tensor:
    """Return updated weights in the stored type, which must hold them."""
    found = updated.to(dtype)
    if not bool(torch.isfinite(found).all()):
        raise PruneError(
            f"{name}: updated weights are not finite in {str(dtype).removeprefix('torch.')}: "
            "load the model in float32 or bfloat16, or prune by wanda"
        )
    return found


def _without_group(quota: Quota, cols: int) -> str:
    """Return a note on inputs that fill no group of a pattern; empty if all do."""
    if not isinstance(quota, Pattern) or not (rest := cols % quota.m):
        return ""
    return f"{rest} of {cols} inputs fill no group of {quota.m} and stay"


def _wide(weights: Tensor) -> Tensor:
    """Return weights in float32 at least, for scores in half precision are too coarse."""
    if weights.is_complex() or weights.dtype == torch.float64:
        return weights
    return weights.float()
