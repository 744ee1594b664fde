"""Packages of times and numbers: released, and predicted with on a site's table and in a frame."""

import json

import pandas as pd
import pytest
import torch

from client.prediction.notebook import load_package
from client.prediction.run import predict_site
from client.prediction.scores import score
from client.prediction.written.table_format import Format
from mmare.errors import InputError
from mmare.metrics.survival_curves import kaplan_meier
from mmare.package.answers import medians
from mmare.package.essentials import essentials
from server.monitoring.followed_run import read_run
from server.release.decide import PointRule, Rule
from server.release.release import release_model
from sites.config import load_site
from tests.federations import run_nodes
from tests.simulation import test_regression, test_survival


def released(folder, prepare, **settings):
    assert prepare(folder).exit_code == 0
    wanted = [f"{key.replace('__', '.')}={value}" for key, value in settings.items()]
    run_nodes(
        folder / "fed", folder / "run", settings=["training.rounds=3", "federation.min_sites=2", *wanted]
    )
    release_model(folder / "run", folder / "model.zip")
    return folder


@pytest.fixture(scope="module")
def times(tmp_path_factory):
    folder = tmp_path_factory.mktemp("times")
    return released(folder, test_survival.prepared, survival__hazard="cox", survival__horizons="[12.0, 24.0]")


@pytest.fixture(scope="module")
def numbers(tmp_path_factory):
    return released(tmp_path_factory.mktemp("numbers"), test_regression.prepare)


def frame_of(folder):
    raw = pd.read_csv(folder / "t.csv").rename(columns={"id": "patient_id"})
    raw["lab"] = raw["lab"].astype(str)  # a column of the modality's own name: text is no vector
    raw.loc[0, "lab"] = None
    return raw


def test_a_frame_gets_risks_a_curve_and_a_median(times):
    package = load_package(times / "model.zip")
    found = package.predict(frame_of(times))
    risks = found[["risk_12", "risk_24"]]
    assert ((risks > 0) & (risks < 1)).all(axis=None)
    assert (found["risk_24"] > found["risk_12"]).all()
    follow_up = package.package.study.survival.follow_up
    curve = found[[name for name in found if name.startswith("survival_")]]
    assert (curve.iloc[:, 0] == 1).all()
    assert (curve.diff(axis=1).iloc[:, 1:] <= 0).all(axis=None)
    assert curve.columns[-1] == f"survival_{follow_up:g}"
    late = found["median"].dropna()
    assert ((late > 0) & (late <= follow_up)).all()
    assert ((curve.iloc[:, -1] > 0.5) == found["median"].isna()).all()
    shares = found[[f"shapley_risk_24_{name}" for name in ("exam", "lab")]].sum(axis=1)
    pd.testing.assert_series_equal(shares, found["risk_24"] - found["prior_risk_24"], check_names=False)
    assert found["shapley_risk_24_lab"][0] == 0
    assert found["pattern"][0] == "10"


def test_shares_start_from_the_curve_of_the_validation_rows(times):
    package = load_package(times / "model.zip").package
    state = package.model.task.read(read_run(times / "run").states["validation"]["pooled"])
    censored, events = state.histogram.sum(dim=2).double()
    edges = [*package.model.task.edges.values()]
    expected = 1 - kaplan_meier(events, censored)[edges]
    assert package.prior == pytest.approx(expected.tolist())


def test_a_frame_gets_a_number(numbers):
    found = load_package(numbers / "model.zip").predict(frame_of(numbers))
    shares = found[[f"shapley_value_{name}" for name in ("exam", "lab")]].sum(axis=1)
    pd.testing.assert_series_equal(shares, found["value"] - found["prior_value"], check_names=False)
    assert 20 < found["prior_value"][0] < 92
    assert "call" not in found


@pytest.mark.parametrize("kind", ["times", "numbers"])
def test_a_site_writes_a_table_and_a_page_and_logs_them(kind, request):
    folder = request.getfixturevalue(kind)
    package = load_package(folder / "model.zip")
    site = load_site(next(iter(sorted(folder.glob("fed/*/site.toml")))))
    out = site.folder / "told.csv"
    found = predict_site(package.package, site, None, out, Format.CSV)
    told = pd.read_csv(out)
    answers = list(package.package.answers)
    assert told[answers].to_numpy() == pytest.approx(found.values.numpy())
    page = out.with_suffix(".html").read_text()
    assert page.count("<tr>") == len(told) + 1
    assert ("Free of the event" in page) == (kind == "times")
    lines = [json.loads(line) for line in (site.folder / "audit.jsonl").read_text().splitlines()]
    assert [len(line["prediction"]["values"]) for line in lines[-len(told) :]] == [len(answers)] * len(told)
    predict_site(package.package, site, None, site.folder / "told.jsonl", Format.JSONL)
    entry = json.loads((site.folder / "told.jsonl").read_text().splitlines()[0])
    assert entry[answers[0]] == pytest.approx(told[answers[0]][0])


@pytest.mark.parametrize("kind", ["times", "numbers"])
def test_the_card_is_of_the_task(kind, request):
    package = load_package(request.getfixturevalue(kind) / "model.zip").package
    words = {"times": ("risk of the event until 12, 24 months", "concordance"), "numbers": ("number", "R²")}
    for page in ("README.md", "card.html", "tripod-ai.md"):
        text = package.sealed.files[page].decode()
        assert "probabilities of" not in text
        assert all(word in text for word in words[kind]) or page == "tripod-ai.md"
    assert words[kind][0] in essentials(package)
    assert "operating_point" in package.facts.not_stated


def test_what_is_of_classes_is_refused_by_name(times, tmp_path):
    package = load_package(times / "model.zip").package
    for options, name in (
        ({"onnx": True}, "--onnx"),
        ({"bundle": tmp_path / "bundle"}, "--monai-bundle"),
        ({"rule": PointRule(Rule.YOUDEN)}, "an operating point"),
    ):
        with pytest.raises(InputError, match=f"{name} is of classes, found a run of task survival"):
            release_model(times / "run", tmp_path / "other", **options)
    site = load_site(next(iter(sorted(times.glob("fed/*/site.toml")))))
    for options in ({"fhir": tmp_path / "f.json"}, {"dicom_sr": tmp_path / "sr"}, {"silent": True}):
        with pytest.raises(InputError, match="is of classes, found a model of task survival"):
            predict_site(package, site, None, tmp_path / "out.csv", Format.CSV, **options)
    with pytest.raises(InputError, match="--labels scores classes, found a model of task survival"):
        score(package, tmp_path / "out.csv", Format.CSV, tmp_path / "labels.csv")
    assert not any(tmp_path.iterdir())


def test_a_median_lies_between_the_edges_that_half_of_a_curve_lies_between(times):
    study = load_package(times / "model.zip").package.study
    curve = torch.linspace(1, 0.2, 129)[None].double()
    (found,) = medians(study, curve)
    assert found == pytest.approx(0.5 / 0.8 * study.survival.follow_up)
    assert medians(study, torch.full((1, 129), 0.9)) == [None]
