"""Render page templates, format values for readers, and replace pages atomically.

jinja2 is imported when a page is rendered, so that importing this module stays cheap.
"""

from __future__ import annotations

import functools
from collections.abc import Mapping
from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING, Any

from mmare.host.files import replacing

if TYPE_CHECKING:
    import jinja2

__all__ = ["REASONS", "render_page", "replace_page"]

REASONS = {  # `mmare.errors.SiteCode`, explained to a reader
    "S101": "the message could not be understood",
    "S102": "the study is not the one it approved",
    "S201": "its data cannot be used for this study",
    "S203": "training or evaluation gave values that are not numbers",
    "S204": "its kept optimiser state is missing or damaged",
    "S205": "no rows to train on",
    "S206": "its table changed since the run began, so its part in the run ended",
    "S306": "its approved study does not call for what was asked",
    "S307": "asked for an earlier round, or again for one with another model",
    "S308": "the model does not descend from what it has seen",
    "S500": "an error; the detail is in the site's own log",
}


def render_page(view: Mapping[str, Any], template: str = "report_template.html.j2") -> str:
    """Render a template of ``templates/``; all values are HTML-escaped."""
    return _environment().get_template(template).render(view)


@functools.cache  # compiling the templates takes longer than filling them
def _environment() -> jinja2.Environment:
    import jinja2  # noqa: PLC0415 - loaded only when a page is written

    environment = jinja2.Environment(
        loader=jinja2.PackageLoader("simulation.report"),
        autoescape=True,
        undefined=jinja2.StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    environment.filters.update(
        number=_number, setting=_setting, megabytes=_megabytes, duration=_duration, moment=_moment
    )
    environment.globals["reasons"] = REASONS
    return environment


def replace_page(path: Path, page: str) -> Path:
    """Replace a page atomically: a reader never sees half of one."""
    with replacing(path, private=True) as partial:
        partial.write_text(page, encoding="utf-8")
    return path


def _number(value: float | None) -> str:
    """Three decimals, or thousands separators for whole numbers."""
    if value is None:
        return "—"
    return f"{value:,}" if isinstance(value, int) else f"{value:,.3f}"


def _setting(value: Any) -> str:  # noqa: ANN401 - any value of a TOML file
    if value is None:
        return "not set"
    if isinstance(value, Mapping):
        return ", ".join(f"{key} = {_setting(entry)}" for key, entry in value.items())
    if isinstance(value, list | tuple):
        return ", ".join(map(_setting, value))
    return str(value).lower() if isinstance(value, bool) else str(value)


def _moment(time: str) -> str:
    """An ISO time, to the minute."""
    try:
        return f"{datetime.fromisoformat(time).astimezone(UTC):%Y-%m-%d %H:%M} UTC"
    except ValueError:
        return time


def _megabytes(value: float | None) -> str:
    return "—" if value is None else f"{value / 1e6:,.3f} MB"


def _duration(seconds: float | None) -> str:
    """Seconds up to two minutes, then minutes, then hours."""
    if seconds is None:
        return "—"
    if seconds < 120:  # noqa: PLR2004 - two minutes
        return f"{seconds:.1f} s" if seconds >= 1 else f"{seconds:.3f} s"
    minutes, rest = divmod(round(seconds), 60)
    return f"{minutes} min {rest:02d} s" if minutes < 60 else f"{minutes // 60} h {minutes % 60:02d} min"  # noqa: PLR2004 - minutes in an hour
