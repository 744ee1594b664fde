"""Why a program of the relay ended, in plain words, from what it said last."""

from __future__ import annotations

import os
import re
from typing import TYPE_CHECKING, Final

from client.relay.programs import SUPERNODE
from mmare.host.supervised import how_it_ended

if TYPE_CHECKING:
    from pathlib import Path

__all__ = ["HELD_S", "last_words", "why_it_ended"]

HELD_S: Final = 90.0  # the coordinator lets go of a lost connection within 60 s; clocks and load aside
MOST_BYTES: Final = 16_384  # of what a program said last
_FLOWER_CODE: Final = re.compile(r"Exit Code: (\d+)")
_REFUSED: Final = "[code: 2004]"  # Flower's for any reason not to let a node in
_TURNED_AWAY: Final = "terminated gracefully"  # which nobody here told it
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
        "what answers at the coordinator's address has a certificate of somebody else",
    ),
    ("handshake error", "the encrypted connection was cut off"),
    ("address already in use", "another program listens on [coordinator] runtime_port"),
    ("Unable to parse the private key", "the site's key cannot be read; make a new one with kit request"),
    ("SuperExec auth secret", "superexec.secret of the kit cannot be read"),
    ("ended without an answer", "the process of a message ended in the middle"),
)


def last_words(log: Path, since: int = 0) -> str:
    """The end of what a program wrote.

    Args:
        log: Its file.
        since: Bytes of it that were there before.
    """
    try:
        with log.open("rb") as file:
            size = file.seek(0, os.SEEK_END)
            file.seek(max(size - MOST_BYTES, since if since <= size else 0))
            return file.read().decode("utf-8", errors="replace")
    except OSError:
        return ""


def why_it_ended(name: str, code: int, said: str, contact_s: float | None = None) -> str:
    r"""Why a program ended.

    Args:
        name: Of the program.
        code: As of `subprocess`.
        said: Its last words.
        contact_s: Since the coordinator answered last; none where it never has.

    Example:
        >>> why_it_ended("supernode", 1, "Exit Code: 305\\n[code: 2004] Failed", contact_s=8.0)
        'the coordinator still holds our last connection'
        >>> why_it_ended("worker", -9, "")
        'ended by signal 9'
    """
    if code < 0:
        return how_it_ended(code)
    if _REFUSED in said:
        if contact_s is not None and contact_s < HELD_S:
            return "the coordinator still holds our last connection"
        return "the coordinator does not let this site's key in: not admitted yet, or revoked"
    for words, reason in _REASONS:
        if words in said:
            return reason
    if name == SUPERNODE and code == 0 and _TURNED_AWAY in said:
        return "the coordinator no longer takes this site's key"
    found = _FLOWER_CODE.findall(said)
    return f"ended with Flower's exit code {found[-1]}" if found else how_it_ended(code)
