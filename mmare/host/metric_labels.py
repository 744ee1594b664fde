"""Safe label values for metrics: short, plain characters, bounded in number."""

from __future__ import annotations

import hashlib
import re
from collections.abc import Iterable
from typing import Any, Final

__all__ = ["OTHER", "Names", "one_word", "run_label", "safe"]

OTHER: Final = "other"
LONGEST: Final = 64
_SAFE = re.compile(r"[A-Za-z0-9][A-Za-z0-9._+-]*")


def safe(value: Any) -> str:  # noqa: ANN401 - whatever a journal or a message holds
    """The name, or ``other`` if it is too long or has characters that names and site ids do not have.

    Example:
        >>> safe("conditioning.ct"), safe("/data/patients/0001"), safe(None)
        ('conditioning.ct', 'other', 'other')
    """
    plain = isinstance(value, str) and len(value) <= LONGEST and _SAFE.fullmatch(value)
    return value if plain else OTHER


def one_word(value: Any) -> str:  # noqa: ANN401 - as above
    """A name of several words joined by dashes; what looks like a path is ``other``.

    Example:
        >>> one_word("MMIST ccRCC, 12 months"), one_word("/data/study")
        ('MMIST-ccRCC-12-months', 'other')
    """
    return safe(re.sub(r"[ ,:;()]+", "-", str(value)).strip("-"))


class Names:
    """Labels for the first ``most`` names; all later names are ``other``.

    Example:
        >>> sites = Names(most=1)
        >>> sites("ash"), sites("birch"), sites("ash")
        ('ash', 'other', 'ash')
    """

    def __init__(self, most: int) -> None:
        self._most = most
        self._known: set[str] = set()

    def __call__(self, value: Any) -> str:  # noqa: ANN401 - as above
        """The label of a name."""
        name = safe(value)
        if name not in self._known and len(self._known) >= self._most:
            return OTHER
        self._known.add(name)
        return name

    def add_all(self, values: Iterable[Any]) -> tuple[str, ...]:
        """The labels of several names, in order."""
        return tuple(self(value) for value in values)


_RUN = re.compile(r".*-([0-9a-f]{8})")


def run_label(run: Any) -> str:  # noqa: ANN401 - whatever a journal holds
    """The short id at the end of a run's name, or 8 hex digits of a digest if the name has another form.

    Example:
        >>> run_label("mmist-vital12-d95f77ff")
        'd95f77ff'
    """
    found = _RUN.fullmatch(str(run))
    return found[1] if found else hashlib.sha256(str(run).encode(errors="replace")).hexdigest()[:8]
