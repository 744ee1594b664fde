"""A secret of the site, made once: what must not follow from anything that the coordinator chooses."""

from __future__ import annotations

import hmac
import os
import re
import secrets
import uuid
from contextlib import suppress
from typing import TYPE_CHECKING, Final

from mmare.errors import DataError
from mmare.host.files import write_whole

if TYPE_CHECKING:
    from pathlib import Path

__all__ = ["FILE", "site_secret", "split_seed"]

FILE: Final = "site.secret"  # beside site.toml, readable by its owner only
_BYTES: Final = 32


def site_secret(folder: Path) -> bytes:
    """The secret of a site's folder, made if there is none.

    Raises:
        DataError: If it is damaged, or cannot be read or made.
    """
    path = folder / FILE
    try:
        if not path.exists():
            _make(path)
        text = path.read_text(encoding="latin-1").strip()
    except OSError as error:
        raise DataError(f"{path}: cannot be read or made ({type(error).__name__})") from None
    if not re.fullmatch(f"[0-9a-f]{{{2 * _BYTES}}}", text):
        raise DataError(
            f"{path}: {len(text)} characters that are no secret, expected {2 * _BYTES} of 0 to 9 and a to f; "
            "restore it from a backup, or delete it: then splits are drawn anew"
        )
    return bytes.fromhex(text)


def split_seed(folder: Path) -> int:
    """From which a table without a split column is split: the same as long as table and secret are."""
    return int.from_bytes(hmac.digest(site_secret(folder), b"split", "sha256")[:4], "big")


def _make(path: Path) -> None:
    """Write a new secret, unless another process just did."""
    partial = path.with_name(f".{uuid.uuid4().hex}")
    write_whole(partial, secrets.token_hex(_BYTES).encode() + b"\n", mode=0o600)
    try:
        with suppress(FileExistsError):
            os.link(partial, path)
    finally:
        partial.unlink()
