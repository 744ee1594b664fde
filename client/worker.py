"""The site worker: a resident process around the site service, behind a Unix socket.

The hospital installs and starts it. It is the one process that reads patient data; it keeps data, encoders,
models and GPU warm from message to message. Who may ask is decided by the file system: the socket lies in a
folder that other users cannot enter. One message is answered at a time, as in a simulation; a status is
answered beside it.
"""

from __future__ import annotations

import grp
import logging
import os
import stat
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack, contextmanager, nullcontext, suppress
from importlib.metadata import version
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

import grpc

from client.data.dataset import load_data
from client.encoders.registry import pick_device
from client.privacy.approvals import ApprovalFolder
from client.privacy.audit_log import AuditLog
from client.privacy.gate import Gate
from client.relay.worker_link import CHANNEL_OPTIONS, address_of
from client.telemetry.seen import WorkerActivity, unobserved
from client.training.model_pool import ModelPool
from client.training.service import SiteService
from client.training.state import StateStore
from client.worker_pb.site_worker_pb2 import Answer, StatusAnswer, StudyTally
from client.worker_pb.site_worker_pb2_grpc import SiteWorkerServicer, add_SiteWorkerServicer_to_server
from mmare.errors import InputError, MmareError, RunError, SiteCode
from mmare.host.locks import locked
from mmare.host.signals import stop_on_signals
from mmare.wire.messages import Refusal, encode

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator
    from contextlib import AbstractContextManager

    from client.telemetry.seen import Observer
    from client.worker_pb.site_worker_pb2 import Question, StatusQuestion
    from mmare.host.signals import Stop
    from mmare.wire.messages import Endpoint
    from sites.config import SiteConfig, WorkerConfig

__all__ = ["SiteStatus", "Worker", "audit_log", "make_service", "run_worker", "serve"]

LOG = logging.getLogger(__name__)

THREADS: Final = 8  # one answers, the others hold messages that wait and tell the status
LONGEST_PATH: Final = 107  # bytes of a Unix socket's path that the kernel takes


class SiteStatus:
    """What the worker tells of itself besides its own counts.

    Args:
        site: Id.
        approvals: Of the site.
        audit: Of the site.
        max_releases: The site's own limit, if any.
    """

    def __init__(
        self, site: str, approvals: ApprovalFolder, audit: AuditLog, max_releases: int | None = None
    ) -> None:
        self._site = site
        self._approvals = approvals
        self._audit = audit
        self._max_releases = max_releases

    def fill(self, answer: StatusAnswer) -> None:
        """Add id, version, and the tally of every study that is approved or has been asked for."""
        answer.site, answer.software, answer.pid = self._site, version("federated-mmare"), os.getpid()
        approved = {approval.study_hash: approval for approval in self._approvals.all()}
        tallies = self._audit.tallies({name: each.time for name, each in approved.items()})
        for study_hash in [*approved, *sorted(tallies.keys() - approved.keys())]:
            told = StudyTally(study_hash=study_hash, approved=study_hash in approved)
            if study_hash in tallies:
                tally = tallies[study_hash]
                told.released, told.refused = tally.released, tally.refused
                told.released_bytes = tally.bytes
            if study_hash in approved:
                approval = approved[study_hash]
                told.name = approval.study.name if approval.study else ""
                limits = [most for most in (approval.max_releases, self._max_releases) if most is not None]
                if limits:
                    told.max_releases = min(limits)
            answer.studies.append(told)


