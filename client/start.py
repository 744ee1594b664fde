"""``mmare-site start``: runs and supervises a hospital's processes.

::

    mmare-site start ─┬─ worker      reads patient data, opens no connections
      (this process)  ├─ supernode   connects outwards to the coordinator
                      └─ superexec ─ one short-lived process per message, which asks the worker

Each part can run alone as a separate user: ``--part worker`` and ``--part relay``; by a spool also on another
machine (`client.relay.spool`). The relay never reads
patient data, not even the manifest.
"""

from __future__ import annotations

import logging
import os
import signal
import sys
import time
from contextlib import suppress
from dataclasses import dataclass, replace
from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING, Final

from client.relay.exit_reasons import exit_reason, log_tail
from client.relay.line import LineMeter
from client.relay.patched.clock import PICKUP_S
from client.relay.programs import SUPEREXEC, SUPERNODE, RelayFolder, check_flower, relay_programs
from client.relay.status_file import (
    ProgramState,
    RelayState,
    last_contact,
    listens,
    worker_status,
    write_state,
)
from mmare.errors import RunError
from mmare.host.locks import is_held, locked
from mmare.host.signals import stop_on_signals
from mmare.host.supervised import ProcessSupervisor, Program
from mmare.wire.joining import SiteKit

if TYPE_CHECKING:
    from collections.abc import Sequence

    from mmare.host.signals import Stop
    from mmare.host.supervised import Change
    from sites.config import SiteConfig

__all__ = ["WORKER", "has_joined", "keep_site", "worker_program"]

LOG = logging.getLogger(__name__)

WORKER: Final = "worker"
POLL_S: Final = 0.1
KILL_AFTER_S: Final = 10.0  # beyond the worker's own grace time
SILENT_S: Final = (
    600.0  # without contact, after which SuperNode is restarted; it retries by itself until then
)
REWRITE_S: Final = 1.0  # until the state that could not be written is tried again


def has_joined(site: SiteConfig) -> bool:
    """Whether a coordinator's bundle is installed."""
    return SiteKit(site.coordinator.kit).joined.exists()


def worker_program(site: SiteConfig, file: Path) -> Program:
    """The site worker as a supervised program; ``file`` is the site's ``site.toml``."""
    command = (sys.executable, "-P", "-m", "client.cli", "start", str(file.absolute()), "--part", "worker")
    log = site.folder.absolute() / "worker.log"
    return Program(WORKER, command, log, stop_s=site.worker.grace_s + KILL_AFTER_S)


def keep_site(site: SiteConfig, file: Path, *, worker: bool = True, stop: Stop | None = None) -> bool:
    """Run a site's programs until stopped.

    Args:
        site: A site with an installed bundle.
        file: Its ``site.toml``.
        worker: Whether to run the worker too; otherwise it is started separately.
        stop: By default SIGTERM or SIGINT, which needs the main thread.

    Returns:
        Whether the current message was finished.

    Raises:
        RunError: If the site's programs are running already.
        InputError: If the kit is unusable, or the installed Flower not the one that the relay needs.
    """
    folder = RelayFolder.of(site)
    SiteKit(site.coordinator.kit).coordinator()  # checked before the folder is created
    if site.worker.spool is not None:
        from client.relay.spool import open_spool  # noqa: PLC0415 - protocol buffers, only where needed

        open_spool(site.worker)
    folder.make()
    already = RunError(f"{folder.lock}: mmare-site start of this site is running already")
    with (
        locked(folder.lock, already, mode=0o600),
        stop_on_signals(stop) as stopping,
        ProcessSupervisor() as processes,
    ):
        relay = relay_programs(site)
        check_flower()
        if worker:
            if is_held(Path(f"{site.worker.socket}.lock")):
                raise RunError(f"{site.worker.socket}: a site worker is running there already")
            processes.keep(worker_program(site, file))
        keeper = _Keeper(site, file, processes, [WORKER] * worker, relay)
        keeper.write_state()
        LOG.info("the relay to %s starts once the site worker answers", keeper.address)
        while not stopping.wait(POLL_S):
            keeper.poll()
        finished = keeper.finish(site.worker.grace_s)
        folder.state.unlink(missing_ok=True)
        return finished


@dataclass
class _Observed:
    state: ProgramState
    log_start: int = 0  # size of its log at its last start


