"""From a released model to predictions of a hospital's patients, on the sites of the run itself."""

import hmac
import json

import numpy as np
import pandas as pd
import pytest
import torch
from typer.testing import CliRunner

from client.cli import app
from client.data.dataset import load_data
from client.prediction.run import predict_site
from client.prediction.written.table_format import Format
from client.privacy.records.audit_log import log_of
from mmare.errors import InputError, RunError
from mmare.metrics.state import MetricState, merge_all
from mmare.package.package import read_package
from mmare.wire.messages import Split
from server.release.release import release_model
from sites.config import load_site
from tests.packages import table_run

MODALITIES = ("exam", "lab")


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    # Not calibrated, so that scores are those of the run's result.
    folder = table_run(tmp_path_factory.mktemp("hospitals"), settings=("privacy.extra=[]",))
    release_model(folder, folder.parent / "model.zip")
    return folder


@pytest.fixture(scope="module")
def package(run):
    return read_package(run.parent / "model.zip")


def site_of(run, name="ash"):
    return load_site(run.parent / "fed" / name / "site.toml")


def new_table(run, name, split=Split.TEST, columns=("age", "sex", "crp", "ldl")):
    """Patients of a split as a hospital has them: raw columns, no outcome; in the manifest's order."""
    site = site_of(run, name)
    raw = pd.read_csv(run.parent / "patients.csv", dtype=str).set_index("id")
    manifest = pd.read_csv(site.manifest, dtype=str)
    ids = manifest.loc[manifest["split"] == split.value, "patient_id"]
    table = site.folder / f"new-{split.value}.csv"
    raw.loc[ids, list(columns)].rename_axis("patient_id").to_csv(table)
    return table


@pytest.fixture(scope="module")
def predicted(run, package):
    """Of the test rows of every site."""
    return {
        name: predict_site(
            package, site_of(run, name), new_table(run, name), run.parent / f"{name}.csv", Format.CSV
        )
        for name in ("ash", "birch", "cedar")
    }


def test_the_test_rows_of_the_sites_give_the_result_of_the_run(run, package, predicted):
    metrics = json.loads((run / "result.json").read_text())["metrics"]["test"]
    positive, states = package.study.positive_index, {}
    for name, found in predicted.items():
        data = load_data(site_of(run, name), package.study)
        states[name] = MetricState.of(found.logits, data.label[data.rows[Split.TEST]])
        own = states[name].compute(positive)
        assert {key: metrics["sites"][name][key] for key in own} == own
    pooled = merge_all(states.values(), len(package.study.classes)).compute(positive)
    assert {key: metrics["pooled"][key] for key in pooled} == pooled


def test_vectors_of_the_site_and_columns_of_the_table_give_the_same(run, package, predicted):
    bare = new_table(run, "ash", columns=())
    found = predict_site(package, site_of(run), bare, run.parent / "vectors.csv", Format.CSV)
    assert torch.equal(found.logits, predicted["ash"].logits)
    assert found.seen == predicted["ash"].seen


def test_shares_sum_to_the_prediction_less_the_prior_of_training(run, package, predicted):
    manifests = [pd.read_csv(site_of(run, name).manifest) for name in predicted]
    train = pd.concat([each[each["split"] == "train"] for each in manifests])
    frequency = [np.mean(train["label"] == name) for name in package.study.classes]
    for found in predicted.values():
        torch.testing.assert_close(found.prior, torch.tensor(frequency, dtype=torch.float64))
        wanted = found.judgement.probability - found.prior
        torch.testing.assert_close(found.shares.sum(dim=1), wanted, rtol=0, atol=1e-12)
        assert bool((found.shares[~found.inputs.present] == 0).all())


def test_the_three_formats_say_the_same(run, package, predicted):
    table, site = new_table(run, "ash"), site_of(run)
    frames = {}
    for form in Format:
        out = run.parent / f"same.{form}"
        predict_site(package, site, table, out, form)
        if form is Format.JSONL:
            lines = [json.loads(line) for line in out.read_text().splitlines()]
            frames[form] = pd.DataFrame(
                [
                    [line["patient_id"], line["call"], *line["probability"].values(), line["seen"]]
                    for line in lines
                ]
            )
        else:
            read = pd.read_csv if form is Format.CSV else pd.read_parquet
            whole = read(out)
            frames[form] = whole[["patient_id", "call", "probability_well", "probability_ill", "seen"]]
        frames[form].columns = range(5)
    for frame in frames.values():
        pd.testing.assert_frame_equal(frame, frames[Format.JSONL], check_dtype=False, rtol=0, atol=0)
    assert frames[Format.CSV][3].tolist() == predicted["ash"].judgement.probability[:, 1].tolist()


