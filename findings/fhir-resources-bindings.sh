#!/usr/bin/env bash
# fhir.resources 8.3.0 (R4B): what it builds without an error is not valid FHIR. It checks names, types, cardinality
# and "one of many" fields, but not required value sets (RiskAssessment.status), not invariants (ras-2: a decimal
# probability is at most 100) and not the form of a reference. Seen: three resources that FHIR forbids are made, one
# with both kinds of probability is refused.
set -euo pipefail
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
python3 -m venv "$folder/venv"
"$folder/venv/bin/pip" install --quiet fhir.resources==8.3.0
"$folder/venv/bin/python" - <<'PY'
from fhir.resources.R4B.riskassessment import RiskAssessment

VALID = {"status": "final", "subject": {"reference": "Patient/1"}}
CASES = {
    "a status of no value set": {"status": "perhaps"},
    "a probability of 250": {"prediction": [{"probabilityDecimal": 250}]},
    "a reference to nothing": {"subject": {"reference": "no reference !"}},
    "two kinds of probability": {"prediction": [{"probabilityDecimal": 0.5, "probabilityRange": {}}]},
}

seen = {}
for name, part in CASES.items():
    try:
        RiskAssessment(**{**VALID, **part})
        seen[name] = "made"
    except ValueError:
        seen[name] = "refused"
    print(f"{name}: {seen[name]}")
assert list(seen.values()) == ["made", "made", "made", "refused"], seen
PY
