"""Options that commands of runs share; light, so that ``--help`` is quick."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

__all__ = ["StartFrom"]

StartFrom = Annotated[
    Path,
    typer.Option(
        metavar="MODEL",
        show_default=False,
        help="Package or finished run to start from; what does not fit is as the seed draws it.",
    ),
]
