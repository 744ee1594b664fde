"""SuperExec that forks the process for a message in milliseconds instead of starting it in a second.

Uses the fork server of `multiprocessing`: a process without threads that has imported what Flower's
``flwr-clientapp`` imports, but no app.
"""

from __future__ import annotations

import logging
import os
from multiprocessing import forkserver, get_context
from typing import TYPE_CHECKING, Final

from flwr.supercore.constant import ExecutorType, TaskType
from flwr.supercore.superexec.executor.subprocess_executor import SubprocessExecutor
from flwr.supercore.superexec.executor.types import LaunchResult

from client.relay.patch_points import SUPEREXEC, replace
from client.relay.patched.clock import AdaptiveClock
from mmare.errors import InputError

if TYPE_CHECKING:
    from multiprocessing.context import ForkServerProcess

    from flwr.supercore.superexec.executor.types import ExecutionSpec

__all__ = ["WarmExecutor", "warm_up"]

LOG = logging.getLogger("flwr.mmare")  # child of Flower's logger, so that it is printed

POLL_S: Final = 0.1  # client.relay.programs.TASK_POLL_S
QUIET_POLL_S: Final = 1.0
END_S: Final = 2.0
WARM: Final = "client.relay.patched.clientapp"


class WarmExecutor(SubprocessExecutor):
    """Answers messages in forks of a preloaded process; a hospital runs no other kind of task."""

    def __init__(self, clock: AdaptiveClock) -> None:
        self._clock = clock
        self._context = get_context("forkserver")
        self._context.set_forkserver_preload([WARM])
        forkserver.ensure_running()  # before the first message
        self._running: list[ForkServerProcess] = []

    def get_eligible_capacity(
        self,
        supported_task_types: set[TaskType],
        *,
        insecure: bool = False,
        root_certificates_path: str | None = None,
    ) -> tuple[set[TaskType], set[str]]:
        """Only messages to a ClientApp, any number."""
        del insecure, root_certificates_path
        return supported_task_types & {TaskType.CLIENT_APP}, set()

    def launch(self, spec: ExecutionSpec) -> LaunchResult:
        """Fork a process for a message."""
        if not spec.insecure:  # Flower's own launch would run the bundle
            return LaunchResult.failed("TLS on loopback is not supported")
        from client.relay.patched.clientapp import Task, run_task  # noqa: PLC0415 - the fork server must start first

        self._clock.worked()
        task = Task(spec.runtime_api_address, spec.token, os.getpid())
        process = self._context.Process(target=run_task, args=(task,))
        process.start()
        self._running.append(process)
        return LaunchResult.accepted()

    def reconcile(self) -> None:
        """Check for ended processes.

        Raises:
            SystemExit: If one left its message unanswered. SuperNode would wait for a minute, or forever;
                ending SuperExec restarts both, and the coordinator learns of it at once.
        """
        if self._running:
            self._clock.worked()
        for process in [process for process in self._running if process.exitcode is not None]:
            self._running.remove(process)
            if process.exitcode:
                LOG.error("The process of a message ended without an answer (%s).", process.exitcode)
                raise SystemExit(1)

    def close(self) -> None:
        """Kill the remaining processes."""
        for process in self._running:
            process.kill()
        for process in self._running:
            process.join(END_S)


def warm_up() -> None:
    """Patch Flower's SuperExec, to be started after this, to use `WarmExecutor`."""
    clock = AdaptiveClock(shortest={}, longest={POLL_S: QUIET_POLL_S})

    def get_executor(executor_type: ExecutorType, *_: object, **__: object) -> WarmExecutor:
        if executor_type is not ExecutorType.SUBPROCESS:
            raise InputError(f"{executor_type} is not {ExecutorType.SUBPROCESS}, which runs no bundle")
        return WarmExecutor(clock)

    replace(SUPEREXEC, "get_executor", get_executor)
    replace(SUPEREXEC, "time", clock)
