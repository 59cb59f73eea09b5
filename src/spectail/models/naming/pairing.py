"""Pair the layers of two sources by name: a file with a live model, or two files. No torch.

One weight has several names: a file of a base model lacks the prefix that a model with a head has,
multi-modal files put ``language_model.model.`` where the live model has ``model.language_model.``,
experts are stored one by one or fused. Layers pair by the strictest form of their names that
agrees, each with one partner only. Nothing pairs by position, and a name with two possible partners
stays without one.
"""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass

from spectail.models.naming.blocks import block_of, kind_of, unit_of
from spectail.models.naming.names import canonical_name

_PREDICTION = re.compile(r"(?:^|\.)(?:\w*mtp\w*|\w*nextn\w*)(?=\.|$)")
_PREDICTION_LAYER = re.compile(r"\.(?:eh_proj|shared_head\.head)$")

_TEXT = re.compile(r"(?:^|\.)(?:language_model|text_model|text_encoder|llm)\.")
_SENSE = re.compile(r"(?:^|\.)(?:visual|vision|image|img|video|audio|speech|sound)\w*\.")

WRAPPERS = frozenset({"model", "module", "base_model", "transformer", "language_model", "backbone"})
"""Modules that hold a whole model or its text part; files and classes differ in which of them they
name."""


@dataclass(frozen=True)
class Pairing:
    """Which layers of two sources are one weight."""

    pairs: Mapping[str, str]
    """Name in the first source -> name in the second."""
    left_only: tuple[str, ...]
    """Names of the first source without a partner, in its order."""
    right_only: tuple[str, ...]
    ambiguous: Mapping[str, tuple[str, ...]]
    """Names without a partner because several would do, with those."""


def pair_names(
    left: Sequence[str],
    right: Sequence[str],
    *,
    left_saved: Mapping[str, str] | None = None,
    right_saved: Mapping[str, str] | None = None,
) -> Pairing:
    """Pair two lists of layer names.

    Args:
        left: Names of the first source.
        right: Names of the second.
        left_saved: The names that the first source's layers have in a saved file, where they
            differ: see ``live.saved_names``.
        right_saved: The same for the second source.

    >>> pair_names(["language_model.model.layers.0.mlp.up_proj"], ["model.language_model.layers.0.mlp.up_proj"]).pairs
    {'language_model.model.layers.0.mlp.up_proj': 'model.language_model.layers.0.mlp.up_proj'}

    """
    views = _by_agreement(_views(left, left_saved), _views(right, right_saved))
    found: dict[str, str] = {}
    for form in (str, canonical_name, _bare):
        for first, second in views:
            found |= _matched(_open(first, found), _open(second, found.values()), form)
    ambiguous: dict[str, tuple[str, ...]] = {}
    for first, second in views:
        pairs, doubtful = _by_suffix(_open(first, found), _open(second, found.values()))
        found |= pairs
        ambiguous |= doubtful
    taken = set(found.values())
    return Pairing(
        {name: found[name] for name in left if name in found},
        tuple(name for name in left if name not in found),
        tuple(name for name in right if name not in taken),
        {name: others for name, others in ambiguous.items() if name not in found},
    )


View = Mapping[str, str]
"""Name of a layer -> what to compare of it: the name itself, or the one in a saved file."""


def prediction_layers(names: Iterable[str]) -> set[str]:
    """The layers of multi-token prediction blocks, which files hold and the model classes of transformers do not.

    DeepSeek and GLM append such a block to the others, and it is known by its ``eh_proj`` or
    ``shared_head``; others call it ``mtp``.
    """
    names = list(names)
    units = {unit_of(name) for name in names if _PREDICTION_LAYER.search(name)} - {None}
    return {name for name in names if unit_of(name) in units or _PREDICTION.search(name)}


def _views(names: Sequence[str], saved: Mapping[str, str] | None) -> list[View]:
    """The ways to call the layers of a source."""
    plain = {name: name for name in names}
    return (
        [plain, plain | {name: saved[name] for name in names if name in saved}]
        if saved
        else [plain]
    )


def _by_agreement(left: list[View], right: list[View]) -> list[tuple[View, View]]:
    """All combinations of views, the one in which most names agree first.

    A conversion may give one layer the name that another had, so the view that fits best goes
    first.
    """
    combinations = [(first, second) for first in left for second in right]

    def disagreement(views: tuple[View, View]) -> int:
        first, second = ({canonical_name(name) for name in view.values()} for view in views)
        return -len(first & second)

    return sorted(combinations, key=disagreement)


def _open(view: View, paired: Iterable[str]) -> View:
    """The layers of a view that have no partner yet."""
    done = set(paired)
    return {name: shown for name, shown in view.items() if name not in done}


def _matched(left: View, right: View, form: Callable[[str], str]) -> dict[str, str]:
    """Pairs of names that have the same form, where no other name of either side has it."""
    first, second = (
        _unique({name: form(shown) for name, shown in view.items()}) for view in (left, right)
    )
    return {first[key]: second[key] for key in first if key in second}


def _unique(forms: Mapping[str, str]) -> dict[str, str]:
    """Form -> name, for forms that one name alone has."""
    counts = Counter(forms.values())
    return {form: name for name, form in forms.items() if counts[form] == 1}


def _bare(name: str) -> str:
    """The canonical name without the wrappers in front of the first block (``language_model.model.layers.0...``)."""
    pieces = canonical_name(name).split(".")
    first = next((i for i, piece in enumerate(pieces) if piece.isdigit()), len(pieces))
    front = max(0, first - 1)
    return ".".join(
        [*(piece for piece in pieces[:front] if piece not in WRAPPERS), *pieces[front:]]
    )


def _by_suffix(left: View, right: View) -> tuple[dict[str, str], dict[str, tuple[str, ...]]]:
    """Pairs in which one name ends with the whole other one, and the names that have several such partners.

    Both lie in the same block and are of one kind: the head ``fc`` is not the ``fc`` inside of a
    block.
    """
    partners: dict[str, set[str]] = {}
    back: dict[str, set[str]] = {}
    bare_left, bare_right = (
        {name: _bare(shown) for name, shown in view.items()} for view in (left, right)
    )
    for short, long, turned in ((bare_left, bare_right, False), (bare_right, bare_left, True)):
        whole: dict[str, list[str]] = {}
        for name, form in short.items():
            whole.setdefault(form, []).append(name)
        for name, form in long.items():
            for end in _ends(form):
                for other in whole.get(end, ()):
                    if (block_of(end), kind_of(end)) == (block_of(form), kind_of(form)) and not (
                        _are_towers_apart(name, other)
                    ):
                        one, two = (name, other) if turned else (other, name)
                        partners.setdefault(one, set()).add(two)
                        back.setdefault(two, set()).add(one)
    pairs = {}
    for one, found in partners.items():
        (two, *more) = found
        if not more and len(back[two]) == 1:
            pairs[one] = two
    doubtful = {one: tuple(sorted(found)) for one, found in partners.items() if one not in pairs}
    return pairs, doubtful


def _are_towers_apart(one: str, other: str) -> bool:
    """Whether one name lies in the part for text and the other in one for images or sound."""
    return any(
        _TEXT.search(a) and _SENSE.search(b) and not _TEXT.search(b)
        for a, b in ((one, other), (other, one))
    )


def _ends(name: str) -> Iterable[str]:
    """The name and all that it ends with, whole pieces."""
    pieces = name.split(".")
    return (".".join(pieces[start:]) for start in range(len(pieces)))
