"""Private names of a library that are replaced or called: checked before they are touched, all or none.

A library may rename what it never promised. So each name is written down here with its shape, and where one
of them differs nothing is replaced.
"""

from __future__ import annotations

import importlib
import inspect
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from collections.abc import Iterable

__all__ = ["Seam", "apply_default", "differences", "named", "replace"]


@dataclass(frozen=True)
class Seam:
    """A private name, and what it must look like.

    Args:
        module: Where it lives.
        name: With dots for what is inside a class.
        parameters: Of a function or class, all of them in order; none where it is something else.
        defaults: Of these parameters, those that only a keyword can set and that have a default.
        kind: That it must be an instance of; none for anything.
    """

    module: str
    name: str
    parameters: tuple[str, ...] | None = None
    defaults: tuple[str, ...] = ()
    kind: type | None = None

    def difference(self) -> str | None:  # noqa: PLR0911 - one return a shape
        """What is not as written down, in a few words; none where all is."""
        where = f"{self.module}.{self.name}"
        try:
            found = named(self.module, self.name)
        except (ImportError, AttributeError):
            return f"{where} is not there"
        if self.kind is not None and not isinstance(found, self.kind):
            return f"{where} is a {type(found).__name__}, expected {self.kind.__name__}"
        if self.parameters is None:
            return None
        if not callable(found):
            return f"{where} cannot be called"
        parameters = tuple(inspect.signature(found).parameters)
        if parameters != self.parameters:
            return f"{where} takes {', '.join(parameters)}; expected {', '.join(self.parameters)}"
        given = getattr(found, "__kwdefaults__", None) or {}
        lacking = [name for name in self.defaults if name not in given]
        if lacking:
            return f"{where} has no default of {', '.join(lacking)}"
        return None


def differences(seams: Iterable[Seam]) -> list[str]:
    """What is not as written down, over all names.

    Example:
        >>> differences([Seam("time", "sleep"), Seam("time", "nap")])
        ['time.nap is not there']
    """
    return [found for seam in seams if (found := seam.difference()) is not None]


def named(module: str, name: str) -> Any:  # noqa: ANN401 - whatever it is
    """What a module has under a name, with dots for what is inside of it.

    Raises:
        ImportError: If there is no such module.
        AttributeError: If it has no such name.
    """
    found: Any = importlib.import_module(module)
    for part in name.split("."):
        found = getattr(found, part)
    return found


def replace(module: str, name: str, value: object) -> None:
    """Put something else in a module under a name that it has, with dots for what is inside of a class."""
    inside, _, last = name.rpartition(".")
    found = named(module, inside) if inside else importlib.import_module(module)
    if not hasattr(found, last):
        raise AttributeError(f"{module}.{name}")
    setattr(found, last, value)


def apply_default(module: str, name: str, parameter: str, value: object) -> None:
    """Give a parameter that only a keyword can set another default.

    Raises:
        KeyError: If it has none.
    """
    function = named(module, name)
    if parameter not in (function.__kwdefaults__ or {}):
        raise KeyError(f"{module}.{name}({parameter}=)")
    function.__kwdefaults__[parameter] = value
