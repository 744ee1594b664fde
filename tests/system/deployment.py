"""A coordinator and its hospitals as people run them: the real commands, real TLS, on this machine.

Every wait is bounded, and what goes wrong shows the end of every log.
"""

import json
import os
import shutil
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from client.relay.programs import RelayFolder
from client.relay.status_file import read_state
from client.relay.worker_link import WorkerLink
from server.deployment.programs import server_apps, started_at
from server.deployment.status import kit_status
from server.membership.kit import Kit, load_kit
from sites.config import SiteConfig, load_site

BIN = Path(sys.executable).parent
COMMAND_S = 120
START_S = 120
LOOK_S = 0.05
TAIL = 2000  # signs of a log that a failure shows

needs_nginx = pytest.mark.skipif(
    shutil.which("nginx", path=f"{os.environ.get('PATH', '')}:/usr/sbin") is None,
    reason="nginx is not installed",
)


def free_ports(count: int) -> list[int]:
    """Ports of this machine that nobody listens on; all at once, so that no two are the same."""
    sockets = [socket.socket() for _ in range(count)]
    for each in sockets:
        each.bind(("127.0.0.1", 0))
    ports = [each.getsockname()[1] for each in sockets]
    for each in sockets:
        each.close()
    return ports


def command(*words: object, expect: int = 0) -> str:
    """Run one of our commands to its end; gives what it printed."""
    done = subprocess.run(
        [str(BIN / str(words[0])), *map(str, words[1:])],
        capture_output=True,
        text=True,
        timeout=COMMAND_S,
        check=False,
    )
    assert done.returncode == expect, f"{words}: {done.returncode}\n{done.stdout}\n{done.stderr}"
    assert "Traceback" not in done.stderr
    return done.stdout + done.stderr


def until(found: Callable[[], object], what: str, timeout_s: float, logs: Callable[[], str] = str) -> None:
    """Wait for something."""
    end = time.monotonic() + timeout_s
    while not found():
        assert time.monotonic() < end, f"{what}: not within {timeout_s} s\n{logs()}"
        time.sleep(LOOK_S)


def tails(paths: Iterable[Path]) -> str:
    """The ends of logs."""
    return "\n".join(
        f"===== {path.name}\n{path.read_text(errors='replace')[-TAIL:]}" for path in paths if path.is_file()
    )


class Running:
    """A command that stays, with its output in a file; ``inside`` are words that put it on another host."""

    def __init__(
        self,
        log: Path,
        *words: object,
        environment: dict[str, str] | None = None,
        inside: Iterable[str] = (),
    ) -> None:
        self.log = log
        with log.open("ab") as file:
            self.process = subprocess.Popen(
                [*inside, str(BIN / str(words[0])), *map(str, words[1:])],
                stdin=subprocess.DEVNULL,
                stdout=file,
                stderr=file,
                env={**os.environ, **(environment or {})},
                start_new_session=True,
            )

    @property
    def pid(self) -> int:
        return self.process.pid

    def alive(self) -> bool:
        return self.process.poll() is None

    def wait(self, timeout_s: float) -> int:
        return self.process.wait(timeout_s)

    def stop(self, timeout_s: float = 60) -> int:
        """SIGTERM, and what the command makes of it; whoever does not listen is killed and that shown."""
        if self.alive():
            self.process.terminate()
        try:
            return self.process.wait(timeout_s)
        except subprocess.TimeoutExpired:
            os.killpg(self.pid, signal.SIGKILL)
            self.process.wait()
            raise AssertionError(f"does not stop within {timeout_s} s\n{tails([self.log])}") from None

    def kill(self, number: int = signal.SIGKILL) -> None:
        os.kill(self.pid, number)


class Hospital:
    """One site: ``mmare-site`` with a folder of its own.

    Args:
        folder: With site.toml.
        runtime_port: Between SuperNode and SuperExec; another one per site of a machine.
        inside: Words that put a program on another host.
    """

    def __init__(self, folder: Path, runtime_port: int, inside: Iterable[str] = ()) -> None:
        self.folder = folder
        self.inside = tuple(inside)
        self.file = folder / "site.toml"
        if "[coordinator]" not in self.file.read_text():
            with self.file.open("a") as file:
                file.write(f"\n[coordinator]\nruntime_port = {runtime_port}\n")
        self.running: dict[str, Running] = {}

    @property
    def site(self) -> SiteConfig:
        return load_site(self.file)

    @property
    def name(self) -> str:
        return self.site.id

    def join(self, coordinator: "Coordinator", study: Path | None = None) -> None:
        """Request, admission, bundle, and approval of a study."""
        request, bundle = self.folder / "request.json", self.folder / "bundle.zip"
        command("mmare-site", "kit", "request", self.file, "--out", request)
        coordinator.admit(request, bundle)
        command("mmare-site", "kit", "install", bundle, "--site", self.file)
        if study is not None:
            self.approve(study)

    def approve(self, study: Path) -> None:
        command("mmare-site", "approve", study, "--site", self.file, "--yes")

    def start(self, *parts: str) -> None:
        """Start worker and relay, or one of the two."""
        for part in parts or ("all",):
            assert part not in self.running or not self.running[part].alive()
            words = ("mmare-site", "start", self.file, "--part", part)
            log = self.folder / f"start-{part}.log"
            environment = {"OMP_NUM_THREADS": "1"}
            self.running[part] = Running(log, *words, environment=environment, inside=self.inside)

    def stop(self) -> None:
        for part in list(self.running):
            self.running.pop(part).stop()

    def pid(self, part: str) -> int:
        """Of worker, supernode or superexec, once it runs."""
        found: list[int] = []

        def runs() -> bool:
            state = read_state(RelayFolder.of(self.site))
            programs = () if state is None else state.programs
            found[:] = [each.pid for each in programs if each.name == part and each.pid is not None]
            return bool(found)

        until(runs, f"{part} runs", START_S, self.logs)
        return found[0]

    def kill(self, part: str, number: int = signal.SIGKILL) -> None:
        os.kill(self.pid(part), number)

    def serving(self) -> bool:
        """Whether the worker answers."""
        return WorkerLink(self.site.worker.socket).status() is not None

    def logs(self) -> str:
        found = [*self.folder.glob("*.log"), *RelayFolder.of(self.site).folder.glob("*.log")]
        return f"##### {self.folder.name}\n" + tails(sorted(found))