class _Keeper:
    """Watches a site's processes, reports their state, and keeps SuperNode and SuperExec in sync."""

    def __init__(
        self,
        site: SiteConfig,
        file: Path,
        processes: ProcessSupervisor,
        kept: Sequence[str],
        relay: Sequence[Program],
    ) -> None:
        self._site = site
        self._processes = processes
        self._folder = RelayFolder.of(site)
        self._relay = {program.name: program for program in relay}
        self._coordinator = SiteKit(site.coordinator.kit).coordinator()
        self.address = self._coordinator.address
        self._began = time.time()
        names = [*kept, *self._relay]
        self._observed = {name: _Observed(ProgramState(name, 0, self._began)) for name in names}
        self._waiting = True  # for the worker
        self._line = LineMeter(self._folder.folder, file)
        self._written = True  # whether the file has the latest state
        self._tried = 0.0  # time of the last attempt to write it

    def poll(self) -> None:
        """Handle programs that ended or started."""
        if self._waiting and self._worker_answers():
            self._waiting = False  # earlier messages would be refused for lack of a worker
            for program in self._relay.values():
                self._processes.keep(program)
        elif not self._waiting and last_contact(self._folder) is not None:
            self._line.poll()
        changes = self._processes.poll()
        for change in changes:
            self._note(change)
        if any(change.name == SUPEREXEC and change.code is not None for change in changes):
            self._restart_node()  # it would wait for the message that SuperExec has lost
        elif self._is_silent():
            LOG.warning("%s: no contact with the coordinator for %.0f s; restarting", SUPERNODE, SILENT_S)
            self._restart_node()
        if changes or (not self._written and time.monotonic() - self._tried > REWRITE_S):
            self.write_state()

    def _worker_answers(self) -> bool:
        worker = self._site.worker
        return listens(worker.socket) if worker.spool is None else worker_status(worker) is not None

    def _is_silent(self) -> bool:
        """Whether SuperNode has run for long without an answer; its heartbeat asks twice a minute."""
        state = self._observed[SUPERNODE].state
        if state.pid is None or time.time() - state.since < SILENT_S:
            return False
        contact = last_contact(self._folder)
        return contact is None or time.time() - contact.timestamp() > SILENT_S

    def _restart_node(self) -> None:
        self._processes.stop([SUPERNODE])
        self._processes.keep(self._relay[SUPERNODE])

    def _note(self, change: Change) -> None:
        observed, name = self._observed[change.name], change.name
        if change.code is None:
            LOG.info("%s started (process %s)", name, change.pid)
            state = observed.state
            observed.state = replace(state, starts=state.starts + 1, since=time.time(), pid=change.pid)
            log = self._log(name)
            observed.log_start = log.stat().st_size if log.exists() else 0
            return
        contact = last_contact(self._folder)
        contact_s = None if contact is None else (datetime.now(UTC) - contact).total_seconds()
        reason = exit_reason(name, change.code, log_tail(self._log(name), observed.log_start), contact_s)
        LOG.warning("%s: %s; restarting in %.3g s; %s", name, reason, change.again_s, self._log(name))
        observed.state = replace(observed.state, pid=None, ended=reason)

    def _log(self, name: str) -> Path:
        return self._relay[name].log if name in self._relay else worker_program(self._site, Path()).log

    def write_state(self) -> None:
        """Write the state for ``mmare-site status``."""
        state = RelayState(
            os.getpid(),
            self._began,
            self._coordinator.federation,
            self.address,
            tuple(observed.state for observed in self._observed.values()),
        )
        said, self._tried = self._written, time.monotonic()
        try:
            write_state(self._folder.state, state)
            self._written = True
        except OSError as error:  # such as a full disk, which must not stop the programs
            self._written = False
            if said:
                LOG.warning("%s: cannot be written (%s); trying again", self._folder.state, error.strerror)

    def finish(self, grace_s: float) -> bool:
        """Stop everything after the current message; returns whether that was finished."""
        self._line.close()
        finished = self._drain(grace_s)
        worker = self._processes.running().get(WORKER)
        if not finished and worker is not None:  # its answer is no longer wanted
            with suppress(ProcessLookupError):
                os.kill(worker, signal.SIGKILL)
        self._processes.stop()
        return finished

    def _drain(self, grace_s: float) -> bool:
        pid = self._processes.running().get(SUPERNODE)
        if pid is None:
            return True
        LOG.info("stopping; the current message may take %s s", grace_s)
        os.kill(pid, signal.SIGUSR1)
        end = time.monotonic() + grace_s + PICKUP_S
        while SUPERNODE in self._processes.running():
            if time.monotonic() > end:
                return False
            time.sleep(POLL_S)
        return True
