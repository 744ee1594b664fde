"""A clock whose pauses are short while there is work, and grow with the time that nothing has come."""

from __future__ import annotations

import time
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, Final

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping

__all__ = ["SHARE", "TAKEN_S", "BriskClock"]

SHARE: Final = 0.1  # of the time without work that a pause may last: so much later is the next work noticed
TAKEN_S: Final = 3.0  # for the coordinator to take a reply: it looks every 0.2 s, unless tensors hold it up


@dataclass
class BriskClock:
    """Stands in for the module `time` in a program that sleeps between looks for work.

    A site that waits for others looks less and less often: with tens of sites it is their looks that keep a
    coordinator busy.

    Args:
        shortest: The pause that is made instead of one that the program asks for, just after work.
        longest: The same once nothing has come for long; what the program asks for where it is not here.
        on_pause: Told of each pause before it is made.
        now: Monotonic time in seconds.
        wait: That pauses.

    Example:
        >>> clock = BriskClock(shortest={3: 0.2}, wait=print)
        >>> clock.sleep(3)
        0.2
        >>> clock.sleep(0.5)
        0.5
    """

    shortest: Mapping[float, float]
    longest: Mapping[float, float] = field(default_factory=dict)
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
        shortest, longest = self.shortest.get(seconds, seconds), self.longest.get(seconds, seconds)
        self.wait(max(shortest, min(SHARE * (self.now() - self._worked), longest)))

    def __getattr__(self, name: str) -> Any:  # noqa: ANN401 - whatever else the module time has
        return getattr(time, name)
