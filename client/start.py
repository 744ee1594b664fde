"""``mmare-site start``: a hospital's processes, started, watched and started again.

::

    mmare-site start ─┬─ worker      reads patient data, asks nobody
      (this process)  ├─ supernode   connects outwards to the coordinator
                      └─ superexec ─ one short-lived process per message, which asks the worker

Each part can run alone, as another user: ``--part worker`` and ``--part relay``. The relay never reads
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
from client.relay.patched.clock import PICKUP_S
from client.relay.programs import SUPEREXEC, SUPERNODE, RelayFolder, relay_programs
from client.relay.status_file import ProgramState, RelayState, last_contact, listens, write_state
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
LOOK_S: Final = 0.1
KILLED_S: Final = 10.0  # that the worker has on top of its own time to stop


def has_joined(site: SiteConfig) -> bool:
    """Whether a coordinator's bundle is installed."""
    return SiteKit(site.coordinator.kit).joined.exists()


def worker_program(site: SiteConfig, file: Path) -> Program:
    """The site worker as a program that is kept running.

    Args:
        site: Whose it is.
        file: Its ``site.toml``.
    """
    return Program(
        WORKER,
        (
            sys.executable,
            "-P",
            "-m",
            "client.cli",
            "start",
            str(file.absolute()),
            "--part",
            WORKER,
        ),
        site.folder.absolute() / "worker.log",
        stop_s=site.worker.grace_s + KILLED_S,
    )


def keep_site(site: SiteConfig, file: Path, *, worker: bool = True, stop: Stop | None = None) -> bool:
    """Keep a site's programs running until told to stop.

    Args:
        site: With a bundle installed.
        file: Its ``site.toml``.
        worker: Whether its worker is one of them; somebody else starts it otherwise.
        stop: Tells to stop; by default SIGTERM and SIGINT do, and the caller must be the main thread.

    Returns:
        Whether the message in hand was finished.

    Raises:
        RunError: If this site's programs are kept already.
        InputError: If the kit cannot be used.
    """
    folder = RelayFolder.of(site)
    SiteKit(site.coordinator.kit).coordinator()  # before a folder is made for it
    folder.make()
    already = RunError(f"{folder.lock}: mmare-site start of this site is running already")
    with (
        locked(folder.lock, already, mode=0o600),
        stop_on_signals(stop) as told,
        ProcessSupervisor() as processes,
    ):
        relay = relay_programs(site)
        if worker:
            if is_held(Path(f"{site.worker.socket}.lock")):
                raise RunError(f"{site.worker.socket}: a site worker is running there already")
            processes.keep(worker_program(site, file))
        keeper = _Keeper(site, processes, [WORKER] * worker, relay)
        keeper.say()
        LOG.info("the relay to %s starts once the site worker answers", keeper.address)
        while not told.wait(LOOK_S):
            keeper.look()
        finished = keeper.finish(site.worker.grace_s)
        folder.state.unlink(missing_ok=True)
        return finished


@dataclass
class _Seen:
    state: ProgramState
    said: int = 0  # bytes of its log that were there when it was started


class _Keeper:
    """Watches a site's processes, says what happens in it, and keeps SuperNode and SuperExec in step."""

    def __init__(
        self, site: SiteConfig, processes: ProcessSupervisor, kept: Sequence[str], relay: Sequence[Program]
    ) -> None:
        self._site = site
        self._processes = processes
        self._folder = RelayFolder.of(site)
        self._relay = {program.name: program for program in relay}
        self._coordinator = SiteKit(site.coordinator.kit).coordinator()
        self.address = self._coordinator.address
        self._began = time.time()
        names = [*kept, *self._relay]
        self._seen = {name: _Seen(ProgramState(name, 0, self._began)) for name in names}
        self._waiting = True

    def look(self) -> None:
        """Notice what ended and what started."""
        if self._waiting and listens(self._site.worker.socket):
            self._waiting = False  # who asks before would be told that this site has no worker
            for program in self._relay.values():
                self._processes.keep(program)
        changes = self._processes.poll()
        for change in changes:
            self._note(change)
        if any(change.name == SUPEREXEC and change.code is not None for change in changes):
            self._begin_anew(SUPERNODE)
        if changes:
            self.say()

    def _begin_anew(self, name: str) -> None:
        """Start a program again because what it waits for is gone: a message that SuperExec had in hand."""
        self._processes.stop([name])
        self._processes.keep(self._relay[name])

    def _note(self, change: Change) -> None:
        seen, name = self._seen[change.name], change.name
        if change.code is None:
            LOG.info("%s started (process %s)", name, change.pid)
            seen.state = replace(seen.state, starts=seen.state.starts + 1, since=time.time(), pid=change.pid)
            log = self._log(name)
            seen.said = log.stat().st_size if log.exists() else 0
            return
        contact = last_contact(self._folder)
        contact_s = None if contact is None else (datetime.now(UTC) - contact).total_seconds()
        reason = exit_reason(name, change.code, log_tail(self._log(name), seen.said), contact_s)
        LOG.warning("%s: %s; trying again in %.3g s; %s", name, reason, change.again_s, self._log(name))
        seen.state = replace(seen.state, pid=None, ended=reason)

    def _log(self, name: str) -> Path:
        return self._relay[name].log if name in self._relay else worker_program(self._site, Path()).log

    def say(self) -> None:
        """Write what ``mmare-site status`` shows."""
        state = RelayState(
            os.getpid(),
            self._began,
            self._coordinator.federation,
            self.address,
            tuple(seen.state for seen in self._seen.values()),
        )
        try:
            write_state(self._folder.state, state)
        except OSError as error:  # a full disk: the programs matter more
            LOG.warning("%s: cannot be written (%s)", self._folder.state, type(error).__name__)

    def finish(self, grace_s: float) -> bool:
        """Take no message more, wait for the one in hand, then stop everything.

        Returns:
            Whether it was finished.
        """
        finished = self._drain(grace_s)
        worker = self._processes.running().get(WORKER)
        if not finished and worker is not None:  # nobody waits for its answer any more
            with suppress(ProcessLookupError):
                os.kill(worker, signal.SIGKILL)
        self._processes.stop()
        return finished

    def _drain(self, grace_s: float) -> bool:
        pid = self._processes.running().get(SUPERNODE)
        if pid is None:
            return True
        LOG.info("told to stop; the message in hand has %s s", grace_s)
        os.kill(pid, signal.SIGUSR1)
        end = time.monotonic() + grace_s + PICKUP_S
        while SUPERNODE in self._processes.running():
            if time.monotonic() > end:
                return False
            time.sleep(LOOK_S)
        return True
