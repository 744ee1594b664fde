"""The site worker: a resident process that serves the site service on a Unix socket, or by a spool.

Started by the hospital, it is the only process that reads patient data and keeps data, encoders, models and
GPU loaded between messages. Access is controlled by the file system: other users cannot enter the socket's
folder. Messages are answered one at a time, as in a simulation; status requests concurrently.
"""

from __future__ import annotations

import logging
import os
import stat
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack, contextmanager, nullcontext, suppress
from functools import partial
from importlib.metadata import version
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

import grpc

from client.data.dataset import load_data
from client.data.site_secret import site_secret, split_seed
from client.data.site_table import SiteTable
from client.data.table_version import TableVersion
from client.encoders.registry import pick_device
from client.privacy.approvals import ApprovalFolder
from client.privacy.gate import Gate
from client.privacy.masker import Masker
from client.privacy.records.audit_log import log_of
from client.privacy.records.ledger import ledger_of
from client.privacy.records.moments_record import FILE as MOMENTS
from client.privacy.records.moments_record import MomentsRecord
from client.relay.spool import SpoolDesk, open_spool
from client.relay.worker_link import CHANNEL_OPTIONS, LONGEST_PATH, address_of
from client.telemetry.seen import WorkerActivity, unobserved
from client.training.kept.expiry import KeptRuns
from client.training.kept.state import StateStore
from client.training.model_pool import ModelPool
from client.training.service import SiteService
from client.worker_pb.site_worker_pb2 import Answer, StatusAnswer, StudyTally
from client.worker_pb.site_worker_pb2_grpc import SiteWorkerServicer, add_SiteWorkerServicer_to_server
from mmare.errors import InputError, MmareError, RunError, SiteCode
from mmare.host.locks import locked
from mmare.host.signals import stop_on_signals
from mmare.package.start import installed_start
from mmare.wire.messages import Refusal, encode

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator
    from contextlib import AbstractContextManager

    from client.privacy.records.audit_log import AuditLog
    from client.telemetry.seen import Observer
    from client.worker_pb.site_worker_pb2 import Question, StatusQuestion
    from mmare.host.signals import Stop
    from mmare.wire.messages import Endpoint
    from sites.config import SiteConfig, WorkerConfig

__all__ = ["SiteStatus", "Worker", "make_service", "run_worker", "serve", "serve_spool"]

LOG = logging.getLogger(__name__)

THREADS: Final = 8  # one for the current message, the others for waiting messages and status requests


class SiteStatus:
    """The status of a site's studies; ``max_releases`` is the site's own limit."""

    def __init__(
        self, site: str, approvals: ApprovalFolder, audit: AuditLog, max_releases: int | None = None
    ) -> None:
        self._site = site
        self._approvals = approvals
        self._audit = audit
        self._max_releases = max_releases

    def fill(self, answer: StatusAnswer) -> None:
        """Add id, version, and the tally of every approved or requested study."""
        answer.site, answer.software, answer.pid = self._site, version("federated-mmare"), os.getpid()
        approved = {approval.study_hash: approval for approval in self._approvals.all()}
        tallies = self._audit.tallies({name: each.time for name, each in approved.items()})
        proposed = {each.study.hash: each.study.name for each in self._approvals.proposals()}
        for study_hash in [*approved, *sorted(tallies.keys() - approved.keys())]:
            entry = StudyTally(study_hash=study_hash, approved=study_hash in approved)
            entry.name = proposed.get(study_hash, "")
            if study_hash in tallies:
                tally = tallies[study_hash]
                entry.released, entry.refused = tally.released, tally.refused
                entry.released_bytes = tally.bytes
            if study_hash in approved:
                approval = approved[study_hash]
                entry.name = approval.study.name if approval.study else ""
                limits = [most for most in (approval.max_releases, self._max_releases) if most is not None]
                if limits:
                    entry.max_releases = min(limits)
            answer.studies.append(entry)


