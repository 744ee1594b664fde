"""One message in a process that was forked from a warm one: Flower's own steps, this hospital's own relay.

What a bundle brings is not run: the app is `client.relay.app` as it is installed here, whatever the bundle
holds.
"""

from __future__ import annotations

import ctypes
import logging
import os
import signal
import sys
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Final

import httpcore  # noqa: F401 - which httpx imports late: once here, not once a message
import numpy as np
from flwr.supernode.runtime import run_clientapp as stock

import client.relay.worker_link  # noqa: F401 - as above
from client.relay.flower_seams import CLIENTAPP, apply_default, replace

if TYPE_CHECKING:
    from collections.abc import Callable

__all__ = ["ANSWERED", "UNANSWERED", "Task", "fresh_numbers", "run_task"]

LOG = logging.getLogger("flwr.mmare")  # under Flower's own, which SuperExec shows

ANSWERED: Final = 0  # or nobody waits any more
UNANSWERED: Final = 70  # SuperNode would wait for ever
BACKOFF_S: Final = 0.05  # until an object that was not there is asked for again; Flower's is 1 s
PR_SET_PDEATHSIG: Final = 1  # of prctl(2)


@dataclass(frozen=True)
class Task:
    """What SuperExec says of a task.

    Args:
        address: Of SuperNode, on this machine.
        token: That stands for the task.
        superexec_pid: Whose end is the task's end.
    """

    address: str
    token: str
    superexec_pid: int


def run_task(task: Task) -> None:
    """Answer one message and end this process; it also ends with the warm one, and with SuperExec."""
    ctypes.CDLL(None).prctl(PR_SET_PDEATHSIG, signal.SIGKILL)
    fresh_numbers()
    push = _Noted(stock.push_message)
    replace(CLIENTAPP, "push_message", push)
    replace(CLIENTAPP, "install_from_fab", lambda *_args, **_kwargs: None)
    replace(CLIENTAPP, "get_load_client_app_fn", lambda **_kwargs: _installed)
    apply_default(CLIENTAPP, "pull_and_inflate_object_from_tree", "initial_backoff", BACKOFF_S)
    failed = True
    try:
        stock.run_clientapp(
            runtime_api_address=task.address, token=task.token, insecure=True, parent_pid=task.superexec_pid
        )
    except SystemExit as end:  # Flower's own way to end; 0 also where it was told to stop
        failed = end.code not in (None, 0)
    except BaseException:
        LOG.exception("The process of a message failed.")
    finally:
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(UNANSWERED if failed and not push.done else ANSWERED)  # no thread may hold it up


def fresh_numbers() -> None:
    """Begin anew, where forks of one process would draw the same; Python sees to its own `random`."""
    np.random.seed()  # noqa: NPY002, TID251 - no seed is the point


class _Noted:
    """A function that remembers whether it has come to its end."""

    def __init__(self, function: Callable[..., Any]) -> None:
        self._function = function
        self.done = False

    def __call__(self, *args: object, **kwargs: object) -> Any:  # noqa: ANN401 - as the function
        result = self._function(*args, **kwargs)
        self.done = True
        return result


def _installed(_fab_id: str, _fab_version: str, _fab_hash: str) -> Any:  # noqa: ANN401 - Flower's ClientApp
    from client.relay.app import app  # noqa: PLC0415 - in the task's own process: the warm one holds no app

    return app
