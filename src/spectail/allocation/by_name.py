"""A result that is read as a mapping from the names of layers to numbers."""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Iterator, Mapping


class ByName(Mapping[str, float]):
    """A mapping from the names of layers to numbers, which ``_values`` holds."""

    @property
    @abstractmethod
    def _values(self) -> Mapping[str, float]:
        """The mapping itself."""

    def __getitem__(self, name: str) -> float:
        return self._values[name]

    def __iter__(self) -> Iterator[str]:
        return iter(self._values)

    def __len__(self) -> int:
        return len(self._values)
