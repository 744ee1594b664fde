"""A silent trial: what is shown, what is kept, what is scored."""

import csv
import json

import pytest
from typer.testing import CliRunner

from client.cli import app
from client.prediction.silent import kept_file
from client.privacy.records.audit_log import log_of
from mmare.errors import DataError, InputError
from tests.client.prediction.conftest import table_of

PATIENTS = "patient_id,t1,t2\nanna,a.nii.gz,\nbea,a.nii.gz,b.nii.gz\n"


def predict(site, package, *options):
    arguments = [package.sealed.source, "--site", site.folder / "site.toml", *options]
    return CliRunner().invoke(app, ["predict", *map(str, arguments)])


@pytest.mark.parametrize("form", ["csv", "jsonl"])
def test_a_silent_trial_shows_inputs_keeps_outputs_and_scores_them_later(scans, tmp_path, form):
    site, package = scans
    out = tmp_path / f"new.{form}"
    options = ("--silent", "--patients", table_of(site, PATIENTS), "--out", out)
    for _ in range(2):  # a patient who is predicted again counts once
        result = predict(site, package, *options)
        assert result.exit_code == 0, result.output
    text = out.read_text()
    rows = list(csv.DictReader(text.splitlines())) if form == "csv" else [*map(json.loads, text.splitlines())]
    assert [row["patient_id"] for row in rows] == ["anna", "bea"]
    assert not {
        name for name in rows[0] if name.startswith(("call", "prob", "uncal", "set", "prior", "shap"))
    }
    assert sorted(path.name for path in tmp_path.glob("new.*")) == [out.name]  # no page
    kept = [json.loads(line) for line in kept_file(package, site).read_text().splitlines()]
    assert [line["patient_id"] for line in kept] == ["anna", "bea"]
    assert kept_file(package, site).stat().st_mode & 0o77 == 0
    outcomes = table_of(site, "patient_id,label\nanna,yes\nbea,no\n", "outcomes.csv")
    scored = predict(site, package, "--silent", "--labels", outcomes, "--out", out)
    assert scored.exit_code == 0, scored.output
    line = list(log_of(site).lines())[-1]["scores"]
    brier = sum((each["probability"]["yes"] - (each["patient_id"] == "anna")) ** 2 for each in kept) / 2
    assert (line["patients"], line["brier"]) == (2, pytest.approx(brier))


def test_what_would_show_a_silent_prediction_is_refused(scans, tmp_path):
    site, package = scans
    options = ("--silent", "--patients", table_of(site, PATIENTS), "--out", tmp_path / "new.csv")
    result = predict(site, package, *options, "--fhir", tmp_path / "bundle.json")
    assert isinstance(result.exception, InputError)
    assert "--silent shows no prediction" in str(result.exception)
    assert not kept_file(package, site).exists()
    outcomes = table_of(site, "patient_id,label\nanna,yes\n", "outcomes.csv")
    scored = predict(site, package, "--silent", "--labels", outcomes, "--out", tmp_path / "new.csv")
    assert isinstance(scored.exception, DataError)
    assert "predict first" in str(scored.exception)
