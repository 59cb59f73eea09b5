"""Pair the layers of two sources by name: a file with a live model, or two files. No torch.

The same weight can have several names. The file of a base model lacks the prefix of a model with a
head. Multi-modal files write ``language_model.model.`` where the live model has
``model.language_model.``. Experts are stored one by one or fused. The pairing tries increasingly
tolerant forms of the names and gives each layer at most one partner. It never pairs by position,
and a name with two possible partners gets none.
"""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass

from spectail.models.naming.blocks import block_of, unit_of
from spectail.models.naming.kinds import kind_of
from spectail.models.naming.names import canonical_name

_PREDICTION = re.compile(r"(?:^|\.)(?:\w*mtp\w*|\w*nextn\w*)(?=\.|$)")
"""Modules that hold blocks for multi-token prediction."""
_PREDICTION_LAYER = re.compile(r"\.(?:eh_proj|shared_head\.head)$")
"""Layers that occur only in the multi-token prediction blocks of DeepSeek and GLM."""

_TEXT = re.compile(r"(?:^|\.)(?:language_model|text_model|text_encoder|llm)\.")
"""The text part of a multi-modal model."""
_SENSE = re.compile(r"(?:^|\.)(?:visual|vision|image|img|video|audio|speech|sound)\w*\.")
"""The parts of a multi-modal model for images, video and sound."""

WRAPPERS = frozenset({"model", "module", "base_model", "transformer", "language_model", "backbone"})
"""Modules that hold a whole model or its text part. Files and model classes differ in which of them
they include in the names."""


@dataclass(frozen=True)
class Pairing:
    """The layers of two sources that are the same weight, and those without a partner."""

    pairs: Mapping[str, str]
    """Name in the first source -> name in the second."""
    left_only: tuple[str, ...]
    """Names of the first source without a partner, in the order of that source."""
    right_only: tuple[str, ...]
    """Names of the second source without a partner, in the order of that source."""
    ambiguous: Mapping[str, tuple[str, ...]]
    """Names of the first source that have several possible partners and therefore none, with those
    partners."""


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
        right: Names of the second source.
        left_saved: Names that layers of the first source have in a saved file, where they differ
            from the names in ``left``: see ``live.saved_names``.
        right_saved: The same for the second source.

    >>> left, right = "language_model.model.layers.0.mlp.up", "model.language_model.layers.0.mlp.up"
    >>> pair_names([left], [right]).pairs == {left: right}
    True

    """
    views = _by_agreement(_views(left, left_saved), _views(right, right_saved))
    found: dict[str, str] = {}
    # From strict to tolerant: a pair that agrees more closely takes its names first.
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
"""Name of a layer -> the name to compare: the layer's own, or the one in a saved file."""


def prediction_layers(names: Iterable[str]) -> set[str]:
    """Return the layers of multi-token prediction blocks.

    Files contain these blocks, but the model classes of transformers do not. DeepSeek and GLM
    append such a block to the ordinary ones; it is recognised by its ``eh_proj`` or
    ``shared_head``. Other models call the module ``mtp`` or ``nextn``.
    """
    names = list(names)
    # One such layer makes its whole block a prediction block; None is no block.
    units = {unit_of(name) for name in names if _PREDICTION_LAYER.search(name)} - {None}
    return {name for name in names if unit_of(name) in units or _PREDICTION.search(name)}


def _views(names: Sequence[str], saved: Mapping[str, str] | None) -> list[View]:
    """List the sets of names under which the layers of a source can be compared."""
    plain = {name: name for name in names}
    return (
        [plain, plain | {name: saved[name] for name in names if name in saved}]
        if saved
        else [plain]
    )


