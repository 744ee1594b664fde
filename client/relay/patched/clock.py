"""Polling intervals that are short while there is work and grow with idle time."""

from __future__ import annotations

import time
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, Final

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping

__all__ = ["IDLE_SHARE", "PICKUP_S", "AdaptiveClock"]

IDLE_SHARE: Final = 0.1  # longest pause as a share of the idle time, which bounds the added latency
PICKUP_S: Final = 3.0  # for the coordinator to pick up a reply: it polls every 0.2 s, tensors take longer


@dataclass
class AdaptiveClock:
    """Replaces the module `time` in a program that sleeps between polls.

    An idle site polls less and less often: with tens of sites, polling is what keeps a coordinator busy.

    Args:
        shortest: By requested pause, the actual one just after work, seconds.
        longest: The same after a long idle time; by default the requested pause.
        on_pause: Called with each requested pause.
        now: Monotonic time in seconds.

    Example:
        >>> clock = AdaptiveClock(shortest={3: 0.2}, wait=print)
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
        self.worked()  # there may be work at the start

    def worked(self) -> None:
        """Report work: pauses are short again."""
        self._worked = self.now()

    def sleep(self, seconds: float) -> None:
        """Pause for an adapted time."""
        self.on_pause(seconds)
        shortest, longest = self.shortest.get(seconds, seconds), self.longest.get(seconds, seconds)
        self.wait(max(shortest, min(IDLE_SHARE * (self.now() - self._worked), longest)))

    def __getattr__(self, name: str) -> Any:  # noqa: ANN401 - the rest of the module time
        return getattr(time, name)
