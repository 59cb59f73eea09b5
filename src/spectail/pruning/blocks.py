"""Run calibration text through the blocks of a decoder, one block at a time.

First, two samples run through the whole model. They show which arguments the model gives to each
block besides the hidden states (masks, rotary angles, positions and so on), which of these depend
on the text, and whether each block's output is the next one's input. After that this module calls
the blocks itself, with the arguments it has seen.

Arguments that depend on the tokens alone are allowed, and each sample keeps its own: the embeddings
that Zamba gives to every block, or an encoder's output. Arguments that depend on the results of
earlier blocks are refused, because pruning those blocks would change them.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn

from spectail.errors import PruneError
from spectail.models.naming.blocks import unit_of
from spectail.pruning.forward import is_encoder_decoder, run_tokens


@dataclass(frozen=True)
class Extra:
    """The arguments of a block's call besides the hidden states."""

    args: tuple[Any, ...]
    kwargs: Mapping[str, Any]
    keyword: str | None
    """The name of the argument that holds the hidden states; None if they come first, without a
    name."""


@dataclass
class Stream:
    """The hidden states of all samples at the next block, and the other arguments of all blocks."""

    hidden: list[Tensor]
    """For each sample, the input of the next block."""
    extras: list[Mapping[int, Extra]]
    """For each sample, the other arguments by the block's number; a block that the model skips on
    text is missing."""

    def run(self, block: nn.Module, number: int, *, keep: bool) -> None:
        """Run a block on all samples; with ``keep`` its outputs become the next block's inputs.

        A block that the model skips on text, such as cross-attention to images, changes nothing.
        """
        for i, states in enumerate(self.hidden):
            extra = self.extras[i].get(number)
            if extra is None:
                continue
            # A copy, because blocks may change their input in place, and without ``keep`` it is
            # needed again for the pruned block.
            output = _hidden(_call(block, extra, states.clone()))
            if keep:
                self.hidden[i] = output


def find_blocks(model: nn.Module, paths: Iterable[str]) -> list[tuple[str, nn.Module]]:
    """Return the (name, block) pairs, in order, of the one stack that holds all these parameters.

    Raises:
        PruneError: a parameter outside of blocks, or blocks of more than one stack.

    """
    stacks: dict[str, str] = {}
    for path in paths:
        unit = unit_of(path)
        if unit is None:
            raise PruneError(
                f"{path} lies in no block, and only blocks are pruned by calibration text: "
                "leave it out of the allocation, or prune by magnitude"
            )
        # ``model.layers.3`` lies in the stack ``model.layers``.
        stacks.setdefault(unit.rpartition(".")[0], path)
    if len(stacks) != 1:
        raise PruneError(_several(model, list(stacks)))
    (name,) = stacks
    stack = model.get_submodule(name)
    if not isinstance(stack, nn.ModuleList):
        raise PruneError(
            f"the blocks of {name} are no list of modules but a {type(stack).__name__}"
        )
    return [(f"{name}.{i}", block) for i, block in enumerate(stack)]


def _several(model: nn.Module, stacks: Sequence[str]) -> str:
    """Return the message that calibration cannot prune several stacks in one run."""
    what = "an encoder-decoder" if is_encoder_decoder(model) else f"a model of {len(stacks)} stacks"
    others = " and ".join(f"'{stack}.*'" for stack in stacks[1:])
    return (
        f"expected one stack of blocks, as a decoder has, but {type(model).__name__} is {what} "
        f"with blocks in {', '.join(stacks)}: prune by magnitude, or one stack at a time "
        f"(here exclude {others})"
    )


