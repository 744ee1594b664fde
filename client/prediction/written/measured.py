"""Predicted times and numbers of patients, as lines of a table: risks, curve and median, or a value."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from client.prediction.written.shared import basis_of
from mmare.package.answers import NUMBER, curve_times, medians
from sites.manifest import ID

if TYPE_CHECKING:
    from torch import Tensor

    from client.prediction.predict import Predictions

__all__ = ["measured_flat", "measured_record"]


def measured_record(found: Predictions, row: int) -> dict[str, Any]:
    """All that is told of one patient, as a line of the JSON form."""
    package = found.package

    def named(values: Tensor) -> dict[str, float]:
        return dict(zip(package.answers, values.tolist(), strict=True))

    return {
        ID: found.inputs.patients[row],
        **_told(found, row),
        **basis_of(found, row, named),
    }


def _told(found: Predictions, row: int) -> dict[str, Any]:
    study, values = found.package.study, found.values[row].tolist()
    if study.survival is None:
        return {NUMBER: values[0]}
    curve = found.curves[row]
    return {
        **dict(zip(found.package.answers, values, strict=True)),
        "median": medians(study, curve[None])[0],
        "curve": {
            f"{time:g}": left for time, left in zip(curve_times(study), curve[::8].tolist(), strict=True)
        },
    }


def measured_flat(entry: dict[str, Any]) -> dict[str, Any]:
    """A `measured_record` as a row: the curve, shares and distances in columns of their own."""
    single = ("pattern", "seen")
    return {
        **{key: value for key, value in entry.items() if key == ID or key.startswith("risk_")},
        **{key: entry[key] for key in (NUMBER, "median") if key in entry},
        **{f"survival_{time}": left for time, left in entry.get("curve", {}).items()},
        "modalities": "+".join(entry["modalities"]),
        **{key: entry[key] for key in single},
        **{f"prior_{name}": value for name, value in (entry["prior"] or {}).items()},
        **{
            f"shapley_{name}_{modality}": value
            for modality, shares in (entry["shapley"] or {}).items()
            for name, value in shares.items()
        },
        **{f"distance_{modality}": far for modality, far in entry["distance"].items()},
        "warnings": "; ".join(entry["warnings"]),
        "model": entry["model"],
        "notice": entry["notice"],
    }