class Worker(SiteWorkerServicer):
    """Answers questions one at a time, whatever happens inside.

    Args:
        endpoint: The site service.
        status: Tells the rest of the status.
        seen: Gets what comes and how long it takes.
    """

    def __init__(
        self, endpoint: Endpoint, status: SiteStatus | None = None, seen: WorkerActivity | None = None
    ) -> None:
        self._endpoint = endpoint
        self._status = status
        self._turn = threading.Lock()
        self._stopping = False
        self._seen = seen or WorkerActivity()

    def Ask(self, request: Question, context: Any) -> Answer:  # noqa: ANN401, N802 - names and types are gRPC's
        """One message of the server; a failure is a code, gRPC would send its words."""
        self._seen.messages += 1
        self._seen.last_contact = time.time()
        left_s = context.time_remaining()
        if not self._turn.acquire(timeout=-1 if left_s is None else max(left_s, 0.0)):
            return Answer(header=encode(Refusal(SiteCode.LATE)))
        try:
            self._seen.begin()
            if not context.is_active():  # nobody waits any more: no training for nothing
                return Answer(header=encode(Refusal(SiteCode.LATE)))
            if self._stopping:
                return Answer(header=encode(Refusal(SiteCode.WORKER)))
            header, payload = self._endpoint(request.header, request.payload)
            return Answer(header=header, payload=payload)
        except BaseException:  # sys.exit of a library too: gRPC would never answer
            LOG.exception("the service failed")
            return Answer(header=encode(Refusal(SiteCode.INTERNAL)))
        finally:
            self._seen.end()
            self._turn.release()

    def Status(self, request: StatusQuestion, context: Any) -> StatusAnswer:  # noqa: ANN401, ARG002, N802 - gRPC's
        """What ``mmare-site status`` shows."""
        uptime_s = time.monotonic() - self._seen.began
        answer = StatusAnswer(uptime_s=uptime_s, messages=self._seen.messages)
        if self._seen.last_contact is not None:
            answer.last_contact = self._seen.last_contact
        busy_for_s = self._seen.busy_for_s
        if busy_for_s is not None:
            answer.busy_s = busy_for_s
        if self._status is not None:
            self._status.fill(answer)
        return answer

    def warm_up(self, prepare: Callable[[], None]) -> None:
        """Read what the next message will need; messages that come in the meantime wait for it."""
        with self._turn:
            try:
                prepare()
            except MmareError as error:
                LOG.warning("not ready for the study that was approved last: %s", error)
            except Exception:  # the message that needs it is answered by a code
                LOG.exception("not ready for the study that was approved last")

    def finish(self, timeout_s: float) -> bool:
        """Begin nothing more; whether what is in hand is done in time."""
        self._stopping = True
        return self._turn.acquire(timeout=timeout_s)


def audit_log(site: SiteConfig) -> AuditLog:
    """The log of a hospital's worker, beside ``site.toml``: the cache may be emptied, this may not."""
    return AuditLog(site.folder / "audit.jsonl", durable=True)


def make_service(
    site: SiteConfig, approvals: ApprovalFolder, audit: AuditLog, observe: Observer = unobserved
) -> SiteService:
    """The service that a worker holds, with the hospital's approvals, limits and log.

    Args:
        site: Whose data it reads.
        approvals: Of the site.
        audit: Of the site.
        observe: As of `SiteService`.

    Raises:
        InputError: If the site names a device that this machine has not.
    """
    gate = Gate(site.id, approvals, site.min_count, audit, site.max_norm, site.max_releases)
    return SiteService(
        site.id,
        lambda study: load_data(site, study),
        StateStore(site.cache),
        ModelPool(pick_device(site.device), site.threads),
        gate=gate,
        observe=observe,
    )


def run_worker(site: SiteConfig, ready: Callable[[], None] = lambda: None, stop: Stop | None = None) -> bool:
    """Serve a site until the process is told to stop.

    Args:
        site: Whose worker it is.
        ready: Called once the socket answers.
        stop: As of `serve`.

    Returns:
        Whether the message in hand was finished; where it was not, threads are still at work.

    Raises:
        RunError: If a worker of this site runs already.
        InputError: If socket, group, device or the port of the metrics cannot be used.
    """
    approvals, audit, seen = ApprovalFolder(site.folder), audit_log(site), WorkerActivity()
    observe, page = _watched(site, approvals, audit, seen)
    service = make_service(site, approvals, audit, observe)
    worker = Worker(service, SiteStatus(site.id, approvals, audit, site.max_releases), seen)

    def prepare() -> None:
        latest = next((each.study for each in approvals.all() if each.study is not None), None)
        if latest is not None:
            service.prepare(latest)

    def begin() -> None:
        open_until_the_end.enter_context(page)
        ready()
        threading.Thread(target=worker.warm_up, args=(prepare,), daemon=True).start()

    with ExitStack() as open_until_the_end:
        return serve(worker, site.worker, begin, stop)


