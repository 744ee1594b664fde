"""Stopping on SIGTERM or Ctrl-C without deadlock.

A signal handler must not set a `threading.Event`: if the signal arrives while the main thread, about to wait,
holds the event's lock, the handler waits for that lock forever.
"""

from __future__ import annotations

import os
import select
import signal
from contextlib import contextmanager, suppress
from typing import TYPE_CHECKING, Protocol

if TYPE_CHECKING:
    from collections.abc import Iterator

__all__ = ["Stop", "StopSignal", "stop_on_signals"]


class Stop(Protocol):
    """A stop request; `threading.Event` implements it too."""

    def is_set(self) -> bool:
        """Whether to stop."""

    def wait(self, timeout: float | None = None) -> bool:
        """Block until the request or for ``timeout`` seconds; returns whether to stop."""


class StopSignal:
    """A stop request that a signal handler may set.

    Example:
        >>> with stop_on_signals() as stop:
        ...     signal.raise_signal(signal.SIGTERM)
        ...     stop.wait()
        True
    """

    def __init__(self) -> None:
        self._is_set = False
        self._read, self._write = os.pipe()
        os.set_blocking(self._write, False)
        self._poll = select.poll()
        self._poll.register(self._read, select.POLLIN)

    def set(self) -> None:
        """Request to stop."""
        self._is_set = True
        with suppress(BlockingIOError):  # set so often that the pipe is full
            os.write(self._write, b"\0")

    def is_set(self) -> bool:
        """Whether to stop."""
        return self._is_set

    def wait(self, timeout: float | None = None) -> bool:
        """Block until the request or for ``timeout`` seconds; returns whether to stop."""
        if not self._is_set:
            self._poll.poll(None if timeout is None else timeout * 1000)
        return self._is_set

    def close(self) -> None:
        """Close the pipe; no thread may wait any more."""
        os.close(self._read)
        os.close(self._write)


@contextmanager
def stop_on_signals(stop: Stop | None = None) -> Iterator[Stop]:
    """The given stop request, or one that SIGTERM and SIGINT set instead of ending the main thread."""
    if stop is not None:
        yield stop
        return
    request = StopSignal()
    before = {
        number: signal.signal(number, lambda *_: request.set()) for number in (signal.SIGTERM, signal.SIGINT)
    }
    try:
        yield request
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
        request.close()