@contextmanager
def odd_worker(hospital: Hospital, *faults: str) -> Iterator[None]:
    """The hospital's worker does what it should not for a while; see `tests.system.odd_worker`."""
    hospital.stop()
    hospital.start("relay")
    with (hospital.folder / "odd.log").open("ab") as file:
        worker = subprocess.Popen(
            [sys.executable, "-m", "tests.system.odd_worker", str(hospital.file), *faults],
            stdout=file,
            stderr=file,
            cwd=Path(__file__).parents[2],
        )
    try:
        until(hospital.serving, "the odd worker answers", START_S, hospital.logs)
        yield
    finally:
        worker.send_signal(signal.SIGTERM)
        worker.wait(60)
        hospital.stop()
        hospital.start()


class Coordinator:
    """``mmare-server`` with a kit of its own.

    Args:
        folder: To make.
        host: Of its certificate.
        port: Of the public door; none for any that is free.
        inside: Words that put a command on another host.
    """

    def __init__(
        self, folder: Path, host: str = "localhost", port: int | None = None, inside: Iterable[str] = ()
    ) -> None:
        self.folder = folder
        self.inside = tuple(inside)
        self.port, self.superlink_port = free_ports(2)
        self.port = port or self.port
        command(
            *("mmare-server", "kit", "init", "--kit", folder, "--host", host, "--port", self.port),
            *("--superlink-port", self.superlink_port, "--name", "test"),
        )
        self.running: Running | None = None
        self._said = 0
        self.hospitals: list[Hospital] = []

    @property
    def kit(self) -> Kit:
        return load_kit(self.folder)

    def admit(self, request: Path, bundle: Path) -> None:
        command("mmare-server", "kit", "admit", request, "--kit", self.folder, "--out", bundle)

    def start(self, source: Path, out: Path, *options: object) -> None:
        """``mmare-server start``."""
        self._start(source, "--out", out, *options)

    def stay(self, *options: object) -> None:
        """``mmare-server start`` without a study."""
        self._start(*options)

    def _start(self, *words: object) -> None:
        assert self.running is None or not self.running.alive()
        log = self.folder / "logs" / "start.log"
        self._said = log.stat().st_size if log.exists() else 0  # before this start
        words = ("start", *words, "--kit", self.folder)
        self.running = Running(log, "mmare-server", *words, inside=self.inside)

    def wait(self, timeout_s: float) -> int:
        """Until the command ends; its exit code."""
        assert self.running is not None
        try:
            return self.running.wait(timeout_s)
        except subprocess.TimeoutExpired:
            raise AssertionError(
                f"mmare-server start: not over within {timeout_s} s\n{self.logs()}"
            ) from None

    def finish(self, timeout_s: float) -> None:
        """Until the run is finished, as it should."""
        assert self.wait(timeout_s) == 0, self.logs()

    def close(self) -> None:
        """Stop it, and show what it leaves behind, if anything."""
        if self.running is not None:
            self.running.stop()
            left = self.processes()
            assert not left, f"left behind: {left}\n{self.logs()}"

    def processes(self) -> dict[str, int]:
        """The coordinator's living programs, the ServerApp among them."""
        try:
            entries = json.loads((self.folder / "state" / "processes.json").read_text())
        except (OSError, ValueError):
            return {}
        found = {
            name: entry["pid"]
            for name, entry in entries.items()
            if started_at(entry["pid"]) == entry["started"]
        }
        apps = list(server_apps(found.get("superexec")))
        return {**found, "serverapp": apps[0]} if apps else found

    def pid(self, name: str) -> int:
        """Of a program, once it runs."""
        found: list[int] = []

        def runs() -> bool:
            found[:] = [pid for each, pid in self.processes().items() if each == name]
            return bool(found)

        until(runs, f"{name} runs", START_S, self.logs)
        return found[0]

    def kill(self, name: str, number: int = signal.SIGKILL) -> None:
        os.kill(self.pid(name), number)

    def says(self, text: str) -> bool:
        """Whether the command has told people something since it was last started."""
        return text.encode() in (self.folder / "logs" / "start.log").read_bytes()[self._said :]

    def until_round(
        self, out: Path, number: int, timeout_s: float = 180, event: str = "round_started"
    ) -> None:
        """Until a round has begun, or more of it has happened."""

        def there() -> bool:
            assert self.running is not None
            if any(each["event"] == event and each["round"] >= number for each in whole_events(out)):
                return True
            assert self.running.alive(), self.logs()
            return False

        until(there, f"round {number}", timeout_s, self.logs)

    def logs(self) -> str:
        own = tails(sorted((self.folder / "logs").glob("*.log")))
        return "\n".join([own, *(hospital.logs() for hospital in self.hospitals)])

    def status(self):
        """What ``mmare-server status`` shows."""
        return kit_status(self.kit)


def whole_events(out: Path) -> list[dict]:
    """Every event of a journal that is being written, less a line that is not whole yet."""
    path = out / "rounds.jsonl"
    lines = path.read_bytes().splitlines(keepends=True) if path.exists() else []
    return [json.loads(line) for line in lines if line.endswith(b"\n")]
