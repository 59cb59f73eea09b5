"""Cuts: how a fused matrix falls into the weights that it holds.

Every fusion in use follows one scheme. The rows fall into equal *groups*: one for the whole matrix,
one per attention head, or one per group of heads. Each group holds the same *segments* of
consecutive rows, such as query, key and value. The segments of one name, taken from all groups in
order, are one weight.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import partial

from spectail.models.layout.arrange import grouped_columns, grouped_rows
from spectail.models.layout.part import Part
from spectail.models.layout.view import View
from spectail.models.lazy_tensor import Index


@dataclass(frozen=True)
class Segment:
    """Consecutive rows of one weight within a group."""

    name: str
    """Name of the part, which is appended to the layer's name."""
    kind: str
    """Kind of the part."""
    rows: int
    """Number of rows in each group."""


@dataclass(frozen=True)
class Cut:
    """How the rows of a fused matrix fall into groups, and each group into segments."""

    groups: int
    """Number of groups."""
    segments: tuple[Segment, ...]
    """The segments of every group, from top to bottom."""

    @property
    def rows(self) -> int:
        """Number of rows that the whole matrix must have."""
        return self.groups * sum(segment.rows for segment in self.segments)


def halves(rows: int, *names: str) -> Cut:
    """Cut into equal blocks of rows, one below the other, named after their kinds.

    >>> [(s.name, s.rows) for s in halves(8, "gate", "up").segments]
    [('gate', 4), ('up', 4)]
    """
    return Cut(1, tuple(Segment(name, name, rows // len(names)) for name in names))


def alternating(rows: int, *names: str) -> Cut:
    """Cut single rows that belong to the names in turn."""
    return Cut(rows // len(names), tuple(Segment(name, name, 1) for name in names))


def cut_rows(view: View, cut: Cut, *, index: Index = (), suffix: str = "") -> tuple[Part, ...]:
    """Cut a matrix, or the one at ``index`` of a stack, that is stored as (out, in)."""
    parts, start = [], 0
    for segment in cut.segments:
        stop = start + segment.rows
        name, size = f"{suffix}.{segment.name}", (cut.groups * segment.rows, view.shape[-1])
        # Without groups the rows are contiguous, so only these rows are read from the file.
        if cut.groups == 1:
            rows = (*index, slice(start, stop))
            parts.append(view.matrix(name, segment.kind, rows, size=size))
        else:
            # The segment is scattered over the groups: read everything, pick its rows afterwards.
            arrange = partial(grouped_rows, groups=cut.groups, start=start, stop=stop)
            parts.append(view.matrix(name, segment.kind, index, size=size, arrange=arrange))
        start = stop
    return tuple(parts)


def cut_columns(view: View, cut: Cut, *, index: Index = (), suffix: str = "") -> tuple[Part, ...]:
    """Cut a matrix, or the one at ``index`` of a stack, that is stored as (in, out)."""
    parts, start = [], 0
    for segment in cut.segments:
        stop = start + segment.rows
        # Columns are never contiguous in a stored matrix, so the piece is always read whole.
        arrange = partial(grouped_columns, groups=cut.groups, start=start, stop=stop)
        size = (cut.groups * segment.rows, view.shape[-2])
        parts.append(
            view.matrix(f"{suffix}.{segment.name}", segment.kind, index, size=size, arrange=arrange)
        )
        start = stop
    return tuple(parts)
