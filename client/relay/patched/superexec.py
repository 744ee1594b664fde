"""SuperExec with a warm process: that of a message is forked in milliseconds, not started in a second.

The fork server is Python's own (`multiprocessing`): a process without threads that has imported what Flower's
``flwr-clientapp`` imports, and nothing of an app.
"""

from __future__ import annotations

import logging
import os
from multiprocessing import forkserver, get_context
from typing import TYPE_CHECKING, Any, Final

from flwr.supercore.constant import ExecutorType, TaskType
from flwr.supercore.superexec.executor.subprocess_executor import SubprocessExecutor
from flwr.supercore.superexec.executor.types import LaunchResult

from client.relay.flower_seams import SUPEREXEC, named, replace
from client.relay.patched.clock import BriskClock

if TYPE_CHECKING:
    from multiprocessing.context import ForkServerProcess

    from flwr.supercore.superexec.executor.types import ExecutionSpec

__all__ = ["WarmExecutor", "warm_up"]

LOG = logging.getLogger("flwr.mmare")  # under Flower's own, which the program shows

POLL_S: Final = 0.1  # FLWR_SUPEREXEC_TASK_POLL_INTERVAL of a site
QUIET_POLL_S: Final = 1.0
END_S: Final = 2.0
WARM: Final = "client.relay.patched.clientapp"


class WarmExecutor(SubprocessExecutor):
    """Answers messages in forks of a warm process; other kinds of task are not a hospital's.

    Args:
        clock: Told of work.
    """

    def __init__(self, clock: BriskClock) -> None:
        self._clock = clock
        self._context = get_context("forkserver")
        self._context.set_forkserver_preload([WARM])
        forkserver.ensure_running()  # the first message finds it warm
        self._running: list[ForkServerProcess] = []

    def get_eligible_capacity(
        self,
        supported_task_types: set[TaskType],
        *,
        insecure: bool = False,
        root_certificates_path: str | None = None,
    ) -> tuple[set[TaskType], set[str]]:
        """Messages to a ClientApp, whenever one comes."""
        del insecure, root_certificates_path
        return supported_task_types & {TaskType.CLIENT_APP}, set()

    def launch(self, spec: ExecutionSpec) -> LaunchResult:
        """Fork a process for a message."""
        if not spec.insecure:  # TLS on this machine itself: Flower's own program knows how
            return super().launch(spec)
        from client.relay.patched.clientapp import Task, run_task  # noqa: PLC0415 - the fork server has it sooner

        self._clock.worked()
        task = Task(spec.runtime_api_address, spec.token, os.getpid())
        process = self._context.Process(target=run_task, args=(task,))
        process.start()
        self._running.append(process)
        return LaunchResult.accepted()

    def reconcile(self) -> None:
        """Look at the processes that ended.

        Raises:
            SystemExit: If one has left its message without an answer. SuperNode would wait for a minute, or
                for ever; when SuperExec ends, whoever keeps both starts both anew, and the coordinator knows
                at once.
        """
        if self._running:
            self._clock.worked()
        for process in [process for process in self._running if process.exitcode is not None]:
            self._running.remove(process)
            if process.exitcode:
                LOG.error("The process of a message ended without an answer (%s).", process.exitcode)
                raise SystemExit(1)

    def close(self) -> None:
        """End what still runs."""
        for process in self._running:
            process.kill()
        for process in self._running:
            process.join(END_S)


def warm_up() -> None:
    """Make Flower's SuperExec, which is started after this, use a warm process."""
    clock = BriskClock(shortest={}, longest={POLL_S: QUIET_POLL_S})
    stock = named(SUPEREXEC, "get_executor")

    def get_executor(executor_type: ExecutorType, *args: Any, **kwargs: Any) -> Any:  # noqa: ANN401 - Flower's
        if executor_type is ExecutorType.SUBPROCESS:
            return WarmExecutor(clock)
        return stock(executor_type, *args, **kwargs)

    replace(SUPEREXEC, "get_executor", get_executor)
    replace(SUPEREXEC, "time", clock)
