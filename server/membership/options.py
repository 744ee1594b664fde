"""What `mmare-server kit` takes unasked; light, so that ``--help`` is quick."""

from __future__ import annotations

from typing import Final

__all__ = ["SERVER_DAYS", "SUPERLINK_PORT"]

SERVER_DAYS: Final = 397  # the longest that browsers and most proxies accept
SUPERLINK_PORT: Final = 9095  # beside SuperNode's 9094, on this machine only
