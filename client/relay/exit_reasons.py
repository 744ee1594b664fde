"""Explain why a program of the relay ended, from the end of its log."""

from __future__ import annotations

import os
import re
from typing import TYPE_CHECKING, Final

from client.relay.programs import SUPERNODE
from mmare.errors import SiteCode
from mmare.host.supervised import how_it_ended

if TYPE_CHECKING:
    from pathlib import Path

__all__ = ["HELD_S", "exit_reason", "log_tail"]

HELD_S: Final = 90.0  # the coordinator drops a lost connection within 60 s, plus a margin for clocks and load
MOST_BYTES: Final = 16_384  # of the end of a log
_FLOWER_CODE: Final = re.compile(r"Exit Code: (\d+)")
_REFUSED: Final = "[code: 2004]"  # Flower's code for every reason not to admit a node
_STRANGER: Final = "the coordinator does not let this site's key in: not admitted yet, or revoked"
_TURNED_AWAY: Final = "terminated gracefully"  # without a request of ours
_REASONS: Final = (
    (
        "certificate has expired",
        "the coordinator's certificate has expired; it makes a new one with kit renew",
    ),
    (
        "certificate is not yet valid",
        "the coordinator's certificate is not valid yet; is this machine's clock right?",
    ),
    ("Hostname mismatch", "the coordinator's certificate is for another name"),
    ("IP address mismatch", "the coordinator's certificate is for another address"),
    (
        "CERTIFICATE_VERIFY_FAILED",
        "the server at the coordinator's address has a certificate that is not the coordinator's",
    ),
    ("handshake error", "the encrypted connection was cut off"),
    ("address already in use", "another program listens on [coordinator] runtime_port"),
    ("Unable to parse the private key", "the site's key cannot be read; make a new one with kit request"),
    (
        SiteCode.RELAY,
        f"the installed Flower is not the one that the relay was checked with ({SiteCode.RELAY})",
    ),
    ("SuperExec auth secret", "superexec.secret of the kit cannot be read"),
    ("ended without an answer", "the process that answered a message ended before its reply"),
)


def log_tail(log: Path, since: int = 0) -> str:
    """The last `MOST_BYTES` of a log, skipping its first ``since`` bytes; empty if it cannot be read."""
    try:
        with log.open("rb") as file:
            size = file.seek(0, os.SEEK_END)
            file.seek(max(size - MOST_BYTES, since if since <= size else 0))
            return file.read().decode("utf-8", errors="replace")
    except OSError:
        return ""


def exit_reason(name: str, code: int, output: str, contact_s: float | None = None) -> str:
    r"""Why a program ended, from its `subprocess` return code and the end of its log.

    Args:
        contact_s: Since the coordinator's last answer; None if it never answered.

    Example:
        >>> exit_reason("supernode", 1, "Exit Code: 305\\n[code: 2004] Failed", contact_s=8.0)
        'the coordinator still holds our last connection'
        >>> exit_reason("worker", -9, "")
        'ended by signal 9'
    """
    if code < 0:
        return how_it_ended(code)
    if _REFUSED in output:
        if contact_s is not None and contact_s < HELD_S:
            return "the coordinator still holds our last connection"
        return _STRANGER
    for words, reason in _REASONS:
        if words in output:
            return reason
    if name == SUPERNODE and code == 0 and _TURNED_AWAY in output:
        return _STRANGER
    found = _FLOWER_CODE.findall(output)
    return f"ended with Flower's exit code {found[-1]}" if found else how_it_ended(code)
