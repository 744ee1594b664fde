"""The page of predicted times or numbers; it names patients and stays at the site."""

from __future__ import annotations

from datetime import UTC, datetime
from typing import TYPE_CHECKING, Any, Final

from client.prediction.predict import horizons_of
from mmare.package.answers import NUMBER, medians

if TYPE_CHECKING:
    from collections.abc import Callable

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
            "study": study,
            "digest": found.package.digest,
            "facts": found.package.facts,
            "made": f"{made or datetime.now(UTC):%Y-%m-%d %H:%M} UTC",
            "unit": spec.unit if spec else "",
            "of_times": study.survival is not None,
            "follow_up": f"{study.survival.follow_up:g}" if study.survival else "",
            "never": sum(seen == 0 for seen in found.seen),
            "warned": sum(bool(sentences) for sentences in found.warnings),
            "notes": found.notes[1:],
            "explained": found.shares is not None,
            "counted": found.package.patterns is not None,
            "rows": [_row(found, row) for row in range(len(found.inputs.patients))],
            "width": WIDTH,
            "height": HEIGHT,
        },
    )


def _row(found: Predictions, row: int) -> dict[str, Any]:
    """One patient: answers, curve, and what the last answer rests on."""
    study, values = found.package.study, found.values[row].tolist()
    content: dict[str, Any] = {
        "patient": found.inputs.patients[row],
        "present": [
            (modality.name, there)
            for modality, there in zip(study.modalities, found.inputs.present[row].tolist(), strict=True)
        ],
        "seen": found.seen[row],
        "warnings": found.warnings[row],
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
            (modality.name, share)
            for modality, share, there in zip(
                study.modalities, shares, found.inputs.present[row].tolist(), strict=True
            )
            if there
        ]
    return content
