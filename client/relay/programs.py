"""Commands and environment of the relay's programs, Flower's SuperNode and SuperExec.

Reads neither the manifest nor patient data: the relay may run as a user without access to them.
"""

from __future__ import annotations

import os
import socket
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Final

from client.relay.patched.__main__ import CHECK, FOLDER_VARIABLE
from mmare.errors import InputError
from mmare.host.supervised import Program
from mmare.wire.joining import SiteKit
from mmare.wire.messages import CHUNK_BYTES

if TYPE_CHECKING:
    from collections.abc import Mapping

    from sites.config import SiteConfig, WorkerConfig

__all__ = [
    "LOOPBACK",
    "SUPEREXEC",
    "SUPERNODE",
    "RelayFolder",
    "check_flower",
    "no_proxy_value",
    "relay_environment",
    "relay_programs",
]

SUPERNODE: Final = "supernode"
SUPEREXEC: Final = "superexec"
LOOPBACK: Final = ("127.0.0.1", "localhost")
NO_PROXY: Final = ("NO_PROXY", "no_proxy")  # different programs read different ones
TASK_POLL_S: Final = 0.1
SUPERNODE_STOP_S: Final = 12.0  # Flower itself takes up to 5 s
SUPEREXEC_STOP_S: Final = 8.0


@dataclass(frozen=True)
class RelayFolder:
    """The relay's files: folder ``relay`` of the site's kit, whose owner runs the relay."""

    folder: Path

    @classmethod
    def of(cls, site: SiteConfig) -> RelayFolder:
        """Of a site."""
        return cls(site.coordinator.kit.absolute() / "relay")

    @property
    def home(self) -> Path:
        """Flower's own folder (``FLWR_HOME``)."""
        return self.folder / "flwr-home"

    @property
    def lock(self) -> Path:
        """Held by the ``mmare-site start`` that runs this site's relay."""
        return self.folder / "lock"

    @property
    def state(self) -> Path:
        """State of that process, for ``mmare-site status``."""
        return self.folder / "state.json"

    @property
    def contact(self) -> Path:
        """Touched when the coordinator answers."""
        return self.folder / "contact"

    def log(self, program: str) -> Path:
        """A program's output."""
        return self.folder / f"{program}.log"

    def make(self) -> None:
        """Create the folder, private to this user; raises `InputError` if it cannot be created."""
        try:
            self.folder.mkdir(mode=0o700, exist_ok=True)
            self.home.mkdir(mode=0o700, exist_ok=True)
        except OSError as error:
            raise InputError(
                f"{self.folder}: cannot be created ({type(error).__name__}); the kit must belong to the user "
                "who runs the relay"
            ) from None


def relay_programs(site: SiteConfig) -> tuple[Program, Program]:
    """SuperNode and SuperExec of a site, in starting order.

    Raises:
        InputError: If the kit is incomplete or another site's, or the port is taken.
    """
    kit, folder = SiteKit(site.coordinator.kit.absolute()), RelayFolder.of(site)
    coordinator = kit.coordinator()
    if coordinator.site != site.id:
        raise InputError(f"{kit.joined}: of the site {coordinator.site!r}, expected {site.id!r}")
    for path in (kit.key, kit.ca, kit.secret):
        _check_readable(path)
    port = site.coordinator.runtime_port
    _check_free(port)
    environment = relay_environment(folder, os.environ)
    secret = ("--superexec-auth-secret-file", str(kit.secret))
    supernode = (
        *("--superlink", coordinator.address, "--root-certificates", str(kit.ca)),
        *("--auth-supernode-private-key", str(kit.key), "--isolation", "process", *secret),
        *("--port", str(port), "--node-config", _node_config(site.worker)),
    )
    superexec = ("--insecure", "--runtime-api-address", f"127.0.0.1:{port}", *secret)

    def program(name: str, arguments: tuple[str, ...], first_pause_s: float, stop_s: float) -> Program:
        # -P keeps the working directory from shadowing an installed package
        command = (sys.executable, "-P", "-m", "client.relay.patched", name, *arguments)
        return Program(
            name, command, folder.log(name), environment, first_pause_s, longest_pause_s=15.0, stop_s=stop_s
        )

    return (
        program(SUPERNODE, supernode, 1.0, SUPERNODE_STOP_S),
        program(SUPEREXEC, superexec, 0.5, SUPEREXEC_STOP_S),
    )


def check_flower() -> None:
    """Raise `InputError` where the installed Flower might run code that arrives with a message."""
    command = (sys.executable, "-P", "-m", "client.relay.patched", CHECK)
    done = subprocess.run(command, capture_output=True, text=True, check=False)  # noqa: S603 - our own; this process stays small
    if done.returncode:
        raise InputError((done.stderr.strip().splitlines() or ["the check of Flower failed"])[-1])


def relay_environment(folder: RelayFolder, around: Mapping[str, str]) -> dict[str, str]:
    """Environment variables of the relay's programs beyond those of this process, ``around``.

    A hospital's proxy is for outbound connections (``HTTPS_PROXY``); ``HTTP_PROXY`` must not apply to those
    between the programs on this machine.
    """
    programs = Path(sys.executable).parent  # Flower looks up flwr-clientapp on PATH
    return {
        "FLWR_TELEMETRY_ENABLED": "0",
        "FLWR_DISABLE_UPDATE_CHECK": "1",
        "FLWR_DISABLE_RUNTIME_DEPENDENCY_INSTALLATION": "1",
        "FLWR_SUPEREXEC_TASK_POLL_INTERVAL": str(TASK_POLL_S),
        "FLWR_PRIVATE_MAX_ARRAY_CHUNK_SIZE": str(CHUNK_BYTES),
        "FLWR_HOME": str(folder.home),
        FOLDER_VARIABLE: str(folder.folder),
        "PATH": f"{programs}{os.pathsep}{around.get('PATH', os.defpath)}",
        **dict.fromkeys(NO_PROXY, no_proxy_value(around)),
    }


def no_proxy_value(around: Mapping[str, str]) -> str:
    """``NO_PROXY`` extended by this machine, from both spellings.

    Example:
        >>> no_proxy_value({"no_proxy": ".hospital.example, localhost"})
        '.hospital.example,localhost,127.0.0.1'
        >>> no_proxy_value({"NO_PROXY": "*"})
        '*,127.0.0.1,localhost'
    """
    named = ",".join(around.get(name, "") for name in NO_PROXY).split(",")
    entries = [entry for each in named if (entry := each.strip())]
    return ",".join(dict.fromkeys([*entries, *LOOPBACK]))


def _node_config(worker: WorkerConfig) -> str:
    """Raises `InputError` for a path that Flower's syntax cannot express."""
    key = "socket" if worker.spool is None else "spool"
    path = (worker.spool or worker.socket).absolute()
    if "'" in str(path) or "\n" in str(path):
        raise InputError(f"[worker] {key} is {path}, expected a path without quotation marks")
    return f"{key}='{path}'"  # a TOML literal string: no escapes


def _check_readable(path: Path) -> None:
    try:
        with path.open("rb"):
            pass
    except OSError as error:
        missing = isinstance(error, FileNotFoundError)
        raise InputError(
            f"{path}: {'not there' if missing else f'cannot be read ({type(error).__name__})'}; expected a "
            "file of the kit, written by mmare-site kit request and mmare-site kit install"
        ) from None


def _check_free(port: int) -> None:
    with socket.socket() as probe:
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            probe.bind(("127.0.0.1", port))
        except OSError:
            raise InputError(
                f"[coordinator] runtime_port is {port}, where another program listens; expected a free port, "
                "a different one for each site of a machine"
            ) from None
