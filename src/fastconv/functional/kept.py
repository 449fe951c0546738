"""What calls keep for the next ones like them: the newest, of bounded number and size."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from fastconv.geometry import is_plain

_KINDS = frozenset({int, float, str, bool, type(None)})


class Newest(dict):
    """A dictionary whose oldest entries go once they are too many.

    Single operations of a ``dict`` are atomic: threads share it without a lock, which a forked child could
    find taken for ever.

    Parameters
    ----------
    most : int
        Entries that stay.
    most_size : int
        Of all entries together, as ``size`` measures them.
    size : callable
        The size of a value.
    """

    def __init__(self, most: int, most_size: int, size: Callable[[Any], int]) -> None:
        super().__init__()
        self.most, self.most_size, self._size = most, most_size, size

    def trim(self, stay: int = 0) -> list[Any]:
        """Let the oldest go that are too many, and return them; the newest ``stay``, whatever their size."""
        total, dropped = 0, []
        for count, (key, value) in enumerate(reversed(self.copy().items())):
            total += self._size(value)
            if count >= self.most or (count >= stay and total > self.most_size):
                dropped.append(self.pop(key, None))
        return [value for value in dropped if value is not None]  # which another thread took


def kinds(options: tuple) -> tuple:
    """The types of options, for equal ones of other types differ: 1 is right where True is not."""
    types = tuple(map(type, options))
    if tuple not in types:
        return types
    return tuple(kinds(option) if type(option) is tuple else type(option) for option in options)


def are_plain(options: tuple) -> bool:
    """Whether options never change."""
    return all(is_plain(option) if type(option) is tuple else type(option) in _KINDS for option in options)
