"""The monthly page, from lines of the audit log."""

import json

import pandas as pd
import pytest
from typer.testing import CliRunner

from client.cli import app
from client.prediction.drift import drift_page, months_of, scorings_of
from client.prediction.run import predict_site
from client.prediction.written.table_format import Format
from client.privacy.records.audit_log import log_of
from mmare.errors import InputError, RunError
from tests.client.prediction.conftest import table_of


def test_a_month_sums_up_what_was_predicted(scans, tmp_path):
    site, package = scans
    table = table_of(site, "patient_id,t1,t2\nanna,a.nii.gz,\nbea,a.nii.gz,b.nii.gz\n")
    for _ in range(2):  # the same patients a second time
        found = predict_site(package, site, table, tmp_path / "new.csv", Format.CSV)
    ((digest, months),) = months_of(site).items()
    assert digest == package.digest
    (drift,) = months.values()
    assert drift.patients == 2
    assert drift.patterns == {"10": 1, "11": 1}
    assert drift.never == 2  # the package tells of no pattern at all
    assert drift.distance == {}  # and of no moments
    calls = [package.study.classes[call] for call in found.judgement.call.tolist()]
    assert drift.calls == {name: calls.count(name) for name in calls}


def test_months_are_apart_and_the_page_says_never_in_red(scans, tmp_path):
    site, package = scans
    table = table_of(site, "patient_id,t1,t2\nanna,a.nii.gz,\n")
    predict_site(package, site, table, tmp_path / "new.csv", Format.CSV)
    log = log_of(site).path
    text = log.read_text()
    earlier = json.loads(text)
    earlier["time"] = "2026-01-31T23:59:59.000+00:00"
    earlier["prediction"] |= {"share": 0.4, "seen": 4, "distance": {"t1": 2.0}}
    log.write_text(json.dumps(earlier) + "\n" + text)
    (months,) = months_of(site).values()
    assert next(iter(months)) == "2026-01"
    assert len(months) == 2
    assert months["2026-01"].presence == pytest.approx(0.6)
    page = drift_page(site)
    assert '<th scope="row">2026-01</th>' in page
    assert '<span class="alarm">2.00</span>' in page
    assert '<span class="alarm">never</span>' in page
    assert '<th scope="row"><code>10</code></th>' in page  # no distance was told of t1
    log.write_text("".join(json.dumps(earlier) + "\n" for _ in range(2)))
    assert '<th scope="row">t1 <span class="small">10</span></th>' in drift_page(site)


def test_scores_are_logged_without_a_patient_and_shown_month_by_month(scans, tmp_path):
    site, package = scans
    table = table_of(site, "patient_id,t1,t2\nanna,a.nii.gz,\nbea,a.nii.gz,b.nii.gz\n")
    out = tmp_path / "new.csv"
    predict_site(package, site, table, out, Format.CSV)
    outcomes = table_of(site, "patient_id,label\nanna,yes\nbea,no\n", "outcomes.csv")
    options = ["--site", site.folder / "site.toml", "--out", out, "--labels", outcomes]
    result = CliRunner().invoke(app, ["predict", *map(str, [package.sealed.source, *options])])
    assert result.exit_code == 0, result.output
    line = json.loads(log_of(site).path.read_text().splitlines()[-1])
    assert (line["event"], line["scores"]["patients"], line["scores"]["fewest"]) == ("scored", 2, 1)
    assert "anna" not in json.dumps(line)
    ((_, scores),) = scorings_of(site)[package.digest]
    chance = pd.read_csv(out)["probability_yes"]
    assert scores.gaps["yes"][0] == pytest.approx(0.5 - chance.mean())
    page = drift_page(site)
    assert "Once outcomes were known" in page
    assert f"{scores.metrics['brier']:.3f}" in page


def test_without_a_prediction_there_is_no_page(scans, tmp_path):
    site, _ = scans
    with pytest.raises(RunError, match="no prediction yet"):
        drift_page(site)
    out = tmp_path / "drift.html"
    result = CliRunner().invoke(app, ["drift", str(site.folder / "site.toml"), "--out", str(out)])
    assert isinstance(result.exception, RunError)
    assert not out.exists()


def test_the_page_replaces_nothing_that_the_site_needs(scans, tmp_path):
    site, package = scans
    table = table_of(site, "patient_id,t1,t2\nanna,a.nii.gz,\n")
    predict_site(package, site, table, tmp_path / "new.csv", Format.CSV)
    kept = [site.folder / "site.toml", site.manifest, log_of(site).path]
    before = [path.read_bytes() for path in kept]
    for path in kept:
        options = ["drift", str(site.folder / "site.toml"), "--out", str(path)]
        assert isinstance(CliRunner().invoke(app, options).exception, InputError)
    assert [path.read_bytes() for path in kept] == before
