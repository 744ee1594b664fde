"""Work that cannot be interrupted, in a thread that nobody has to wait for."""

from __future__ import annotations

import threading
from concurrent.futures import Future
from typing import TYPE_CHECKING, TypeVar

if TYPE_CHECKING:
    from collections.abc import Callable

__all__ = ["in_background"]

T = TypeVar("T")


def in_background(work: Callable[[], T]) -> Future[T]:
    """Begin; the process may end while it is still at work.

    Args:
        work: Such as a look-up of a name, which takes as long as the name servers want.

    Returns:
        Its result or error, for whoever waits a while for it.

    Example:
        >>> in_background(lambda: 2 + 2).result(timeout=10)
        4
    """
    future: Future[T] = Future()

    def run() -> None:
        try:
            future.set_result(work())
        except BaseException as error:  # told to whoever asks for the result
            future.set_exception(error)

    threading.Thread(target=run, daemon=True).start()
    return future