def start(model: nn.Module, blocks: Sequence[nn.Module], tokens: Tensor) -> Stream:
    """Return the inputs of the first block for samples of token ids, (samples, length).

    Raises:
        PruneError: the model does not run its blocks one after the other, or gives them arguments
            that depend on the results of other blocks.

    """
    first = _watch(model, blocks, tokens[:1])
    if len(tokens) == 1:
        return Stream([first.states], [first.extras])
    # A second text shows which arguments depend on the text.
    second = _watch(model, blocks, tokens[1:2])
    if first.extras.keys() != second.extras.keys():
        raise PruneError(
            f"this {type(model).__name__} sends one text through other blocks than another: "
            "prune by magnitude"
        )
    # Two samples with equal arguments show that no argument depends on the text. The other samples
    # then need only the layers in front of the first block, which is far cheaper.
    if all(_same_extra(first.extras[number], second.extras[number]) for number in first.extras):
        others = [_before_first(model, blocks, min(first.extras), ids[None]) for ids in tokens[2:]]
        return Stream([first.states, second.states, *others], [first.extras] * len(tokens))
    # The arguments differ between texts: allowed only if they come from the tokens alone.
    _check_from_tokens(model, blocks, tokens[1:2], second)
    records = [first, second, *(_watch(model, blocks, ids[None]) for ids in tokens[2:])]
    return Stream([record.states for record in records], [record.extras for record in records])


def _check_from_tokens(
    model: nn.Module, blocks: Sequence[nn.Module], ids: Tensor, record: _Record
) -> None:
    """Refuse arguments that change when earlier blocks return other values on the same text."""
    # The same text with other block outputs: an argument that changes was computed from them.
    shaken = _watch(model, blocks, ids, shake=True)
    for number, extra in record.extras.items():
        if number not in shaken.extras or not _same_extra(extra, shaken.extras[number]):
            raise PruneError(
                f"block {number} of this model takes arguments that depend on what other blocks "
                "compute, besides its hidden states: calibration cannot follow it, prune by "
                "magnitude"
            )


@dataclass
class _Record:
    """What one sample's run through the whole model has shown."""

    states: Tensor = field(default_factory=lambda: torch.empty(0))
    """The input of the first block."""
    extras: dict[int, Extra] = field(default_factory=dict)
    """The other arguments of each block, by its number."""
    last: Tensor | None = None
    """The output of the block that ran last."""
    order: list[int] = field(default_factory=list)
    """The numbers of the blocks in the order of their calls."""
    broken: bool = False
    """Whether some block's input was not the output of the block before."""


