"""Which versions of this package work together; what they say to each other has a number of its own."""

from __future__ import annotations

import re

__all__ = ["who_upgrades"]

_VERSION = re.compile(r"(\d{1,6})\.(\d{1,6})")  # major, minor; what follows never keeps two apart


def who_upgrades(hospital: str, coordinator: str) -> str:
    """Who has to upgrade before two versions work together; empty if they are the same or neighbours.

    A protocol of another number (`mmare.wire.messages.WIRE_VERSION`) is refused beside that.

    Example:
        >>> who_upgrades("1.3.0", "1.4.2"), who_upgrades("1.4", "1.4.2")
        ('', '')
        >>> who_upgrades("1.2.9", "1.4.0"), who_upgrades("2.0", "1.4.0")
        ('the hospital has to upgrade', 'the coordinator has to upgrade')
    """
    theirs, own = _VERSION.match(hospital), _VERSION.match(coordinator)
    if theirs is None or own is None:
        return "" if hospital == coordinator else "the hospital has to install it"
    (major, minor), (own_major, own_minor) = map(int, theirs.groups()), map(int, own.groups())
    if major == own_major and abs(minor - own_minor) <= 1:
        return ""
    older = (major, minor) < (own_major, own_minor)
    return "the hospital has to upgrade" if older else "the coordinator has to upgrade"
