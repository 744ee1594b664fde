"""Runs work that cannot be interrupted in a daemon thread."""

from __future__ import annotations

import threading
from concurrent.futures import Future
from typing import TYPE_CHECKING, TypeVar

if TYPE_CHECKING:
    from collections.abc import Callable

__all__ = ["in_background"]

T = TypeVar("T")


def in_background(work: Callable[[], T]) -> Future[T]:
    """Start work, such as a DNS lookup, that the process need not wait for to exit.

    Example:
        >>> in_background(lambda: 2 + 2).result(timeout=10)
        4
    """
    future: Future[T] = Future()

    def run() -> None:
        try:
            future.set_result(work())
        except BaseException as error:  # raised by result()
            future.set_exception(error)

    threading.Thread(target=run, daemon=True).start()
    return future