def _watched(
    site: SiteConfig, approvals: ApprovalFolder, audit: AuditLog, seen: WorkerActivity
) -> tuple[Observer, AbstractContextManager[object]]:
    """What is told of the service's answers, and the page of metrics; neither where nobody watches."""
    if site.metrics.port is None:
        return unobserved, nullcontext()
    from client.telemetry.endpoint import SiteMetrics, serving  # noqa: PLC0415 - who is not watched needs no Prometheus

    metrics = SiteMetrics(site, approvals, audit.path, seen)
    return metrics.observe, serving(metrics, site.metrics.port, site.metrics.address)


def serve(
    worker: Worker,
    config: WorkerConfig,
    begin: Callable[[], None] = lambda: None,
    stop: Stop | None = None,
) -> bool:
    """Answer on a socket until told to stop.

    Args:
        worker: That answers.
        config: Where, who may ask, and how long to go on when told to stop.
        begin: Called once the socket answers.
        stop: Tells to stop; by default SIGTERM and SIGINT do, and the caller must be the main thread.

    Returns:
        Whether the message in hand was finished.

    Raises:
        RunError: If another worker answers there.
        InputError: If the socket's folder or group cannot be used.
    """
    socket = config.socket.absolute()
    with _own_socket(socket, config.group) as group, stop_on_signals(stop) as told:
        server = grpc.server(ThreadPoolExecutor(max_workers=THREADS), options=CHANNEL_OPTIONS)
        add_SiteWorkerServicer_to_server(worker, server)  # type: ignore[no-untyped-call] # generated
        before = os.umask(0o177)  # the socket is never open to others, not for a moment
        try:
            server.add_insecure_port(address_of(socket))
        except RuntimeError:
            raise InputError(f"[worker] socket is {socket}, which cannot be made") from None
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
        told.wait()
        LOG.info("told to stop; the message in hand has %s s", config.grace_s)
        end = time.monotonic() + config.grace_s
        stopped = server.stop(config.grace_s)
        finished = worker.finish(config.grace_s)
        stopped.wait(max(end - time.monotonic(), 0.0) + 1.0)  # the answer is on its way, or the time is up
        return finished


@contextmanager
def _own_socket(socket: Path, group_name: str | None) -> Iterator[int | None]:
    """Make sure that a socket's path is this process's alone; gives the id of the group that may ask.

    A lock beside the socket says whether a worker lives there: the kernel lets go of it when the process
    ends, however it ends. So a socket without it is a dead worker's.
    """
    length = len(os.fsencode(socket))
    if length > LONGEST_PATH:
        raise InputError(
            f"[worker] socket is {socket}, of {length} bytes; a socket's path has at most {LONGEST_PATH}"
        )
    group = None if group_name is None else _group_id(group_name)
    _own_folder(socket.parent, group)
    already = RunError(f"{socket}: a site worker is running there already")
    with locked(Path(f"{socket}.lock"), already, mode=0o600):
        _remove_stale(socket)
        yield group
        socket.unlink(missing_ok=True)


def _group_id(name: str) -> int:
    try:
        return grp.getgrnam(name).gr_gid
    except KeyError:
        raise InputError(f"[worker] group is {name!r}, which this machine does not have") from None


def _own_folder(folder: Path, group: int | None) -> None:
    """Make the socket's folder, or check that it is ours and closed to others.

    Raises:
        InputError: If other users can enter it.
    """
    folder.mkdir(mode=0o700, parents=True, exist_ok=True)
    status = folder.stat()
    mode = stat.S_IMODE(status.st_mode)
    open_to = 0o077 if group is None else 0o027  # a group may enter, but not put another socket there
    if status.st_uid != os.geteuid() or mode & open_to:
        raise InputError(
            f"{folder}: the socket's folder has mode {mode:04o} and owner {status.st_uid}; expected one of "
            f"your own that others cannot enter, such as {'0700' if group is None else '0710'}"
        )
    if group is not None:
        os.chown(folder, -1, group)
        folder.chmod(0o710)


def _remove_stale(socket: Path) -> None:
    """Take away the socket that a killed worker left.

    Raises:
        InputError: If something else lies there.
    """
    with suppress(FileNotFoundError):
        if not stat.S_ISSOCK(socket.lstat().st_mode):
            raise InputError(f"[worker] socket is {socket}, where something else than a socket lies")
        socket.unlink()
