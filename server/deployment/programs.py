"""The coordinator's programs: their commands, health checks, and processes left by an earlier start.

::

    site ── HTTPS ─► nginx :port ── HTTPS ─► SuperLink 127.0.0.1:superlink_port ◄── SuperExec ─► ServerApp
                     (proxy.py)              TLS, node keys, database               one per run under way
"""

from __future__ import annotations

import http.client
import json
import os
import signal
import socket
import ssl
import sys
import time
from contextlib import suppress
from pathlib import Path
from typing import TYPE_CHECKING, Final

import psutil

from mmare.errors import InputError
from mmare.host.files import write_whole
from mmare.host.supervised import Program
from mmare.wire.messages import CHUNK_BYTES
from server.deployment.proxy import nginx_command
from server.membership.flower_cli import flower_environment
from server.membership.flower_nodes import superlink_answers
from server.membership.kit import PROXY, SUPEREXEC, SUPERLINK

if TYPE_CHECKING:
    from collections.abc import Mapping

    from server.membership.kit import Kit

__all__ = [
    "RUN_VARIABLE",
    "check_ports",
    "end_leftovers",
    "programs",
    "proxy_answers",
    "recorded",
    "server_apps",
    "started_at",
    "superlink_answers",
    "write_record",
]

RECORD: Final = "processes.json"  # in the kit's state: running programs, for the next start
RUN_VARIABLE: Final = "MMARE_FLOWER_RUN"  # in a ServerApp's environment: Flower's number of its run
WORK_POLL_S: Final = "0.5"  # of SuperExec, for work: SuperLink answers each time from its database
END_S: Final = 10.0  # from SIGTERM to SIGKILL for processes of an earlier start
POLL_S: Final = 0.05
_TICKS_PER_S: Final = os.sysconf("SC_CLK_TCK")


def programs(kit: Kit, *, proxy: bool = True) -> tuple[Program, ...]:
    """The programs that a coordinator keeps running, in starting order; with nginx if ``proxy``.

    Raises:
        InputError: If nginx is needed but not installed.
    """
    here = str(Path(sys.executable).parent)
    environment = {
        **flower_environment(kit),
        "FLWR_SUPEREXEC_TASK_POLL_INTERVAL": WORK_POLL_S,
        "FLWR_PRIVATE_MAX_ARRAY_CHUNK_SIZE": str(CHUNK_BYTES),
        "PATH": os.pathsep.join([here, os.environ.get("PATH", os.defpath)]),  # SuperExec finds flwr-serverapp
        "PYTHONUNBUFFERED": "1",
    }
    authority, secret = str(kit.ca_certificate), str(kit.secret)
    address = ("--host", "127.0.0.1", "--port", str(kit.superlink_port))
    superlink = (
        *(_program("flower-superlink"), *address, "--ssl-ca-certfile", authority),
        *("--ssl-certfile", str(kit.certificate), "--ssl-keyfile", str(kit.key)),
        *("--enable-supernode-auth", "--database", str(kit.database), "--isolation", "process"),
        *("--superexec-auth-secret-file", secret, "--disable-runtime-dependency-installation"),
    )
    superexec = (
        *(sys.executable, "-P", "-m", "server.deployment.superexec"),
        *("--runtime-api-address", f"127.0.0.1:{kit.superlink_port}"),
        *("--root-certificates", authority, "--superexec-auth-secret-file", secret),
    )
    commands = [(SUPERLINK, superlink), (SUPEREXEC, superexec)]
    if proxy:
        commands.append((PROXY, nginx_command(kit)))
    return tuple(
        Program(
            *(name, command, kit.logs / f"{name}.log", environment),
            first_pause_s=0.2,
            longest_pause_s=10.0,
            healthy_s=15.0,  # SuperLink needs a third of it to answer
            stop_s=8.0,
        )
        for name, command in commands
    )


def _program(name: str) -> str:
    """A program of this installation, which ``PATH`` might hide."""
    beside = Path(sys.executable).parent / name
    return str(beside) if beside.exists() else name


def proxy_answers(kit: Kit, timeout_s: float = 2.0) -> bool:
    """Whether ``/health`` of SuperLink can be reached through nginx from this machine."""
    context = ssl.create_default_context(cafile=str(kit.ca_certificate))
    try:
        with (
            socket.create_connection(("127.0.0.1", kit.port), timeout=timeout_s) as plain,
            context.wrap_socket(plain, server_hostname=kit.host) as secured,
        ):
            connection = http.client.HTTPSConnection(kit.host, kit.port, timeout=timeout_s)
            connection.sock = secured
            connection.request("GET", "/health")
            return connection.getresponse().status == http.client.OK
    except (OSError, http.client.HTTPException):  # TLS errors are OSErrors
        return False


