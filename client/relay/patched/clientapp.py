"""Answers one message in a process forked from a preloaded one, by Flower's own steps.

Code in the received bundle never runs: it is not unpacked, the app is the installed `client.relay.app`, and
whatever tries to run a file of Flower's folder fails.
"""

from __future__ import annotations

import ctypes
import logging
import os
import signal
import sys
from dataclasses import dataclass
from functools import partial
from typing import TYPE_CHECKING, Any, Final

import httpcore  # noqa: F401 - preloaded, since httpx imports it on first use
import numpy as np
from flwr.supernode.runtime import run_clientapp as stock

import client.relay.worker_link  # noqa: F401 - as above
from client.relay.patch_points import CLIENTAPP, apply_default, replace

if TYPE_CHECKING:
    from collections.abc import Callable

__all__ = ["ANSWERED", "UNANSWERED", "Task", "reseed", "run_task"]

LOG = logging.getLogger("flwr.mmare")  # child of Flower's logger, so that SuperExec prints it

ANSWERED: Final = 0  # or the answer is no longer wanted
UNANSWERED: Final = 70  # SuperNode would wait forever
BACKOFF_S: Final = 0.05  # first retry of a missing object; Flower's is 1 s
PR_SET_PDEATHSIG: Final = 1  # of prctl(2)


@dataclass(frozen=True)
class Task:
    """A message to answer, as passed on by SuperExec."""

    address: str  # of SuperNode, on this machine
    token: str
    superexec_pid: int  # the task ends with this process


def run_task(task: Task) -> None:
    """Answer one message and exit; killed if the fork server or SuperExec ends."""
    ctypes.CDLL(None).prctl(PR_SET_PDEATHSIG, signal.SIGKILL)
    reseed()
    sys.addaudithook(partial(_refuse_code, os.environ["FLWR_HOME"] + os.sep))
    push = _CompletionFlag(stock.push_message)
    replace(CLIENTAPP, "push_message", push)
    replace(CLIENTAPP, "install_from_fab", lambda *_args, **_kwargs: None)
    replace(CLIENTAPP, "get_load_client_app_fn", lambda **_kwargs: _installed)
    apply_default(CLIENTAPP, "pull_and_inflate_object_from_tree", "initial_backoff", BACKOFF_S)
    failed = True
    try:
        stock.run_clientapp(
            runtime_api_address=task.address,
            token=task.token,
            insecure=True,
            parent_pid=task.superexec_pid,
            runtime_dependency_install=False,
        )
    except SystemExit as end:  # how Flower ends it; 0 also on a requested stop
        failed = end.code not in (None, 0)
    except BaseException:
        LOG.exception("The process that answers a message failed.")
    finally:
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(UNANSWERED if failed and not push.done else ANSWERED)  # without waiting for threads


def reseed() -> None:
    """Reseed NumPy, which forks share; Python reseeds its own `random`."""
    np.random.seed()  # noqa: NPY002, TID251 - no seed is the point


def _refuse_code(folder: str, event: str, arguments: tuple[Any, ...]) -> None:
    """An audit hook (PEP 578): no code of a file in ``folder`` runs, nor is a library there loaded."""
    file = {"exec": lambda: arguments[0].co_filename, "import": lambda: arguments[1]}.get(event, str)()
    if str(file).startswith(folder):
        raise RuntimeError("code that arrived with a message")


class _CompletionFlag:
    """Wraps a function and records whether a call completed."""

    def __init__(self, function: Callable[..., Any]) -> None:
        self._function = function
        self.done = False

    def __call__(self, *args: object, **kwargs: object) -> Any:  # noqa: ANN401 - the function's
        result = self._function(*args, **kwargs)
        self.done = True
        return result


def _installed(_fab_id: str, _fab_version: str, _fab_hash: str) -> Any:  # noqa: ANN401 - Flower's ClientApp
    from client.relay.app import app  # noqa: PLC0415 - only in the task's process, not preloaded

    return app
