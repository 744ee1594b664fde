"""Flower's SuperNode and SuperExec, sped up: ``python -P -m client.relay.patched supernode|superexec …``.

The programs and their arguments are Flower's own; token, secret, heartbeat and error replies are unchanged.
Where Flower has no settings, private names are patched. Each is checked first (`client.relay.patch_points`):
if Flower has changed one, nothing is started, since Flower's own programs run the code that arrives with a
message, beside the site's data. ``check`` in place of a role only checks.
"""

from __future__ import annotations

import logging
import os
import signal
import sys
import threading
from pathlib import Path
from typing import TYPE_CHECKING, Final, NoReturn

from client.relay.patch_points import CLIENTAPP_POINTS, SUPEREXEC_POINTS, SUPERNODE_POINTS, differences
from mmare.errors import InputError, SiteCode

if TYPE_CHECKING:
    from types import FrameType

    from client.relay.patch_points import PatchPoint

__all__ = ["CHECK", "FOLDER_VARIABLE", "main", "unusable"]

LOG = logging.getLogger("flwr.mmare")  # child of Flower's logger, so that it is printed

CHECK: Final = "check"
FOLDER_VARIABLE: Final = "MMARE_RELAY_FOLDER"  # where SuperNode writes its node id and last contact
POINTS: Final[dict[str, tuple[PatchPoint, ...]]] = {
    "supernode": SUPERNODE_POINTS,
    "superexec": (*SUPEREXEC_POINTS, *CLIENTAPP_POINTS),
}


def unusable(role: str) -> list[str]:
    """How the installed Flower differs from the versions that can be patched; ``role`` as for `main`."""
    return differences(POINTS[role])


def main() -> NoReturn:
    """Run the program named by the first argument, then exit even if it left threads running."""
    role, sys.argv = sys.argv[1], [f"flower-{sys.argv[1]}", *sys.argv[2:]]
    if role != CHECK and role not in POINTS:
        raise InputError(f"{role} is not supernode, superexec or {CHECK}")
    found = [each for name in (POINTS if role == CHECK else [role]) for each in unusable(name)]
    if found:
        sys.stderr.write(
            f"{SiteCode.RELAY}: the installed Flower differs from the one that the relay was checked with "
            f"({'; '.join(found)}), and might run code that a coordinator sends; expected flwr as in "
            "deploy/constraints.txt\n"
        )
    if found or role == CHECK:
        sys.exit(1 if found else 0)
    threading.excepthook = _end
    signal.signal(signal.SIGUSR1, _stop)
    _warm_up(role)
    code: int | str | None = 1  # returning means a lost connection; unpatched, it would hang
    try:
        _run(role)
    except SystemExit as end:
        code = end.code
    except BaseException:  # such as a full disk: uvicorn's thread would keep a process that does nothing
        LOG.exception("The main thread failed.")
    finally:
        _exit(code if isinstance(code, int) else int(code is not None))


def _warm_up(role: str) -> None:
    if role == "supernode":
        from client.relay.patched.supernode import warm_up as warm_node  # noqa: PLC0415 - after the check

        warm_node(Path(os.environ[FOLDER_VARIABLE]))
    else:
        from client.relay.patched.superexec import warm_up as warm_executor  # noqa: PLC0415 - as above

        warm_executor()


def _run(role: str) -> None:
    if role == "supernode":
        from flwr.supernode.cli import flower_supernode  # noqa: PLC0415 - each role needs its own

        flower_supernode()
    else:
        from flwr.supercore.cli import flower_superexec  # noqa: PLC0415 - as above

        flower_superexec()


def _end(arguments: threading.ExceptHookArgs) -> None:
    """Exit when a thread fails, such as the heartbeat: a restart is better than a half-working program."""
    if arguments.exc_type is SystemExit:
        return
    LOG.error("A thread failed.", exc_info=arguments.exc_value)
    _exit(1)


def _exit(code: int) -> NoReturn:
    """Exit whatever threads run, even if the log's disk is full."""
    try:
        sys.stdout.flush()
        sys.stderr.flush()
    finally:
        os._exit(code)


def _stop(_number: int, _frame: FrameType | None) -> None:
    raise SystemExit(0)


if __name__ == "__main__":
    main()