def check_ports(kit: Kit, *, proxy: bool = True) -> None:
    """Check that the ports are free, before anything runs.

    Raises:
        InputError: If one is not.
    """
    wanted = {kit.superlink_port: "127.0.0.1", **({kit.port: ""} if proxy else {})}
    for port, address in wanted.items():
        key = "superlink_port" if address else "port"
        with socket.socket() as found:
            found.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)  # as the programs themselves do
            try:
                found.bind((address, port))
            except PermissionError:
                raise InputError(
                    f"port {port} is reserved for root on this machine; set another {key} in {kit.config}, "
                    "give the program CAP_NET_BIND_SERVICE (deploy/systemd), or lower "
                    "net.ipv4.ip_unprivileged_port_start"
                ) from None
            except OSError as error:
                raise InputError(
                    f"port {port} is not available ({error.strerror}): another program listens there; stop "
                    f"it or set another {key} in {kit.config}"
                ) from None


# Processes


def server_apps(superexec: int | None) -> dict[int, int]:
    """Running ServerApps of a SuperExec: Flower's number of the run by process id; 0 where it is not told."""
    found: dict[int, int] = {}
    if superexec is None:
        return found
    with suppress(psutil.NoSuchProcess):
        for child in psutil.Process(superexec).children():
            with suppress(psutil.Error):  # a zombie has no command line
                if any("flwr-serverapp" in word for word in child.cmdline()[:2]):
                    found[child.pid] = _run_of(child)
    return dict(sorted(found.items()))


def _run_of(process: psutil.Process) -> int:
    try:
        return int(process.environ()[RUN_VARIABLE])
    except (psutil.AccessDenied, KeyError, ValueError):  # of another user, or not of ours
        return 0


def started_at(pid: int) -> str | None:
    """Start time of a process in ticks since boot, which tells it from a later one with the same id.

    ``None`` if there is no such process or it is a zombie.
    """
    try:
        process = psutil.Process(pid)
        if process.status() == psutil.STATUS_ZOMBIE:
            return None
        since_boot_s = process.create_time() - psutil.boot_time()  # both shift when the clock is set
    except (psutil.Error, ValueError):  # ValueError: a damaged record holds a negative number
        return None
    return str(round(since_boot_s * _TICKS_PER_S))


def write_record(kit: Kit, pids: Mapping[str, int]) -> None:
    """Record the running programs, so that the next start can end leftovers."""
    entries = {name: {"pid": pid, "started": started_at(pid)} for name, pid in pids.items()}
    with suppress(OSError):  # such as a full disk; the kernel ends our programs in any case
        write_whole(kit.state / RECORD, json.dumps(entries, indent=2).encode())


def recorded(kit: Kit) -> dict[str, int]:
    """Programs of the last start that are still running, by name."""
    return {name: pid for name, pid, started in _entries(kit) if started_at(pid) == started}


def end_leftovers(kit: Kit) -> list[str]:
    """End processes left by an earlier start that was killed; returns the names of their programs.

    The caller must hold the lock of `start`.
    """
    entries = _entries(kit)
    left = sorted(name for name, pid, started in entries if _group(pid, started))
    for number in (signal.SIGTERM, signal.SIGKILL):
        for member in _left(entries):
            with suppress(ProcessLookupError, PermissionError):
                os.kill(member, number)
        end = time.monotonic() + END_S
        while _left(entries) and time.monotonic() < end:
            time.sleep(POLL_S)
    with suppress(OSError):
        (kit.state / RECORD).unlink(missing_ok=True)
    return left


def _entries(kit: Kit) -> list[tuple[str, int, str]]:
    """Name, process id and start time of the programs of the last start."""
    try:
        found = json.loads((kit.state / RECORD).read_text(encoding="utf-8"))
        return [
            (str(name), int(entry["pid"]), str(entry["started"]))
            for name, entry in found.items()
            if entry["started"] is not None
        ]
    except (OSError, ValueError, KeyError, TypeError, AttributeError):
        return []


def _left(entries: list[tuple[str, int, str]]) -> list[int]:
    return [member for _, pid, started in entries for member in _group(pid, started)]


def _group(leader: int, started: str) -> list[int]:
    """Running processes of a group that we started; its id is not reused while one of them runs."""
    if started_at(leader) not in (None, started):
        return []
    found = []
    for process in psutil.process_iter():
        with suppress(psutil.Error, ProcessLookupError):
            if os.getpgid(process.pid) == leader and process.status() != psutil.STATUS_ZOMBIE:
                found.append(process.pid)
    return found