class Worker(SiteWorkerServicer):
    """Passes messages to the site service one at a time; any failure is answered with a code."""

    def __init__(
        self, endpoint: Endpoint, status: SiteStatus | None = None, activity: WorkerActivity | None = None
    ) -> None:
        self._endpoint = endpoint
        self._status = status
        self._turn = threading.Lock()
        self._stopping = False
        self._activity = activity or WorkerActivity()

    def Ask(self, request: Question, context: Any) -> Answer:  # noqa: ANN401, N802 - names and types are gRPC's
        """Answer one message."""
        header, payload = self.answer(
            request.header, request.payload, context.time_remaining(), context.is_active
        )
        return Answer(header=header, payload=payload)

    def Status(self, request: StatusQuestion, context: Any) -> StatusAnswer:  # noqa: ANN401, ARG002, N802 - gRPC's
        """The worker's status."""
        return self.status()

    def answer(
        self, header: str, payload: bytes, left_s: float | None, wanted: Callable[[], bool] = lambda: True
    ) -> tuple[str, bytes]:
        """The service's answer; a failure becomes a code, since gRPC would send the exception's text.

        Args:
            header: Of the message.
            payload: Its tensors.
            left_s: Until nobody waits for an answer; ``None``: not known.
            wanted: Whether somebody still waits.
        """
        self._activity.messages += 1
        self._activity.last_contact = time.time()
        if not self._turn.acquire(timeout=-1 if left_s is None else max(left_s, 0.0)):
            return encode(Refusal(SiteCode.LATE)), b""
        try:
            self._activity.begin()
            if not wanted():
                return encode(Refusal(SiteCode.LATE)), b""
            if self._stopping:
                return encode(Refusal(SiteCode.WORKER)), b""
            return self._endpoint(header, payload)
        except BaseException:  # also sys.exit in a library, after which nobody would answer
            LOG.exception("the service failed")
            return encode(Refusal(SiteCode.INTERNAL)), b""
        finally:
            self._activity.end()
            self._turn.release()

    def status(self) -> StatusAnswer:
        """What ``mmare-site status`` shows."""
        uptime_s = time.monotonic() - self._activity.began
        answer = StatusAnswer(uptime_s=uptime_s, messages=self._activity.messages)
        if self._activity.last_contact is not None:
            answer.last_contact = self._activity.last_contact
        busy_for_s = self._activity.busy_for_s
        if busy_for_s is not None:
            answer.busy_s = busy_for_s
        if self._status is not None:
            self._status.fill(answer)
        return answer

    def warm_up(self, prepare: Callable[[], None]) -> None:
        """Load what the next message will need, while messages wait."""
        with self._turn:
            try:
                prepare()
            except MmareError as error:
                LOG.warning("not ready for the study that was approved last: %s", error)
            except Exception:  # the next message will fail with a code
                LOG.exception("not ready for the study that was approved last")

    def finish(self, timeout_s: float) -> bool:
        """Accept no more messages; returns whether the current one finished in time."""
        self._stopping = True
        return self._turn.acquire(timeout=timeout_s)


def make_service(
    site: SiteConfig, approvals: ApprovalFolder, audit: AuditLog, observe: Observer = unobserved
) -> SiteService:
    """The site service with the hospital's limits; raises `InputError` if its device is missing."""
    gate = Gate(
        site.id,
        approvals,
        site.min_count,
        audit,
        site.max_norm,
        site.max_releases,
        Masker(site.id, site.folder, site.peers),
        ledger_of(site),
    )
    return SiteService(
        site.id,
        SiteTable(
            lambda study: load_data(site, study, partial(split_seed, site.folder)),
            TableVersion.of(site),
            keep=site.keep_table,
            record=MomentsRecord(site.folder / MOMENTS),
            secret=partial(site_secret, site.folder),
        ),
        StateStore(site.cache, KeptRuns(site.keep_days, site.keep_runs)),
        ModelPool(pick_device(site.device), site.threads, partial(installed_start, site.folder)),
        gate=gate,
        observe=observe,
    )


def run_worker(site: SiteConfig, ready: Callable[[], None] = lambda: None, stop: Stop | None = None) -> bool:
    """Serve a site until stopped; ``ready`` and ``stop`` as ``begin`` and ``stop`` of `serve`.

    Returns:
        Whether the current message was finished; if not, threads are still running.

    Raises:
        RunError: If a worker of this site, or of another one in its folder, is running already.
        InputError: If socket, group, device or the metrics port is unusable.
    """
    approvals, audit, activity = ApprovalFolder(site.folder), log_of(site), WorkerActivity()
    observe, page = _monitoring(site, approvals, audit, activity)
    service = make_service(site, approvals, audit, observe)
    worker = Worker(service, SiteStatus(site.id, approvals, audit, site.max_releases), activity)

    def prepare() -> None:
        latest = next((each.study for each in approvals.all() if each.study is not None), None)
        if latest is not None:
            service.prepare(latest)

    already = RunError(
        f"{site.folder}: a site worker runs with this folder already; expected a folder for every site.toml, "
        "since audit log, approvals and kept state lie beside it"
    )

    def begin() -> None:
        stack.enter_context(locked(site.folder / "worker.lock", already, mode=0o600))
        stack.enter_context(page)
        ready()
        threading.Thread(target=worker.warm_up, args=(prepare,), daemon=True).start()

    with ExitStack() as stack:
        return (serve if site.worker.spool is None else serve_spool)(worker, site.worker, begin, stop)


