"""The page of predicted times or numbers; it names patients and stays at the site."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Final

from client.prediction.predict import horizons_of
from client.prediction.written.shared import page_of_any, row_of_any
from mmare.package.answers import NUMBER, medians

if TYPE_CHECKING:
    from collections.abc import Callable
    from datetime import datetime

    from client.prediction.predict import Predictions

__all__ = ["measured_page"]

WIDTH, HEIGHT = 160, 60  # of a curve, pixels
_STEP: Final = 4  # bins of the time between points that are drawn


def measured_page(
    found: Predictions, made: datetime | None, render: Callable[[str, dict[str, Any]], str]
) -> str:
    """The page as HTML, from a template by ``render``."""
    study = found.package.study
    spec = study.survival or study.regression
    return render(
        "measured.html.j2",
        {
            **page_of_any(found, made),
            "unit": spec.unit if spec else "",
            "of_times": study.survival is not None,
            "follow_up": f"{study.survival.follow_up:g}" if study.survival else "",
            "rows": [_row(found, row) for row in range(len(found.inputs.patients))],
            "width": WIDTH,
            "height": HEIGHT,
        },
    )


def _row(found: Predictions, row: int) -> dict[str, Any]:
    """One patient: answers, curve, and what the last answer rests on."""
    study, values = found.package.study, found.values[row].tolist()
    content: dict[str, Any] = {
        **row_of_any(found, row),
        "shares": [],
        "prior": None if found.prior is None else float(found.prior[-1]),
    }
    if study.survival is None:
        content["answers"] = [(NUMBER, f"{values[0]:.4g}")]
    else:
        horizons = horizons_of(study)
        content["answers"] = [
            (f"risk until {time} {unit}", f"{100 * value:.1f} %")
            for (_, time, unit), value in zip(horizons, values, strict=True)
        ]
        curve = found.curves[row]
        content["median"] = medians(study, curve[None])[0]
        drawn = curve[::_STEP].tolist()
        content["points"] = " ".join(
            f"{WIDTH * place / (len(drawn) - 1):.1f},{HEIGHT * (1 - left):.1f}"
            for place, left in enumerate(drawn)
        )
    if found.shares is not None:
        shares = found.shares[row, :, -1].tolist()
        content["shares"] = [
            (name, share) for (name, there), share in zip(content["present"], shares, strict=True) if there
        ]
    return content
