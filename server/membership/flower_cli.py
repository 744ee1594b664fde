"""Flower's command line ``flwr``, run for one kit, and what it answers.

It leaves with exit code 0 whatever happened, so its JSON is read.
"""

from __future__ import annotations

import json
import os
import re
import shutil
import subprocess
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

import tomli_w

from mmare.errors import InputError, RunError
from mmare.host.files import write_whole

if TYPE_CHECKING:
    from server.membership.kit import Kit

__all__ = [
    "CONNECTION",
    "FlowerRefusedError",
    "flower_answer",
    "flower_environment",
    "flower_output",
    "write_connection",
]

CONNECTION: Final = "coordinator"  # SuperLink's name in Flower's own settings: flwr … coordinator
COMMAND_S: Final = 60.0  # a call takes two seconds; longer is a machine in trouble
LONGEST: Final = 300  # signs of what Flower says that are passed on
_CODE: Final = re.compile(r"\[code: (\d+)\]\s*(.*)")
_LOOPBACK: Final = "127.0.0.1,localhost"


class FlowerRefusedError(RunError):
    """SuperLink, or the command itself, says no.

    Args:
        command: Such as ``supernode list``.
        said: The reason.
        code: Of Flower's ``ApiErrorCode``, where there is one.
    """

    def __init__(self, command: str, said: str, code: int | None = None) -> None:
        super().__init__(f"flwr {command}: {said}")
        self.said = said
        self.code = code


def flower_answer(kit: Kit, command: str, *arguments: str) -> dict[str, Any]:
    """What a command answers as JSON.

    Args:
        kit: Of the coordinator.
        command: Such as ``supernode list``.
        arguments: Of the command, ``CONNECTION`` among them.

    Raises:
        FlowerRefusedError: If it says no.
        RunError: If it cannot be run, or answers something else than it should.
    """
    done = _run(kit, command, *arguments, "--format", "json")
    try:
        answer: dict[str, Any] = json.loads(done.stdout)
        succeeded, said = answer["success"], str(answer.get("error-message", ""))
    except (ValueError, KeyError, TypeError):
        last = (done.stderr or done.stdout).strip().splitlines()[-1:] or ["no word"]
        raise RunError(f"flwr {command}: exit code {done.returncode}, {last[0][:LONGEST]}") from None
    if not succeeded:
        if found := _CODE.search(said):
            raise FlowerRefusedError(command, found[2], int(found[1]))
        raise FlowerRefusedError(command, " ".join(said.split())[-LONGEST:] or "no reason given")
    return answer


def flower_output(kit: Kit, command: str, *arguments: str) -> str:
    """What a command prints.

    Raises:
        RunError: If it cannot be run or does not end.
    """
    return _run(kit, command, *arguments).stdout


def flower_environment(kit: Kit) -> dict[str, str]:
    """What the coordinator's Flower programs have in their environment, beside that of this process.

    No telemetry, no look for updates, no installing while running, and no proxy for this machine itself.
    """
    given = os.environ.get("NO_PROXY") or os.environ.get("no_proxy")
    direct = f"{given},{_LOOPBACK}" if given else _LOOPBACK
    return {
        "FLWR_HOME": str(kit.flwr_home),
        "FLWR_TELEMETRY_ENABLED": "0",
        "FLWR_DISABLE_UPDATE_CHECK": "1",
        "FLWR_DISABLE_RUNTIME_DEPENDENCY_INSTALLATION": "1",
        "NO_PROXY": direct,
        "no_proxy": direct,
    }


def write_connection(kit: Kit) -> None:
    """Tell Flower's command line where SuperLink is: ``[superlink.coordinator]`` in ``FLWR_HOME``.

    Raises:
        InputError: If it cannot be written.
    """
    where = {
        "address": f"127.0.0.1:{kit.superlink_port}",
        "root-certificates": str(kit.ca_certificate),
    }
    content = tomli_w.dumps({"superlink": {"default": CONNECTION, CONNECTION: where}}).encode()
    path = kit.flwr_home / "config.toml"
    try:
        if not path.exists() or path.read_bytes() != content:
            kit.flwr_home.mkdir(parents=True, mode=0o700, exist_ok=True)
            write_whole(path, content)
    except OSError as error:
        raise InputError(f"{path}: cannot be written ({type(error).__name__})") from None


def _run(kit: Kit, command: str, *arguments: str) -> subprocess.CompletedProcess[str]:
    places = os.pathsep.join([str(Path(sys.executable).parent), os.environ.get("PATH", os.defpath)])
    program = shutil.which("flwr", path=places)
    if program is None:
        raise RunError("flwr: not found beside this Python nor on PATH; the installation is not whole")
    write_connection(kit)
    plain = {key: value for key, value in os.environ.items() if key != "FORCE_COLOR"}
    try:
        return subprocess.run(  # noqa: S603 - our own command
            [program, *command.split(), *arguments],
            env={**plain, **flower_environment(kit), "NO_COLOR": "1"},
            stdin=subprocess.DEVNULL,
            capture_output=True,
            text=True,
            timeout=COMMAND_S,
            check=False,
            start_new_session=True,  # Ctrl-C is for us; we tell the rest
        )
    except subprocess.TimeoutExpired:
        raise RunError(f"flwr {command}: no answer after {COMMAND_S:.0f} s") from None
