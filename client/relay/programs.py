"""The relay's programs: Flower's SuperNode and SuperExec with what a site's kit says, and their surroundings.

Nothing here reads the manifest or a patient's data: the relay may run as a user who cannot.
"""

from __future__ import annotations

import os
import socket
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Final

from client.relay.patched.__main__ import FOLDER_VARIABLE
from mmare.errors import InputError
from mmare.host.supervised import Program
from mmare.wire.joining import SiteKit
from mmare.wire.messages import CHUNK_BYTES

if TYPE_CHECKING:
    from collections.abc import Mapping

    from sites.config import SiteConfig

__all__ = [
    "LOOPBACK",
    "SUPEREXEC",
    "SUPERNODE",
    "RelayFolder",
    "relay_environment",
    "relay_programs",
    "way_past_proxies",
]

SUPERNODE: Final = "supernode"
SUPEREXEC: Final = "superexec"
LOOPBACK: Final = ("127.0.0.1", "localhost")
NO_PROXY: Final = ("NO_PROXY", "no_proxy")  # programs differ in which one they read
TASK_POLL_S: Final = 0.1
SUPERNODE_STOP_S: Final = 12.0  # Flower gives itself 5 s after it has been told
SUPEREXEC_STOP_S: Final = 8.0


@dataclass(frozen=True)
class RelayFolder:
    """Where the relay keeps what it writes: in the site's kit, whose owner it is.

    Args:
        folder: ``relay`` of the kit.
    """

    folder: Path

    @classmethod
    def of(cls, site: SiteConfig) -> RelayFolder:
        """That of a site."""
        return cls(site.coordinator.kit.absolute() / "relay")

    @property
    def home(self) -> Path:
        """Flower's own folder (``FLWR_HOME``)."""
        return self.folder / "flwr-home"

    @property
    def lock(self) -> Path:
        """Held by the one ``mmare-site start`` of this site that keeps the relay."""
        return self.folder / "lock"

    @property
    def state(self) -> Path:
        """What that one does, for ``mmare-site status``."""
        return self.folder / "state.json"

    @property
    def contact(self) -> Path:
        """Touched when the coordinator has answered."""
        return self.folder / "contact"

    def log(self, program: str) -> Path:
        """What a program says."""
        return self.folder / f"{program}.log"

    def make(self) -> None:
        """Make the folder, closed to others.

        Raises:
            InputError: If it cannot be made.
        """
        try:
            self.folder.mkdir(mode=0o700, exist_ok=True)
            self.home.mkdir(mode=0o700, exist_ok=True)
        except OSError as error:
            raise InputError(
                f"{self.folder}: cannot be made ({type(error).__name__}); the kit belongs to the user who "
                "runs the relay"
            ) from None


def relay_programs(site: SiteConfig) -> tuple[Program, Program]:
    """SuperNode and SuperExec of a site, to be started in this order.

    Args:
        site: With a bundle installed in its kit.

    Raises:
        InputError: If the kit is not complete, is another site's, or the port is taken.
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
        *("--port", str(port), "--node-config", _node_config(site.worker.socket.absolute())),
    )
    superexec = ("--insecure", "--runtime-api-address", f"127.0.0.1:{port}", *secret)
    return (
        Program(
            SUPERNODE,
            _command(SUPERNODE, supernode),
            folder.log(SUPERNODE),
            environment,
            first_pause_s=1.0,
            longest_pause_s=15.0,
            stop_s=SUPERNODE_STOP_S,
        ),
        Program(
            SUPEREXEC,
            _command(SUPEREXEC, superexec),
            folder.log(SUPEREXEC),
            environment,
            longest_pause_s=15.0,
            stop_s=SUPEREXEC_STOP_S,
        ),
    )


def relay_environment(folder: RelayFolder, around: Mapping[str, str]) -> dict[str, str]:
    """What the relay's programs find in their environment besides that of this process.

    A hospital's proxy is for the way out (``HTTPS_PROXY``); the programs speak to each other on this machine,
    which ``HTTP_PROXY`` must not catch.

    Args:
        folder: The relay's.
        around: The environment of this process.
    """
    programs = str(Path(sys.executable).parent)  # where flwr-clientapp is, which Flower looks for on PATH
    path = around.get("PATH", os.defpath)
    return {
        "FLWR_TELEMETRY_ENABLED": "0",
        "FLWR_DISABLE_UPDATE_CHECK": "1",
        "FLWR_DISABLE_RUNTIME_DEPENDENCY_INSTALLATION": "1",
        "FLWR_SUPEREXEC_TASK_POLL_INTERVAL": str(TASK_POLL_S),
        "FLWR_PRIVATE_MAX_ARRAY_CHUNK_SIZE": str(CHUNK_BYTES),
        "FLWR_HOME": str(folder.home),
        FOLDER_VARIABLE: str(folder.folder),
        "PATH": f"{programs}{os.pathsep}{path}",
        **dict.fromkeys(NO_PROXY, way_past_proxies(around)),
    }


def way_past_proxies(around: Mapping[str, str]) -> str:
    """``NO_PROXY`` with this machine in it, whichever of the two spellings was set.

    Example:
        >>> way_past_proxies({"no_proxy": ".hospital.example, localhost"})
        '.hospital.example,localhost,127.0.0.1'
        >>> way_past_proxies({"NO_PROXY": "*"})
        '*,127.0.0.1,localhost'
    """
    named = ",".join(around.get(name, "") for name in NO_PROXY).split(",")
    entries = [entry for each in named if (entry := each.strip())]
    return ",".join(dict.fromkeys([*entries, *LOOPBACK]))


def _command(role: str, arguments: tuple[str, ...]) -> tuple[str, ...]:
    """``-P``: a folder that this is started in must not stand in for an installed package."""
    return (sys.executable, "-P", "-m", "client.relay.patched", role, *arguments)


def _node_config(path: Path) -> str:
    """Raises `InputError` for a path that Flower's own syntax cannot hold."""
    if "'" in str(path) or "\n" in str(path):
        raise InputError(f"[worker] socket is {path}, expected a path without quotation marks")
    return f"socket='{path}'"  # a literal string of TOML: nothing in it is special


def _check_readable(path: Path) -> None:
    try:
        with path.open("rb"):
            pass
    except OSError as error:
        missing = isinstance(error, FileNotFoundError)
        raise InputError(
            f"{path}: {'not there' if missing else f'cannot be read ({type(error).__name__})'}; expected a "
            "file of the kit, made by mmare-site kit request and mmare-site kit install"
        ) from None


def _check_free(port: int) -> None:
    with socket.socket() as found:
        found.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            found.bind(("127.0.0.1", port))
        except OSError:
            raise InputError(
                f"[coordinator] runtime_port is {port}, where another program listens; expected a free port, "
                "another one for each site of a machine"
            ) from None
