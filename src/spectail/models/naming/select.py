"""Selection of layers by patterns over their names (globs), by kind and by type."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from fnmatch import fnmatchcase
from typing import Protocol, TypeVar

from spectail.errors import SpecError, SpectailError

TYPES = ("conv", "embedding", "recurrent", "spectral", "lora")
"""Types of layer with a kind of the same name; every other weight matrix is of type ``linear``."""
LINEAR = "linear"


class Named(Protocol):
    """Anything with a name and a kind: a layer, or the record of one."""

    @property
    def name(self) -> str:
        """The full name."""

    @property
    def kind(self) -> str:
        """What it does: ``q``, ``up``, ``conv``..."""


Item = TypeVar("Item", bound=Named)


def type_of(kind: str) -> str:
    """Return the type of a layer of this kind.

    >>> type_of("q"), type_of("conv"), type_of("head")
    ('linear', 'conv', 'linear')
    """
    return kind if kind in (*TYPES, "parameter") else LINEAR


@dataclass(frozen=True)
class KindFilter:
    """Which kinds and types of layer are wanted; empty means all of them."""

    kinds: tuple[str, ...] = ()
    types: tuple[str, ...] = ()

    @classmethod
    def of(cls, kinds: str | Iterable[str] = (), types: str | Iterable[str] = ()) -> KindFilter:
        """Read lists of words, each of which may be several with commas between them.

        >>> KindFilter.of("q,k", ["conv"])
        KindFilter(kinds=('q', 'k'), types=('conv',))
        """
        return cls(_words(kinds), _words(types))

    def wants(self, kind: str) -> bool:
        """Whether layers of this kind are wanted."""
        wanted = not self.kinds or kind in self.kinds
        return wanted and (not self.types or type_of(kind) in self.types)

    def names(self, kind: str) -> bool:
        """Whether layers of this kind are wanted because they were asked for."""
        return bool(self) and self.wants(kind)

    def __bool__(self) -> bool:
        return bool(self.kinds or self.types)

    def __str__(self) -> str:
        parts = ("kind", self.kinds), ("type", self.types)
        return " and ".join(f"{word} {', '.join(given)}" for word, given in parts if given)

    def check(self, kinds: Iterable[str], error: type[SpectailError]) -> None:
        """Raise ``error`` for a word that no layer has; ``kinds`` are those of all layers."""
        present = dict.fromkeys(kinds)
        for option, words, known in (
            ("--kind", self.kinds, list(present)),
            ("--type", self.types, list(dict.fromkeys(map(type_of, present)))),
        ):
            for word in words:
                if word not in known:
                    raise error(
                        f"{option} {word!r} matches no layer; the {option[2:]}s here are "
                        f"{', '.join(known)}"
                    )
        if self and present and not any(map(self.wants, present)):
            raise error(f"no layer is of {self}; the kinds here are {', '.join(present)}")


def _words(given: str | Iterable[str]) -> tuple[str, ...]:
    """Split words at commas; a text alone is one list."""
    texts = [given] if isinstance(given, str) else given
    found: dict[str, None] = {}
    for text in texts:
        words = [word for part in text.split(",") if (word := part.strip())]
        # An empty word, as from an unset variable, is no wish for layers of all kinds.
        if not words and text is not given:
            raise SpecError(f"a kind or type is a word such as q or conv, not {text!r}")
        found |= dict.fromkeys(words)
    return tuple(found)


ALL_KINDS = KindFilter()


def select(
    layers: Sequence[Item],
    include: Sequence[str] = (),
    exclude: Sequence[str] = (),
    of: KindFilter = ALL_KINDS,
) -> tuple[Item, ...]:
    """Keep the layers that match an ``include`` glob and no ``exclude`` glob, in the same order.

    Without ``include`` globs, all layers are candidates. A glob must match the whole name, and
    ``*`` matches dots too. Brackets can also match themselves, because parts have names such as
    ``experts.down_proj[3]``. ``of`` keeps layers of some kinds and types only.

    Raises:
        SpecError: An ``include`` glob or a kind matches nothing, or nothing is left.

    """
    # A glob that matches nothing is a typing error, which would silently lose layers.
    check_globs("--include", include, [layer.name for layer in layers], SpecError)
    of.check((layer.kind for layer in layers), SpecError)
    kept = tuple(
        layer
        for layer in layers
        if is_selected(layer.name, include, exclude) and of.wants(layer.kind)
    )
    if layers and not kept:
        raise SpecError(_nothing_left(len(layers), include, exclude, of))
    return kept


def _nothing_left(
    count: int, include: Sequence[str], exclude: Sequence[str], of: KindFilter
) -> str:
    """Say which options together leave no layer."""
    given = [("--include", include), ("--exclude", exclude), ("--kind", of.kinds)]
    named = [
        f"{option} {', '.join(map(repr, words))}"
        for option, words in (*given, ("--type", of.types))
        if words
    ]
    # An exclude glob alone is too wide; several options together may have no layer in common.
    word, advice = (
        ("leaves", "use a narrower glob")
        if len(named) == 1
        else ("together leave", "use fewer of them")
    )
    return f"{' and '.join(named)} {word} none of the {count} layers; {advice}"


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
