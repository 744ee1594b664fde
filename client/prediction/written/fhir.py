"""Predictions as FHIR R4B: a Bundle of RiskAssessments, the Device that made them and their Provenance.

https://hl7.org/fhir/R4B/riskassessment.html. Resources are built and validated by ``fhir.resources``, which
the extra ``fhir`` installs.
"""

from __future__ import annotations

import uuid
from datetime import UTC, datetime
from decimal import Decimal
from typing import TYPE_CHECKING, Any, Final

from client.prediction.written.table import record
from mmare.errors import InputError
from sites.manifest import ID

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from client.prediction.predict import Predictions

__all__ = ["fhir_bundle"]

_DIGITS: Final = Decimal("0.000001")
_AGENT: Final = "http://terminology.hl7.org/CodeSystem/provenance-participant-type"


def fhir_bundle(
    found: Predictions, lines: Sequence[Mapping[str, Any]], made: datetime | None = None
) -> bytes:
    """The JSON of a collection: the device, then assessment and provenance of each patient.

    Assessments are preliminary; a patient is named by the id of the site's table alone.

    Args:
        found: The predictions.
        lines: Of the audit log, a patient each: they name the input by a keyed digest.
        made: When; now by default.

    Raises:
        InputError: If ``fhir.resources`` is not installed.
    """
    try:
        from fhir.resources.R4B.bundle import Bundle  # noqa: PLC0415 - optional, and a second to import
    except ImportError:
        raise InputError("--fhir needs a further package: pip install 'federated-mmare[fhir]'") from None
    moment = (made or datetime.now(UTC)).isoformat(timespec="seconds")
    device = _device(found)
    entries = [_entry(device)]
    for row, line in enumerate(lines):
        assessment = _assessment(found, row, device, moment)
        entries += [_entry(assessment), _entry(_provenance(assessment, device, line, moment))]
    whole = {"resourceType": "Bundle", "type": "collection", "timestamp": moment, "entry": entries}
    text: str = Bundle.model_validate(whole).model_dump_json(indent=1)
    return text.encode() + b"\n"


def _entry(resource: dict[str, Any]) -> dict[str, Any]:
    return {"fullUrl": _url(resource), "resource": resource}


def _url(resource: Mapping[str, Any]) -> str:
    return f"urn:uuid:{resource['id']}"


def _id(*parts: str) -> str:
    return str(uuid.uuid5(uuid.NAMESPACE_OID, "/".join(parts)))


def _device(found: Predictions) -> dict[str, Any]:
    package = found.package
    return {
        "resourceType": "Device",
        "id": _id("device", package.digest),
        "identifier": [{"type": {"text": "SHA-256 of the model package"}, "value": package.digest}],
        "status": "active",
        "deviceName": [{"name": package.study.name, "type": "model-name"}],
        "type": {"text": "machine learning model"},
        "version": [
            {"type": {"text": "run"}, "value": package.facts.run},
            {"type": {"text": "study hash"}, "value": package.facts.study_hash},
        ],
        "note": [{"text": package.facts.notice}],
    }


def _assessment(found: Predictions, row: int, device: Mapping[str, Any], moment: str) -> dict[str, Any]:
    told = record(found, row)
    shares = "" if told["shapley"] is None else f"; {_rests_on(told)}"
    calibrated = "calibrated" if found.package.calibration is not None else "not calibrated"
    notes = [
        found.package.facts.notice,
        f"called {told['call']}",
        f"examinations: {', '.join(told['modalities'])}",
        *([] if told["set"] is None else [f"prediction set: {', '.join(told['set']) or 'none'}"]),
        *told["warnings"],
    ]
    return {
        "resourceType": "RiskAssessment",
        "id": _id("assessment", device["id"], told[ID], moment),
        "status": "preliminary",
        "method": {"text": found.package.study.model.name},
        "subject": {"type": "Patient", "identifier": {"value": told[ID]}},
        "occurrenceDateTime": moment,
        "performer": {"reference": _url(device), "type": "Device"},
        "prediction": [
            {
                "outcome": {"text": name},
                "probabilityDecimal": Decimal(value).quantize(_DIGITS),
                "rationale": f"{calibrated} probability{shares}",
            }
            for name, value in told["probability"].items()
        ],
        "note": [{"text": text} for text in notes],
    }


def _rests_on(told: Mapping[str, Any]) -> str:
    """Shapley values of the called class, as text."""
    parts = [f"{name} {told['shapley'][name][told['call']]:+.3f}" for name in told["modalities"]]
    return (
        f"Shapley values for {told['call']}, from a prior of {told['prior'][told['call']]:.3f}: "
        + ", ".join(parts)
    )


def _provenance(
    assessment: Mapping[str, Any], device: Mapping[str, Any], line: Mapping[str, Any], moment: str
) -> dict[str, Any]:
    return {
        "resourceType": "Provenance",
        "id": _id("provenance", assessment["id"]),
        "target": [{"reference": _url(assessment)}],
        "recorded": moment,
        "agent": [
            {
                "type": {"coding": [{"system": _AGENT, "code": "assembler"}]},
                "who": {"reference": _url(device), "type": "Device"},
            }
        ],
        "entity": [
            {
                "role": "source",
                "what": {
                    "identifier": {"value": line["input"]},
                    "display": "keyed digest of the patient's vectors, as in the site's audit log",
                },
            }
        ],
    }
