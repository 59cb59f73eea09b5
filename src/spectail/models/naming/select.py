"""Selection of layers by shell-style patterns (globs) over their names."""

from __future__ import annotations

from collections.abc import Sequence
from fnmatch import fnmatchcase
from typing import Protocol, TypeVar

from spectail.errors import SpecError


class Named(Protocol):
    """Anything with a name: a layer, or the record of one."""

    @property
    def name(self) -> str:
        """The full name."""


Item = TypeVar("Item", bound=Named)


def select(
    layers: Sequence[Item], include: Sequence[str] = (), exclude: Sequence[str] = ()
) -> tuple[Item, ...]:
    """Keep the layers that match an ``include`` glob and no ``exclude`` glob, in the same order.

    Without ``include`` globs, all layers are candidates. A glob must match the whole name, and
    ``*`` matches dots too. Brackets can also match themselves, because parts have names such as
    ``experts.down_proj[3]``.

    Raises:
        SpecError: An ``include`` glob matches nothing, or nothing is left.

    """
    # A glob that matches nothing is a typing error, which would silently lose layers.
    for glob in include:
        if not any(matches(layer.name, glob) for layer in layers):
            raise SpecError(
                f"--include {glob!r} matches none of the {len(layers)} layers{_examples(layers)}"
            )
    kept = tuple(
        layer
        for layer in layers
        if (not include or any(matches(layer.name, glob) for glob in include))
        and not any(matches(layer.name, glob) for glob in exclude)
    )
    if layers and not kept:
        globs = ", ".join(map(repr, exclude))
        raise SpecError(
            f"--exclude {globs} leaves none of the {len(layers)} layers; use a narrower glob"
        )
    return kept


def matches(name: str, glob: str) -> bool:
    """Whether a glob matches a name, with brackets read as a set of characters or literally."""
    # [[] is how fnmatch spells a literal bracket.
    return fnmatchcase(name, glob) or fnmatchcase(name, glob.replace("[", "[[]"))


def _examples(layers: Sequence[Named]) -> str:
    """Return a text that shows three layer names, spread over the model."""
    if not layers:
        return ""
    # A dict without values: an ordered set, so that short models repeat no name.
    spread = {layers[0].name: None, layers[len(layers) // 2].name: None, layers[-1].name: None}
    return f"; names look like {', '.join(spread)}"