def _monitoring(
    site: SiteConfig, approvals: ApprovalFolder, audit: AuditLog, activity: WorkerActivity
) -> tuple[Observer, AbstractContextManager[object]]:
    """Observer of the service and server of the metrics page; inactive without a metrics port."""
    if site.metrics.port is None:
        return unobserved, nullcontext()
    from client.telemetry.endpoint import SiteMetrics, serving  # noqa: PLC0415 - Prometheus is optional

    metrics = SiteMetrics(site, approvals, audit, activity)
    return metrics.observe, serving(metrics, site.metrics.port, site.metrics.address)


def serve(
    worker: Worker, config: WorkerConfig, begin: Callable[[], None] = lambda: None, stop: Stop | None = None
) -> bool:
    """Serve on a socket until stopped.

    Args:
        worker: The servicer.
        config: Socket, group with access, and grace time.
        begin: Called once the socket answers.
        stop: By default SIGTERM or SIGINT, which needs the main thread.

    Returns:
        Whether the current message was finished.

    Raises:
        RunError: If another worker uses the socket.
        InputError: If the socket's folder or group is unusable.
    """
    socket, group = config.socket.absolute(), config.group_id
    with _own_socket(socket, group), stop_on_signals(stop) as stopping:
        server = grpc.server(ThreadPoolExecutor(max_workers=THREADS), options=CHANNEL_OPTIONS)
        add_SiteWorkerServicer_to_server(worker, server)  # type: ignore[no-untyped-call] # generated
        before = os.umask(0o177)  # so that the socket is never accessible to others
        try:
            server.add_insecure_port(address_of(socket))
        except RuntimeError:
            raise InputError(f"[worker] socket is {socket}, which cannot be created") from None
        finally:
            os.umask(before)
        if group is not None:
            os.chown(socket, -1, group)
            socket.chmod(0o660)
        server.start()
        try:
            begin()
        except BaseException:
            server.stop(None).wait()
            raise
        stopping.wait()
        LOG.info("stopping; the current message may take %s s", config.grace_s)
        end = time.monotonic() + config.grace_s
        stopped = server.stop(config.grace_s)
        finished = worker.finish(config.grace_s)
        stopped.wait(max(end - time.monotonic(), 0.0) + 1.0)  # until the answer is sent
        return finished


def serve_spool(
    worker: Worker, config: WorkerConfig, begin: Callable[[], None] = lambda: None, stop: Stop | None = None
) -> bool:
    """As `serve`, by the spool instead of a socket."""
    spool = open_spool(config)
    already = RunError(f"{spool.folder}: a site worker serves this spool already")
    with locked(spool.folder / "lock", already, mode=0o600), stop_on_signals(stop) as stopping:
        begin()
        return SpoolDesk(spool, worker.answer, worker.status).run(stopping, config.grace_s)


@contextmanager
def _own_socket(socket: Path, group: int | None) -> Iterator[None]:
    """Reserve a socket's path for this process, in a folder that a group may enter.

    The kernel releases the lock beside the socket however the process ends, so a socket without a lock is
    stale.
    """
    length = len(os.fsencode(socket))
    if length > LONGEST_PATH:
        raise InputError(
            f"[worker] socket is {socket}, of {length} bytes; a socket's path has at most {LONGEST_PATH}"
        )
    _own_folder(socket.parent, group)
    already = RunError(f"{socket}: a site worker is running there already")
    with locked(Path(f"{socket}.lock"), already, mode=0o600):
        _remove_stale(socket)
        yield
        socket.unlink(missing_ok=True)


def _own_folder(folder: Path, group: int | None) -> None:
    """Create the socket's folder, or check its owner and mode; raises `InputError` if others can enter it."""
    folder.mkdir(mode=0o700, parents=True, exist_ok=True)
    status = folder.stat()
    mode = stat.S_IMODE(status.st_mode)
    open_to = 0o077 if group is None else 0o027  # a group may enter, but not replace the socket
    if status.st_uid != os.geteuid() or mode & open_to:
        raise InputError(
            f"{folder}: the socket's folder has mode {mode:04o} and owner {status.st_uid}; expected one of "
            f"your own that others cannot enter, such as {'0700' if group is None else '0710'}"
        )
    if group is not None:
        os.chown(folder, -1, group)
        folder.chmod(0o710)


def _remove_stale(socket: Path) -> None:
    """Remove the socket of a killed worker; raises `InputError` if the path is no socket."""
    with suppress(FileNotFoundError):
        if not stat.S_ISSOCK(socket.lstat().st_mode):
            raise InputError(f"[worker] socket is {socket}, which exists but is not a socket")
        socket.unlink()
