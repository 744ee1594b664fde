"""Flower's command line ``flwr``, run for one kit.

Its exit code is always 0, so success is read from its JSON output.
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

CONNECTION: Final = "coordinator"  # SuperLink's name in Flower's settings: flwr … coordinator
COMMAND_S: Final = 60.0  # a call normally takes two seconds
LONGEST: Final = 300  # characters of Flower's output that are passed on
_CODE: Final = re.compile(r"\[code: (\d+)\]\s*(.*)")
_LOOPBACK: Final = "127.0.0.1,localhost"


class FlowerRefusedError(RunError):
    """SuperLink, or the command itself, refused.

    Args:
        command: Such as ``supernode list``.
        detail: The reason, without the command.
        code: Flower's ``ApiErrorCode``, if there is one.
    """

    def __init__(self, command: str, detail: str, code: int | None = None) -> None:
        super().__init__(f"flwr {command}: {detail}")
        self.detail = detail
        self.code = code


def flower_answer(kit: Kit, command: str, *arguments: str) -> dict[str, Any]:
    """Run a command such as ``supernode list`` and return its JSON answer.

    Raises:
        FlowerRefusedError: If the answer is an error.
        RunError: If the command cannot be run or its output is malformed.
    """
    done = _run(kit, command, *arguments, "--format", "json")
    try:
        answer: dict[str, Any] = json.loads(done.stdout)
        succeeded, message = answer["success"], str(answer.get("error-message", ""))
    except (ValueError, KeyError, TypeError):
        last = (done.stderr or done.stdout).strip().splitlines()[-1:] or ["no output"]
        raise RunError(f"flwr {command}: exit code {done.returncode}, {last[0][:LONGEST]}") from None
    if not succeeded:
        if found := _CODE.search(message):
            raise FlowerRefusedError(command, found[2], int(found[1]))
        raise FlowerRefusedError(command, " ".join(message.split())[-LONGEST:] or "no reason given")
    return answer


def flower_output(kit: Kit, command: str, *arguments: str) -> str:
    """Run a command and return what it prints.

    Raises:
        RunError: If it cannot be run or times out.
    """
    return _run(kit, command, *arguments).stdout


def flower_environment(kit: Kit) -> dict[str, str]:
    """Environment variables of the coordinator's Flower programs, in addition to this process's.

    They disable telemetry, update checks, dependency installation and proxies for this machine.
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
    """Write SuperLink's address as ``[superlink.coordinator]`` to the configuration in ``FLWR_HOME``.

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
        raise RunError("flwr: not found beside this Python nor on PATH; the installation is incomplete")
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
            start_new_session=True,  # Ctrl-C must reach only this process
        )
    except subprocess.TimeoutExpired:
        raise RunError(f"flwr {command}: no answer after {COMMAND_S:.0f} s") from None
