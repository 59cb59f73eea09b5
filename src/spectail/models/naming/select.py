"""Selection of layers by shell-style patterns (globs) over their names."""

from __future__ import annotations

from collections.abc import Sequence
from fnmatch import fnmatchcase
from typing import Protocol, TypeVar

from spectail.errors import SpecError, SpectailError


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
    check_globs("--include", include, [layer.name for layer in layers], SpecError)
    kept = tuple(layer for layer in layers if is_selected(layer.name, include, exclude))
    if layers and not kept:
        globs = ", ".join(map(repr, exclude))
        raise SpecError(
            f"--exclude {globs} leaves none of the {len(layers)} layers; use a narrower glob"
        )
    return kept


def matches(name: str, glob: str) -> bool:
    """Whether a glob matches a name, with brackets read as a set of characters or literally.

    A parameter's name may be given without its ``.weight``, as a layer is called.
    """
    # [[] is how fnmatch spells a literal bracket.
    globs = (glob, glob.replace("[", "[[]"))
    return any(fnmatchcase(form, g) for form in {name, name.removesuffix(".weight")} for g in globs)


def is_selected(name: str, include: Sequence[str] = (), exclude: Sequence[str] = ()) -> bool:
    """Whether a name matches an ``include`` glob, if there are any, and no ``exclude`` glob."""
    included = not include or any(matches(name, glob) for glob in include)
    return included and not any(matches(name, glob) for glob in exclude)


def check_globs(
    option: str,
    globs: Sequence[str],
    names: Sequence[str],
    error: type[SpectailError],
    *,
    what: str = "layers",
) -> None:
    """Raise ``error`` with the name of the option for a glob that matches none of the names."""
    for glob in globs:
        if not any(matches(name, glob) for name in names):
            raise error(
                f"{option} {glob!r} matches none of the {len(names)} {what}{_examples(names)}"
            )


def _examples(names: Sequence[str]) -> str:
    """Return a text that shows three names, spread over the model."""
    if not names:
        return ""
    # A dict without values: an ordered set, so that short models repeat no name.
    spread = {names[0]: None, names[len(names) // 2]: None, names[-1]: None}
    return f"; names look like {', '.join(spread)}"
