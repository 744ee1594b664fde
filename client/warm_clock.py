"""A clock whose pauses are short while there is work and long when nothing has come for minutes."""

from __future__ import annotations

import time
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, Final

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping

__all__ = ["QUIET_S", "BriskClock"]

QUIET_S: Final = 300.0  # without work


@dataclass
class BriskClock:
    """Stands in for the module `time` in a program that sleeps between looks for work.

    Args:
        busy: The pause that is made instead of one that the program asks for, while there is work.
        quiet: The same once nothing has come for ``quiet_s``.
        quiet_s: See above.
        on_pause: Told of each pause before it is made.
        now: Monotonic time in seconds.
        wait: That pauses.

    Example:
        >>> clock = BriskClock(busy={3: 0.2}, wait=print)
        >>> clock.sleep(3)
        0.2
        >>> clock.sleep(0.5)
        0.5
    """

    busy: Mapping[float, float]
    quiet: Mapping[float, float] = field(default_factory=dict)
    quiet_s: float = QUIET_S
    on_pause: Callable[[float], None] = lambda _seconds: None
    now: Callable[[], float] = time.monotonic
    wait: Callable[[float], None] = time.sleep
    _worked: float = field(init=False)

    def __post_init__(self) -> None:
        self.worked()  # a program that has just started may find work waiting

    def worked(self) -> None:
        """There is work: pauses are short from now on."""
        self._worked = self.now()

    def sleep(self, seconds: float) -> None:
        """Pause, for as long as suits."""
        self.on_pause(seconds)
        quiet = self.now() - self._worked > self.quiet_s
        self.wait((self.quiet if quiet else self.busy).get(seconds, seconds))

    def __getattr__(self, name: str) -> Any:  # noqa: ANN401 - whatever else the module time has
        return getattr(time, name)