def test_every_prediction_is_a_line_of_the_audit_log_that_names_nobody(run, package):
    site, table = site_of(run, "birch"), new_table(run, "birch", Split.VAL)
    before = len(list(log_of(site).lines()))
    found = predict_site(package, site, table, run.parent / "logged.csv", Format.CSV)
    lines = list(log_of(site).lines())[before:]
    assert log_of(site).examine()[1] == ""
    assert len(lines) == len(found.inputs.patients)
    secret = bytes.fromhex((site.folder / "site.secret").read_text().strip())
    for row, (line, patient) in enumerate(zip(lines, found.inputs.patients, strict=True)):
        said = line["prediction"]
        assert line["event"] == "predicted"
        assert said["model"] == package.digest
        assert said["presence"] == found.patterns[row]
        assert said["probability"] == pytest.approx(found.judgement.probability[row].tolist(), abs=1e-6)
        assert said["patient"] == hmac.digest(secret, patient.encode(), "sha256").hex()[:16]
        text = json.dumps(line)
        assert patient not in {*text.split('"')}
        assert str(site.folder) not in text
    again = predict_site(package, site, table, run.parent / "logged.csv", Format.CSV)
    assert torch.equal(again.logits, found.logits)
    repeated = list(log_of(site).lines())[-len(lines) :]
    assert [line["prediction"]["input"] for line in repeated] == [
        line["prediction"]["input"] for line in lines
    ]


def test_what_cannot_be_logged_is_not_told(run, package, tmp_path):
    site = site_of(run, "cedar")
    log = log_of(site)
    predict_site(package, site, new_table(run, "cedar"), tmp_path / "first.csv", Format.CSV)
    text = log.path.read_text()
    log.path.write_text(text.replace('"call":"', '"call":"not ', 1))
    try:
        with pytest.raises(RunError, match=r"audit\.jsonl: .*was changed"):
            predict_site(package, site, new_table(run, "cedar"), tmp_path / "second.csv", Format.CSV)
    finally:
        log.path.write_text(text)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["first.csv", "first.html"]


def test_a_combination_that_nobody_had_is_said_in_red(run, package, tmp_path):
    """Everybody in training had an exam; one patient has none, another a value in other units."""
    assert "01" not in package.patterns
    table = tmp_path / "new.csv"
    table.write_text("patient_id,age,sex,crp,ldl\nanna,,,3.1,2\nbea,50,f,3100,2\ncleo,50,f,3.1,2\n")
    found = predict_site(package, site_of(run), table, tmp_path / "out.csv", Format.CSV)
    assert found.patterns == ["01", "11", "11"]
    assert found.seen == [0, package.patterns["11"].n, package.patterns["11"].n]
    anna, bea, cleo = found.warnings
    assert anna == ("this combination of modalities was never seen in training",)
    assert len(bea) == 1
    assert bea[0].startswith("lab lies ")
    assert cleo == ()
    page = (tmp_path / "out.html").read_text()
    assert page.count('<span class="alarm">never</span>') == 1
    assert "research use, not for clinical decisions" in page
    assert page.count('<th scope="row">') == 3
    assert (tmp_path / "out.html").stat().st_mode & 0o077 == 0


def test_values_of_the_page_are_escaped(run, package, tmp_path):
    table = tmp_path / "new.csv"
    table.write_text('patient_id,age,sex,crp,ldl\n"<script>x</script>",50,f,3.1,2\n')
    predict_site(package, site_of(run), table, tmp_path / "out.csv", Format.CSV)
    assert "<script>" not in (tmp_path / "out.html").read_text()


@pytest.mark.parametrize(
    ("name", "sentence"),
    [
        pytest.param("table.csv", "holds the patients; choose another name", id="the table itself"),
        pytest.param("out.html", "--out names the table", id="the page"),
        pytest.param("none/out.csv", "no folder", id="no folder"),
        pytest.param("folder", "is a folder", id="a folder"),
    ],
)
def test_a_place_that_cannot_be_taken_is_refused(run, package, tmp_path, name, sentence):
    table = tmp_path / "table.csv"
    table.write_text("patient_id,age,sex,crp,ldl\nanna,50,f,3.1,2\n")
    (tmp_path / "folder").mkdir()
    with pytest.raises(InputError, match=sentence):
        predict_site(package, site_of(run), table, tmp_path / name, Format.CSV)
    assert table.read_text().startswith("patient_id")