def _watch(
    model: nn.Module, blocks: Sequence[nn.Module], ids: Tensor, *, shake: bool = False
) -> _Record:
    """Run one sample through the whole model and record the arguments of every block.

    With ``shake`` the output of every block is changed before the model goes on with it.
    """
    record = _Record()
    numbers = {id(block): number for number, block in enumerate(blocks)}

    def before(block: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        states, extra = _split(args, kwargs)
        if not record.order:
            record.states = states.clone()
        # Anything between two blocks (a scaling, a skip connection) would be lost when the blocks
        # are called one by one.
        elif record.last is None or not _equal(record.last, states):
            record.broken = True
        record.order.append(numbers[id(block)])
        record.extras[numbers[id(block)]] = extra

    def after(block: nn.Module, args: tuple[Any, ...], output: Any) -> Any:
        record.last = _hidden(output).clone()
        if not shake:
            return None
        # Any change serves; this one keeps the values finite.
        record.last = record.last * 1.25 + 0.125
        # What a hook returns replaces the output of the block.
        return (record.last, *output[1:]) if isinstance(output, tuple) else record.last

    hooks = [block.register_forward_pre_hook(before, with_kwargs=True) for block in blocks]
    hooks += [block.register_forward_hook(after) for block in blocks]
    try:
        run_tokens(model, ids, _paths(model, blocks))
    finally:
        for hook in hooks:
            hook.remove()
    # Blocks that run twice or out of order have no single input to prune by.
    if record.broken or not record.order or record.order != sorted(set(record.order)):
        raise PruneError(
            f"this {type(model).__name__} does not hand its hidden states from block to block in "
            "order: calibration cannot follow it, prune by magnitude"
        )
    return record


class _ReachedError(Exception):
    """Raised to end a forward pass in front of the first block."""


def _before_first(model: nn.Module, blocks: Sequence[nn.Module], first: int, ids: Tensor) -> Tensor:
    """Return the input of block number ``first``; the rest of the model does not run."""
    found: list[Tensor] = []

    def stop(block: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        found.append(_split(args, kwargs)[0].clone())
        raise _ReachedError

    hook = blocks[first].register_forward_pre_hook(stop, with_kwargs=True)
    try:
        run_tokens(model, ids, _paths(model, blocks))
    except _ReachedError:
        pass
    finally:
        hook.remove()
    return found[0]


def _paths(model: nn.Module, blocks: Sequence[nn.Module]) -> list[str]:
    """Return the paths of the blocks inside the model, each with a dot at its end."""
    inside = {id(block) for block in blocks}
    return [f"{path}." for path, module in model.named_modules() if id(module) in inside]


def _split(args: tuple[Any, ...], kwargs: dict[str, Any]) -> tuple[Tensor, Extra]:
    """Split the arguments of a block's call into the hidden states and the rest."""
    if args and isinstance(args[0], Tensor):
        states, extra = args[0].detach(), Extra(args[1:], dict(kwargs), None)
    elif isinstance(kwargs.get("hidden_states"), Tensor):
        rest = {name: value for name, value in kwargs.items() if name != "hidden_states"}
        states, extra = kwargs["hidden_states"].detach(), Extra(args, rest, "hidden_states")
    else:
        raise PruneError(
            "the blocks of this model are not called with hidden states first: prune by magnitude"
        )
    for value in (*extra.args, *extra.kwargs.values()):
        # All cache classes of transformers have this method. A cache would grow with each repeated
        # call.
        if hasattr(value, "get_seq_length"):
            raise PruneError(
                "this model hands a cache to its blocks although none was asked for: "
                "prune by magnitude"
            )
    return states, extra


def _call(block: nn.Module, extra: Extra, states: Tensor) -> Any:
    if extra.keyword:
        return block(*extra.args, **{**extra.kwargs, extra.keyword: states})
    return block(states, *extra.args, **extra.kwargs)


def _hidden(output: Any) -> Tensor:
    """Return the hidden states from the output of a block."""
    # Blocks of transformers return a tensor, or a tuple that begins with it.
    states = output[0] if isinstance(output, tuple | list) and output else output
    if not isinstance(states, Tensor):
        raise PruneError(
            f"a block of this model returns {type(output).__name__}, not hidden states: "
            "prune by magnitude"
        )
    return states.detach()


def _same_extra(a: Extra, b: Extra) -> bool:
    """Whether two calls of a block agree in all arguments but the hidden states."""
    return _same((a.args, dict(a.kwargs)), (b.args, dict(b.kwargs)))


def _same(a: Any, b: Any) -> bool:
    """Whether two arguments are equal: tensors by value, unknown objects by their type."""
    if isinstance(a, Tensor) and isinstance(b, Tensor):
        return a.dtype == b.dtype and _equal(a, b)
    if isinstance(a, tuple | list) and isinstance(b, tuple | list):
        return len(a) == len(b) and all(_same(x, y) for x, y in zip(a, b, strict=True))
    if isinstance(a, Mapping) and isinstance(b, Mapping):
        return a.keys() == b.keys() and all(_same(a[key], b[key]) for key in a)
    if a is None or isinstance(a, bool | int | float | str):
        return bool(a == b)
    # Unknown objects, such as a configuration, are compared by type: most define no equality.
    return type(a) is type(b)


def _equal(a: Tensor, b: Tensor) -> bool:
    """Whether two tensors hold the same values; NaN equals NaN."""
    if a.shape != b.shape:
        return False
    b = b.to(a.device)
    # x != x holds for NaN alone; torch.equal would call masks that hold NaN different.
    return bool(((a == b) | ((a != a) & (b != b))).all())
