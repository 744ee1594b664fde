"""Being told to stop, by SIGTERM or Ctrl-C, in a way that cannot hang.

A handler of signals must not set a `threading.Event`: where the signal comes while the main thread, about to
wait for the event, holds its lock for a moment, the handler waits for that lock for ever.
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
    """What is asked whether to stop; a `threading.Event` is one, too."""

    def is_set(self) -> bool:
        """Whether to stop."""

    def wait(self, timeout: float | None = None) -> bool:
        """Wait until told, or for some seconds; whether to stop."""


class StopSignal:
    """Tells to stop; may be set by a handler of signals.

    Example:
        >>> with stop_on_signals() as stop:
        ...     signal.raise_signal(signal.SIGTERM)
        ...     stop.wait()
        True
    """

    def __init__(self) -> None:
        self._told = False
        self._read, self._write = os.pipe()
        os.set_blocking(self._write, False)
        self._poll = select.poll()
        self._poll.register(self._read, select.POLLIN)

    def set(self) -> None:
        """Tell to stop."""
        self._told = True
        with suppress(BlockingIOError):  # told so often that the pipe is full
            os.write(self._write, b"\0")

    def is_set(self) -> bool:
        """Whether to stop."""
        return self._told

    def wait(self, timeout: float | None = None) -> bool:
        """Wait until told, or for some seconds; whether to stop."""
        if not self._told:
            self._poll.poll(None if timeout is None else timeout * 1000)
        return self._told

    def close(self) -> None:
        """Let go of the pipe; nobody may wait any more."""
        os.close(self._read)
        os.close(self._write)


@contextmanager
def stop_on_signals(stop: Stop | None = None) -> Iterator[Stop]:
    """What tells to stop: what is given, or else SIGTERM and SIGINT, which then do nothing else.

    Args:
        stop: That tells; none in the main thread of a program of its own.
    """
    if stop is not None:
        yield stop
        return
    told = StopSignal()
    before = {
        number: signal.signal(number, lambda *_: told.set()) for number in (signal.SIGTERM, signal.SIGINT)
    }
    try:
        yield told
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
        told.close()