def _by_agreement(left: list[View], right: list[View]) -> list[tuple[View, View]]:
    """List all combinations of views, the one in which most names agree first.

    The order matters: a conversion may give one layer the name that another layer had, so a view
    that fits worse would pair the wrong layers.
    """
    combinations = [(first, second) for first in left for second in right]

    def disagreement(views: tuple[View, View]) -> int:
        """Return minus the number of names that both views have in common."""
        first, second = ({canonical_name(name) for name in view.values()} for view in views)
        # sorted() is stable: with equal agreement, the layers' own names go first.
        return -len(first & second)

    return sorted(combinations, key=disagreement)


def _open(view: View, paired: Iterable[str]) -> View:
    """Return the layers of a view that have no partner yet."""
    done = set(paired)
    return {name: shown for name, shown in view.items() if name not in done}


def _matched(left: View, right: View, form: Callable[[str], str]) -> dict[str, str]:
    """Pair names that have the same form, if no other name of either source has that form."""
    first, second = (
        _unique({name: form(shown) for name, shown in view.items()}) for view in (left, right)
    )
    return {first[key]: second[key] for key in first if key in second}


def _unique(forms: Mapping[str, str]) -> dict[str, str]:
    """Map each form that belongs to exactly one name to that name."""
    counts = Counter(forms.values())
    return {form: name for name, form in forms.items() if counts[form] == 1}


def _bare(name: str) -> str:
    """Return the canonical name without the wrappers in front of the first block.

    For example, ``language_model.model.layers.0.q`` becomes ``layers.0.q``.
    """
    pieces = canonical_name(name).split(".")
    # Keep the container of the blocks (``layers``), which stands before the first number.
    first = next((i for i, piece in enumerate(pieces) if piece.isdigit()), len(pieces))
    front = max(0, first - 1)
    return ".".join(
        [*(piece for piece in pieces[:front] if piece not in WRAPPERS), *pieces[front:]]
    )


def _by_suffix(left: View, right: View) -> tuple[dict[str, str], dict[str, tuple[str, ...]]]:
    """Pair names of which one ends with the whole other one.

    Both names must lie in the same block and be of the same kind: the head ``fc`` is not the ``fc``
    inside a block. The second result lists the names of the left source that have several
    candidates.
    """
    partners: dict[str, set[str]] = {}
    back: dict[str, set[str]] = {}
    bare_left, bare_right = (
        {name: _bare(shown) for name, shown in view.items()} for view in (left, right)
    )
    # Either source may have the longer names.
    candidates = [
        *_ending_alike(bare_left, bare_right),
        *((one, two) for two, one in _ending_alike(bare_right, bare_left)),
    ]
    for one, two in candidates:
        partners.setdefault(one, set()).add(two)
        back.setdefault(two, set()).add(one)
    # A pair counts only if each of the two has no other candidate.
    pairs = {}
    for one, found in partners.items():
        (two, *more) = found
        if not more and len(back[two]) == 1:
            pairs[one] = two
    doubtful = {one: tuple(sorted(found)) for one, found in partners.items() if one not in pairs}
    return pairs, doubtful


def _ending_alike(short: View, long: View) -> Iterator[tuple[str, str]]:
    """List the pairs in which a name of ``long`` ends with a whole name of ``short``.

    Each pair is (layer of ``short``, layer of ``long``).
    """
    whole: dict[str, list[str]] = {}
    for name, form in short.items():
        whole.setdefault(form, []).append(name)
    for name, form in long.items():
        meaning = block_of(form), kind_of(form)
        for end in _ends(form):
            for other in whole.get(end, ()):
                if (block_of(end), kind_of(end)) == meaning and not _are_towers_apart(name, other):
                    yield other, name


def _are_towers_apart(one: str, other: str) -> bool:
    """Whether one name lies in the part for text and the other in a part for images or sound."""
    return any(
        _TEXT.search(a) and _SENSE.search(b) and not _TEXT.search(b)
        for a, b in ((one, other), (other, one))
    )


def _ends(name: str) -> Iterable[str]:
    """List the name and all its endings that consist of whole components."""
    pieces = name.split(".")
    return (".".join(pieces[start:]) for start in range(len(pieces)))
