"""Flower's SuperExec, less a token in the list of processes: ``python -P -m server.deployment.superexec …``.

It starts a ServerApp with its token on the command line, which every user of the machine can read; here the
token is in a file without a name that only the ServerApp inherits. Flower's number of the run is in its
environment, by which ServerApps that run side by side are told apart.
"""

from __future__ import annotations

import os
import subprocess
import sys
from types import SimpleNamespace
from typing import Any

from flwr.supercore.cli import flower_superexec
from flwr.supercore.superexec import run_superexec
from flwr.supercore.superexec.executor import subprocess_executor
from flwr.supercore.superexec.plugin import AutoExecPlugin

from server.deployment.programs import RUN_VARIABLE

__all__ = ["main", "start_without_token"]

TOKEN, TOKEN_FILE = "--token", "--token-file"


class NumberedPlugin(AutoExecPlugin):
    """Flower's, one task after the other; what it starts inherits the number of the task's run."""

    def launch_task(self, token: str, task: Any) -> Any:  # noqa: ANN401 - Flower's own types, of protobuf
        os.environ[RUN_VARIABLE] = str(task.run_id)
        return super().launch_task(token=token, task=task)


def start_without_token(arguments: list[str], **options: Any) -> subprocess.Popen[bytes]:  # noqa: ANN401 - Popen's
    """As `subprocess.Popen`, with ``--token-file`` in place of ``--token``."""
    if TOKEN not in arguments:
        return subprocess.Popen(arguments, **options)  # noqa: S603 - Flower's own command
    place = arguments.index(TOKEN)
    file = os.memfd_create("token")
    try:
        os.write(file, arguments[place + 1].encode())
        named = [*arguments[:place], TOKEN_FILE, f"/proc/self/fd/{file}", *arguments[place + 2 :]]
        return subprocess.Popen(named, pass_fds=(file,), **options)  # noqa: S603 - as above
    finally:
        os.close(file)


def main() -> None:
    """Run Flower's program."""
    shim = SimpleNamespace(Popen=start_without_token, DEVNULL=subprocess.DEVNULL)
    subprocess_executor.subprocess = shim  # type: ignore[assignment,attr-defined] # of which it uses no more
    run_superexec.AutoExecPlugin = NumberedPlugin  # type: ignore[attr-defined] # that its main looks up
    sys.argv[0] = "flower-superexec"
    flower_superexec()


if __name__ == "__main__":
    main()
