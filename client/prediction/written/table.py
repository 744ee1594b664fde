"""Predictions as a table, one row a patient, and the same table read back and scored."""

from __future__ import annotations

import io
import json
from typing import TYPE_CHECKING, Any

import pandas as pd

from client.prediction.written.measured import measured_flat, measured_record
from client.prediction.written.shared import basis_of
from client.prediction.written.table_format import Format
from mmare.study.choices import TaskName
from sites.manifest import ID

if TYPE_CHECKING:
    from torch import Tensor

    from client.prediction.predict import Predictions

__all__ = ["flat", "record", "table_bytes", "told_classes"]

_BETWEEN = "; "  # of sentences in a cell
_BLIND = (ID, "modalities", "pattern", "seen", "distance", "warnings", "model", "notice")  # no output


def record(found: Predictions, row: int) -> dict[str, Any]:
    """All that is told of one patient, as a line of the JSON form."""
    if found.package.study.task is not TaskName.CLASSIFICATION:
        return measured_record(found, row)
    study, judged = found.package.study, found.judgement
    in_set = None if judged.in_set is None else judged.in_set[row].tolist()

    def by_class(values: Tensor) -> dict[str, float]:
        return dict(zip(study.classes, values.tolist(), strict=True))

    return {
        ID: found.inputs.patients[row],
        "call": study.classes[int(judged.call[row])],
        "probability": by_class(judged.probability[row]),
        "uncalibrated": by_class(judged.raw[row]),
        "set": None
        if in_set is None
        else [name for name, is_in in zip(study.classes, in_set, strict=True) if is_in],
        **basis_of(found, row, by_class),
    }


def told_classes(found: Predictions) -> list[int]:
    """Classes whose shares a reader needs: of two the positive one, since the other's are its negatives."""
    study = found.package.study
    if len(study.classes) > 2:  # noqa: PLR2004 - two classes
        return list(range(len(study.classes)))
    return [1 if study.positive_index is None else study.positive_index]


def flat(found: Predictions) -> pd.DataFrame:
    """One row a patient: call, probabilities, set, modalities, shares, distances, warnings; lists joined."""
    if found.package.study.task is not TaskName.CLASSIFICATION:
        rows = range(len(found.inputs.patients))
        return pd.DataFrame([measured_flat(measured_record(found, row)) for row in rows])
    told = [found.package.study.classes[index] for index in told_classes(found)]
    return pd.DataFrame([_flat(record(found, row), told) for row in range(len(found.inputs.patients))])


def _flat(entry: dict[str, Any], told: list[str]) -> dict[str, Any]:
    joined = {key: None if entry[key] is None else "+".join(entry[key]) for key in ("set", "modalities")}
    return {
        ID: entry[ID],
        "call": entry["call"],
        **{f"probability_{name}": value for name, value in entry["probability"].items()},
        **{f"uncalibrated_{name}": value for name, value in entry["uncalibrated"].items()},
        **joined,
        "pattern": entry["pattern"],
        "seen": entry["seen"],
        **{f"prior_{name}": entry["prior"][name] for name in told},
        **{
            f"shapley_{name}_{modality}": shares[name]
            for name in told
            for modality, shares in (entry["shapley"] or {}).items()
        },
        **{f"distance_{modality}": far for modality, far in entry["distance"].items()},
        "warnings": _BETWEEN.join(entry["warnings"]),
        "model": entry["model"],
        "notice": entry["notice"],
    }


def table_bytes(found: Predictions, form: Format, *, silent: bool = False) -> bytes:
    """The content of the file; a ``silent`` one tells nothing of what the model says."""
    if form is Format.JSONL:
        entries = (record(found, row) for row in range(len(found.inputs.patients)))
        lines = [{key: each[key] for key in (_BLIND if silent else each)} for each in entries]
        return "".join(
            json.dumps(line, ensure_ascii=False, allow_nan=False) + "\n" for line in lines
        ).encode()
    frame = flat(found).astype({"seen": "Int64"})
    if silent:
        frame = frame[[name for name in frame if name in _BLIND or str(name).startswith("distance_")]]
    if form is Format.CSV:
        return frame.to_csv(index=False, lineterminator="\n").encode()
    buffer = io.BytesIO()
    frame.to_parquet(buffer, index=False)
    return buffer.getvalue()
