"""A coordinator by hand: SuperLink with TLS, node keys and a database, SuperExec, and runs of the thin app.

For tests of the hospital's side alone; no proxy in front, so a site reaches SuperLink's own port.
"""

from __future__ import annotations

import json
import os
import secrets
import socket
import subprocess
import sys
import time
from contextlib import suppress
from pathlib import Path

from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.serialization import (
    Encoding,
    NoEncryption,
    PrivateFormat,
    PublicFormat,
)

from mmare.joining import SiteKit
from mmare.processes import Household, Program
from server.certificates import new_authority, new_server

BIN = Path(sys.executable).parent

PYPROJECT = """
[build-system]
requires = ["hatchling"]
build-backend = "hatchling.build"

[project]
name = "relay"
version = "0.1.0"

[tool.flwr.app]
publisher = "mmare"
fab-include = ["relay_app.py", "coordinator_app.py"]

[tool.flwr.app.components]
serverapp = "coordinator_app:app"
clientapp = "relay_app:app"

[tool.flwr.app.config]
federation = ""
out = ""
mode = "federated"
set = ""
overwrite = false
trainer = ""
nodes = 0
backend = "flower"
subsets = false
"""


def free_port() -> int:
    """A port of this machine that nobody listens on."""
    with socket.socket() as found:
        found.bind(("127.0.0.1", 0))
        return found.getsockname()[1]


def environment(home: Path) -> dict[str, str]:
    """Of every Flower program that a test starts."""
    return {
        **os.environ,
        "FLWR_TELEMETRY_ENABLED": "0",
        "FLWR_DISABLE_UPDATE_CHECK": "1",
        "FLWR_DISABLE_RUNTIME_DEPENDENCY_INSTALLATION": "1",
        "FLWR_SUPEREXEC_TASK_POLL_INTERVAL": "0.1",
        "FLWR_HOME": str(home),
        "PATH": f"{BIN}{os.pathsep}{os.environ['PATH']}",
    }


class SuperLink:
    """Kept running until it is left.

    Args:
        folder: For its files.
    """

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.port = free_port()
        self.home = folder / "flwr-home"
        self._household = Household()

    @property
    def ca(self) -> Path:
        return self.folder / "ca.crt"

    def __enter__(self) -> SuperLink:
        self._write()
        env = environment(self.home)
        superlink = [
            *("flower-superlink", "--host", "127.0.0.1", "--port", str(self.port)),
            *("--ssl-ca-certfile", str(self.ca), "--ssl-certfile", str(self.folder / "server.crt")),
            *("--ssl-keyfile", str(self.folder / "server.key"), "--enable-supernode-auth"),
            *("--database", str(self.folder / "state.db"), "--isolation", "process"),
            *("--superexec-auth-secret-file", str(self.folder / "secret")),
            "--disable-runtime-dependency-installation",
        ]
        superexec = [
            *("flower-superexec", "--root-certificates", str(self.ca)),
            *("--runtime-api-address", f"127.0.0.1:{self.port}"),
            *("--superexec-auth-secret-file", str(self.folder / "secret")),
        ]
        for name, command in (("superlink", superlink), ("server-superexec", superexec)):
            self._household.keep(
                Program(name, (str(BIN / command[0]), *command[1:]), self.log(name), env, stop_s=8)
            )
        self.look()
        self.wait()
        return self

    def __exit__(self, *_: object) -> None:
        self._household.stop()

    def log(self, name: str) -> Path:
        return self.folder / f"{name}.log"

    def look(self) -> None:
        """Start again what ended; for tests that kill it."""
        self._household.look()

    def pid(self, name: str = "superlink") -> int:
        found = self._household.pid(name)
        assert found is not None
        return found

    def wait(self) -> None:
        """Until it answers."""
        end = time.monotonic() + 60
        while time.monotonic() < end:
            with suppress(OSError), socket.create_connection(("127.0.0.1", self.port), timeout=1):
                return
            self.look()
            time.sleep(0.1)
        raise AssertionError(self.log("superlink").read_text())

    def flwr(self, *arguments: str) -> dict:
        """What a command of Flower's says; it must succeed."""
        done = subprocess.run(
            [str(BIN / "flwr"), *arguments, "--format", "json"],
            capture_output=True,
            text=True,
            timeout=120,
            env=environment(self.home),
            check=False,
        )
        assert done.returncode == 0, done.stdout + done.stderr
        said = json.loads(done.stdout)
        assert said["success"], said
        return said

    def admit(self, site: str, kit: SiteKit, runtime_port: int) -> int:
        """Make a site's kit, as request, admit and install do; returns its node id."""
        kit.folder.mkdir(mode=0o700, parents=True, exist_ok=True)
        key = ec.generate_private_key(ec.SECP384R1())
        kit.key.write_bytes(key.private_bytes(Encoding.PEM, PrivateFormat.OpenSSH, NoEncryption()))
        kit.key.chmod(0o600)
        kit.public_key.write_bytes(key.public_key().public_bytes(Encoding.OpenSSH, PublicFormat.OpenSSH))
        kit.secret.write_bytes(secrets.token_hex(32).encode())
        kit.ca.write_bytes(self.ca.read_bytes())
        kit.joined.write_text(
            f'federation = "test"\nhost = "127.0.0.1"\nport = {self.port}\nsite = "{site}"\n'
        )
        file = kit.folder.parent / "site.toml"
        if file.exists() and "[coordinator]" not in file.read_text():
            with file.open("a") as text:
                text.write(f"\n[coordinator]\nruntime_port = {runtime_port}\n")
        said = self.flwr("supernode", "register", str(kit.public_key), "byhand", "--name", site)
        return int(said["node-id"])

    def nodes(self) -> dict[str, str]:
        """Status by node id."""
        return {node["node-id"]: node["status"] for node in self.flwr("supernode", "list", "byhand")["nodes"]}

    def wait_online(self, count: int, timeout_s: float = 90) -> None:
        """Until so many nodes are online."""
        end = time.monotonic() + timeout_s
        while list(self.nodes().values()).count("online") < count:
            assert time.monotonic() < end, self.nodes()
            time.sleep(0.5)

    def submit(self, **config: object) -> str:
        """Start a run; returns its id."""
        words = " ".join(f"{key}={json.dumps(value)}" for key, value in config.items())
        said = self.flwr("run", str(self.folder / "app"), "byhand", "--run-config", words)
        return str(said["run-id"])

    def status(self, run: str) -> str:
        """Of a run."""
        return self.flwr("list", "byhand", "--run-id", run)["runs"][0]["status"]

    def _write(self) -> None:
        self.home.mkdir(parents=True)
        authority = new_authority("test")
        server = new_server(authority, "localhost")
        self.ca.write_bytes(authority.certificate)
        (self.folder / "server.crt").write_bytes(server.certificate)
        (self.folder / "server.key").write_bytes(server.key)
        (self.folder / "secret").write_bytes(secrets.token_hex(32).encode())
        (self.home / "config.toml").write_text(
            f'[superlink.byhand]\naddress = "127.0.0.1:{self.port}"\nroot-certificates = "{self.ca}"\n'
        )
        app = self.folder / "app"
        app.mkdir()
        (app / "pyproject.toml").write_text(PYPROJECT)
        (app / "relay_app.py").write_text("from client.app import app as app\n")
        (app / "coordinator_app.py").write_text("from server.app import app as app\n")
