"""Flower's SuperNode and SuperExec, made quick: ``python -P -m client.relay.patched supernode|superexec …``.

The programs are Flower's own, with their own arguments; token, secret, heartbeat and error replies are
untouched. Around them, names are replaced for which Flower has no settings (`client.relay.flower_seams`).
They are checked first: where Flower has changed them, its programs run as they are, slower, with a warning.
The same with ``MMARE_STOCK_RELAY=1``, without one.
"""

from __future__ import annotations

import logging
import os
import signal
import sys
import threading
from pathlib import Path
from typing import TYPE_CHECKING, Final, NoReturn

from client.relay.flower_seams import CLIENTAPP_SEAMS, SUPEREXEC_SEAMS, SUPERNODE_SEAMS, differences
from mmare.errors import InputError

if TYPE_CHECKING:
    from types import FrameType

    from client.relay.flower_seams import Seam

__all__ = ["FOLDER_VARIABLE", "STOCK_VARIABLE", "main", "unusable"]

LOG = logging.getLogger("flwr.mmare")  # under Flower's own, which the programs show

STOCK_VARIABLE: Final = "MMARE_STOCK_RELAY"
FOLDER_VARIABLE: Final = "MMARE_RELAY_FOLDER"  # where SuperNode notes its number and its last contact
SEAMS: Final[dict[str, tuple[Seam, ...]]] = {
    "supernode": SUPERNODE_SEAMS,
    "superexec": (*SUPEREXEC_SEAMS, *CLIENTAPP_SEAMS),
}


def unusable(role: str) -> list[str]:
    """What of Flower is not as the warm relay knows it.

    Args:
        role: ``supernode`` or ``superexec``.
    """
    return differences(SEAMS[role])


def main() -> NoReturn:
    """Run one of Flower's programs and end this process with it, whatever threads it left."""
    role, sys.argv = sys.argv[1], [f"flower-{sys.argv[1]}", *sys.argv[2:]]
    if role not in SEAMS:
        raise InputError(f"{role} is not supernode or superexec")
    threading.excepthook = _end
    signal.signal(signal.SIGUSR1, _stop)
    if not os.environ.get(STOCK_VARIABLE):
        _warm_up(role)
    code: int | str | None = 1  # a program that returns has lost its connection: Flower's own would hang
    try:
        _run(role)
    except SystemExit as end:
        code = end.code
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(code if isinstance(code, int) else int(code is not None))


def _warm_up(role: str) -> None:
    found = unusable(role)
    if found:
        LOG.warning(
            "This version of Flower is not one that the warm relay knows (%s): its own %s runs, and a round "
            "takes seconds longer.",
            "; ".join(found),
            role,
        )
    elif role == "supernode":
        from client.relay.patched.supernode import warm_up as warm_node  # noqa: PLC0415 - of names that were checked

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
    """A thread failed, such as that of the heartbeat: better started anew than half alive."""
    if arguments.exc_type is SystemExit:
        return
    LOG.error("A thread failed.", exc_info=arguments.exc_value)
    sys.stderr.flush()
    os._exit(1)


def _stop(_number: int, _frame: FrameType | None) -> None:
    raise SystemExit(0)


if __name__ == "__main__":
    main()
