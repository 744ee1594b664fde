"""Values used last, for what studies that take turns would otherwise make anew with each message."""

from __future__ import annotations

from typing import Generic, TypeVar

__all__ = ["Latest"]

Key = TypeVar("Key")
Value = TypeVar("Value")


class Latest(Generic[Key, Value]):
    """At most ``most`` values by key: the one used longest ago goes.

    Example:
        >>> kept = Latest[str, int](2)
        >>> for key, value in (("a", 1), ("b", 2)):
        ...     kept.put(key, value)
        >>> kept.get("a"), kept.put("c", 3), kept.get("b"), [*kept.values]
        (1, None, None, ['a', 'c'])
    """

    def __init__(self, most: int) -> None:
        self._most = most
        self.values: dict[Key, Value] = {}  # the one used last is the last

    def get(self, key: Key) -> Value | None:
        """The value of a key, which is thereby the one used last."""
        if key in self.values:
            self.values[key] = self.values.pop(key)
        return self.values.get(key)

    def put(self, key: Key, value: Value) -> None:
        """Keep a value as the one used last."""
        self.values.pop(key, None)
        self.make_room()
        self.values[key] = value

    def make_room(self) -> None:
        """Let the value used longest ago go if another one would be too many."""
        while len(self.values) >= self._most:
            del self.values[next(iter(self.values))]
