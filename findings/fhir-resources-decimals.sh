#!/usr/bin/env bash
# FHIR's decimals keep their precision: 0.10 says more than 0.1, and a reader must give back the same digits.
# fhir.resources 8.3.0 keeps a Decimal in the object, and writes it as a binary number: its zeros are lost.
# Seen: 0.10 in JSON is read as Decimal("0.10") or as 0.1, and written as 0.1; 0.300 as 0.3.
set -euo pipefail
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
python3 -m venv "$folder/venv"
"$folder/venv/bin/pip" install --quiet fhir.resources==8.3.0
"$folder/venv/bin/python" - <<'PY'
import json
from decimal import Decimal

from fhir.resources.R4B.riskassessment import RiskAssessment

seen = {}
for digits in ("0.10", "0.300"):
    prediction = [{"probabilityDecimal": Decimal(digits)}]
    made = RiskAssessment(status="final", subject={"reference": "Patient/1"}, prediction=prediction)
    text = made.model_dump_json()
    again = RiskAssessment.model_validate_json('{"resourceType": "RiskAssessment", "status": "final", "subject": '
                                               '{"reference": "Patient/1"}, "prediction": [{"probabilityDecimal": %s}]}' % digits)
    written = [json.loads(each, parse_float=str)["prediction"][0]["probabilityDecimal"]
               for each in (text, again.model_dump_json())]
    seen[digits] = written
    print(f"{digits}: made and written {written[0]}, read and written {written[1]}")
assert seen == {"0.10": ["0.1", "0.1"], "0.300": ["0.3", "0.3"]}, seen
PY