@pytest.mark.parametrize(
    ("name", "more", "sentence"),
    [
        pytest.param("fed/ash/site.toml", {}, "holds the settings of the site", id="settings"),
        pytest.param("fed/ash/audit.jsonl", {}, "holds the audit log", id="audit log"),
        pytest.param("fed/ash/patients.csv", {}, "holds the patients", id="manifest"),
        pytest.param("fed/ash/lab.csv", {}, "holds lab", id="vectors"),
        pytest.param("model.zip", {}, "holds the model", id="model"),
        pytest.param("new.csv", {"fhir": "new.html"}, "new.html: holds the page", id="page"),
        pytest.param("new.csv", {"fhir": "new.csv"}, "new.csv: holds the table", id="table"),
        pytest.param("new.csv", {"dicom_sr": "new.html"}, "new.html: holds the page", id="reports"),
        pytest.param("new.csv", {"fhir": "a", "dicom_sr": "a"}, "a: holds the FHIR bundle", id="twice"),
        pytest.param("new.csv", {"fhir": "none/a"}, "none/a: no folder", id="no folder"),
    ],
)
@pytest.mark.usefixtures("predicted")
def test_no_place_is_taken_from_an_input_or_another_output(run, package, name, more, sentence):
    def files():
        return {path: path.read_bytes() for path in run.parent.rglob("*") if path.is_file()}

    table, before = new_table(run, "ash"), files()
    places = {option: run.parent / place for option, place in more.items()}
    with pytest.raises(InputError, match=sentence):
        predict_site(package, site_of(run), table, run.parent / name, Format.CSV, **places)
    assert files() == before | {table: table.read_bytes()}


def test_nothing_is_added_to_a_package_that_is_a_folder(run, tmp_path):
    release_model(run, tmp_path / "model")
    package = read_package(tmp_path / "model")
    with pytest.raises(InputError, match=r"out\.csv: holds the model"):
        predict_site(package, site_of(run), new_table(run, "ash"), tmp_path / "model/out.csv", Format.CSV)
    assert read_package(tmp_path / "model").digest == package.digest


RUNNER = CliRunner(env={"COLUMNS": "160", "NO_COLOR": "1"})


def command(run, *arguments):
    whole = ["predict", run.parent / "model.zip", "--site", site_of(run).folder / "site.toml", *arguments]
    result = RUNNER.invoke(app, [str(argument) for argument in whole])
    if result.exception is not None and not isinstance(result.exception, SystemExit):
        raise result.exception
    return result.output


def test_the_command_predicts_and_later_scores(run, predicted, tmp_path):
    table, out = new_table(run, "ash"), tmp_path / "new.csv"
    said = command(run, "--patients", table, "--out", out)
    assert f"{len(predicted['ash'].seen)} patients predicted" in said
    assert "research use, not for clinical decisions" in said
    assert "the probabilities are not calibrated" in said
    metrics = json.loads((run / "result.json").read_text())["metrics"]["test"]["sites"]["ash"]
    for form in Format:
        out = tmp_path / f"new.{form}"
        command(run, "--patients", table, "--out", out)
        scored = command(run, "--out", out, "--labels", site_of(run).manifest)
        assert f"AUC                   {metrics['auc']:.4f}" in scored
        assert f"Brier score           {metrics['brier']:.4f}" in scored
        assert f"balanced accuracy     {metrics['balanced_accuracy']:.4f}  of the calls" in scored
        assert f"{metrics['n']} patients scored; 0 predicted ones have no label" in scored


@pytest.mark.parametrize(
    ("harm", "sentence"),
    [
        pytest.param(lambda content: content[:-200], "cannot be read as a package", id="cut"),
        pytest.param(
            lambda content: content.replace(b"mmare-package/1", b"mmare-package/9"), "", id="format"
        ),
    ],
)
def test_a_harmed_package_predicts_nothing(run, tmp_path, harm, sentence):
    model = tmp_path / "model.zip"
    model.write_bytes(harm((run.parent / "model.zip").read_bytes()))
    words = ["predict", model, "--site", site_of(run).folder / "site.toml", "--out", tmp_path / "new.csv"]
    result = RUNNER.invoke(app, [str(word) for word in words])
    assert isinstance(result.exception, InputError)
    assert sentence in str(result.exception)
    assert [path.name for path in tmp_path.iterdir()] == ["model.zip"]
