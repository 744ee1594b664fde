"""Time to an event, from a table to a report: pooled as if all rows lay together, small groups kept back."""

import io
import json
import re

import numpy as np
import pandas as pd
import pytest
import torch
from rich.console import Console
from typer.testing import CliRunner

from client.data.check import check_site, report_table
from client.data.dataset import SiteData, load_data
from client.training.evaluate import logits_of
from mmare.errors import DataError
from mmare.metrics.survival_curves import auc_until, kaplan_meier
from mmare.study.study import parse_study
from mmare.tasks.registry import task_of
from mmare.wire.messages import EVENT_TIMES, Split
from server.store.model_file import load_model
from simulation.cli import app
from simulation.gain import compare_runs
from simulation.report.run_report import write_report
from sites.federation import site_folders
from tests.federations import events, run_nodes, survival_study, tiny_federation

SITES = ("ash", "birch", "cedar")


@pytest.fixture(scope="module")
def federation(tmp_path_factory):
    return tiny_federation(tmp_path_factory.mktemp("federation") / "fed", survival_study())


@pytest.fixture(scope="module")
def run(federation, tmp_path_factory):
    out = tmp_path_factory.mktemp("runs") / "run"
    run_nodes(federation, out, settings=["training.rounds=3", "survival.horizons=[20, 40]"])
    return out


def result(out):
    return json.loads((out / "result.json").read_text())


def test_the_pooled_metrics_are_those_of_all_rows(federation, run):
    study, model = survival_study(), load_model(run / "model")
    data = SiteData.pooled([load_data(site, study) for site in site_folders(federation)])
    rows = data.rows[Split.TEST]
    logits = logits_of(model, data.embedding, rows, data.present[rows])
    state = model.task.state(logits, data.label[rows])
    test = result(run)["metrics"]["test"]
    for name, value in {**state.compute(), "auc_20": auc_until(state.histogram, 32)}.items():
        assert test["pooled"][name] == pytest.approx(value, rel=1e-9), name
    assert {"auc_20", "brier_40", "calibration_40"} <= set(test["sites"]["ash"])
    assert 0 < test["pooled"]["integrated_brier"] < 0.4
    left = model.task.survival(logits, torch.tensor([32]))[:, 0]
    censored, died = state.histogram.sum(dim=2).double()
    observed = 1 - kaplan_meier(died, censored)[32].item()
    assert test["pooled"]["calibration_20"] == pytest.approx(observed / (1 - left.mean().item()), rel=1e-4)
    assert [group["n"] for group in test["risk_groups"]["groups"]] == pytest.approx([state.n / 3] * 3, abs=4)
    assert sum(site["events"] for site in test["sites"].values()) == state.counts[1]
    assert sum(each["n"] for each in test["patterns"].values()) == state.n
    low, high = test["pooled"]["ci95"]["concordance"]
    assert low <= test["pooled"]["concordance"] <= high
    worst = min(SITES, key=lambda site: test["sites"][site]["concordance"])
    assert test["worst_site"] == {"site": worst, "concordance": test["sites"][worst]["concordance"]}


def test_the_cuts_come_from_the_events_of_all_sites(federation, run):
    (told,) = [each for each in events(run, "scaling") if each["modality"] == EVENT_TIMES]
    data = [load_data(site, survival_study()) for site in site_folders(federation)]
    assert told["n"] == sum(int((each.label[each.rows[Split.TRAIN]] % 2).sum()) for each in data)
    assert tuple(told["sites"]) == SITES
    cuts = load_model(run / "model").task.cuts
    assert (cuts.diff() > 0).all()
    assert not torch.equal(cuts, task_of(survival_study()).cuts)


def test_the_best_round_has_the_lowest_loss(run):
    losses = {each["round"]: each["metrics"]["pooled"]["log_loss"] for each in events(run, "validated")}
    assert result(run)["best_round"] == min(losses, key=losses.__getitem__)


def test_secure_sums_pool_the_same(federation, run, tmp_path):
    run_nodes(
        federation,
        tmp_path / "secure",
        settings=["training.rounds=3", "privacy.secure_sum=true", "federation.min_sites=3"],
    )
    plain, secure = (result(out)["metrics"]["test"]["pooled"] for out in (run, tmp_path / "secure"))
    assert (secure["n"], secure["events"]) == (plain["n"], plain["events"])
    assert secure["log_loss"] == pytest.approx(plain["log_loss"], abs=1e-3)
    assert secure["concordance"] == pytest.approx(plain["concordance"], abs=0.02)


def test_small_groups_stay_at_the_sites(federation, tmp_path):
    run_nodes(federation, tmp_path / "run", settings=["training.rounds=2", "privacy.min_count=5"])
    (states,) = events(tmp_path / "run", "states")
    for state in states["splits"]["test"]["sites"].values():
        for stratum in filter(None, state["strata"]):
            assert all(rows >= 5 for _, _, rows in stratum["cells"])
    (told,) = [each for each in events(tmp_path / "run", "scaling") if each["modality"] == EVENT_TIMES]
    assert told["n"] > 0
    assert result(tmp_path / "run")["metrics"]["test"]["pooled"]["concordance_error_bound"] is None


def test_the_report_is_of_times(run):
    page = write_report(run).read_text()
    for words in (
        "Concordance",
        "Log loss",
        "negative log-likelihood",
        "histogram of times",
        "AUC at 20 months",
        "Integrated Brier score",
        "Log-rank test",
    ):
        assert words in page
    for words in ("Balanced accuracy", "ECE", "Decision curve"):
        assert words not in page


def test_a_site_checks_patients_with_and_without_the_event(federation):
    study, (site, *_) = survival_study(), site_folders(federation)
    console = Console(width=200, record=True, file=io.StringIO())
    console.print(report_table(site, study, *check_site(site, study)))
    rows = pd.read_csv(site.manifest)
    counts = [((rows.split == split) & (rows.event == event)).sum() for split in Split for event in (0, 1)]
    (line,) = [line for line in console.export_text().splitlines() if "patients" in line]
    assert list(map(int, line.split()[1:])) == [len(rows), len(rows), *counts]


@pytest.mark.slow
def test_a_cox_model_of_sites_is_that_of_their_pooled_rows(tmp_path):
    content = survival_study().to_dict()
    content["survival"]["hazard"] = "cox"
    content |= {"model": {"name": "linear"}, "training": {"rounds": 6}}
    content["federation"] = {"strategy": "fedsgd", "deadline_s": 30}
    fed = tiny_federation(tmp_path / "fed", parse_study(content, "test"))
    models = []
    for mode in ("federated", "centralised"):
        run_nodes(fed, tmp_path / mode, mode=mode)
        models.append(load_model(tmp_path / mode / "model").state_dict())
    assert models[0].keys() == models[1].keys()
    for name, value in models[0].items():
        torch.testing.assert_close(value, models[1][name], rtol=1e-4, atol=1e-5, msg=name)
    assert models[0]["task.baseline"].abs().sum() > 0
    assert sum(value.abs().sum() for name, value in models[0].items() if "head.inputs" in name) > 0


@pytest.mark.slow
def test_sites_learn_what_they_gain_by_joining(federation, run, tmp_path):
    alone = tmp_path / "alone"
    settings = ["training.rounds=3", "survival.horizons=[20, 40]"]
    run_nodes(federation, alone, mode="local", settings=settings)
    found = compare_runs(run, alone)
    assert found["metric"] == "concordance"
    assert set(found["sites"]) == set(SITES)
    test = result(run)["metrics"]["test"]
    for site, row in found["sites"].items():
        assert row["n"] == test["sites"][site]["n"]
        bound = test["sites"][site]["concordance_error_bound"]
        assert row["first"] == pytest.approx(test["sites"][site]["concordance"], abs=bound)
        assert row["ci95"][0] <= row["difference"] <= row["ci95"][1]
    assert "Concordance on a site" in (run / "report.html").read_text()


TABLE = "id,site,months,died,age,lab\n" + "\n".join(
    f"p{row},{'east' if row % 2 else 'west'},{3 + row * 1.5},{int(row % 3 == 0)},{40 + row},{row % 5}"
    for row in range(40)
)
FLAGS = "--id-column id --site-column site --modality exam=age --modality lab=lab"
TIMES = "--time-column months --event-column died"


def prepared(tmp_path, table=TABLE, flags=TIMES):
    (tmp_path / "t.csv").write_text(table)
    arguments = ["prepare", "table", "--table", str(tmp_path / "t.csv"), "--out", str(tmp_path / "fed")]
    return CliRunner().invoke(app, [*arguments, *FLAGS.split(), *flags.split()])


def test_a_table_of_times_becomes_a_federation(tmp_path):
    found = prepared(tmp_path, flags=f"{TIMES} --time-unit weeks")
    assert found.exit_code == 0, found.output
    site = site_folders(tmp_path / "fed")[0]
    rows = pd.read_csv(site.manifest)
    assert list(rows.columns) == ["patient_id", "time", "event", "split"]
    whole = pd.concat([pd.read_csv(each.manifest) for each in site_folders(tmp_path / "fed")])
    assert whole.groupby("split").event.sum().to_dict() == {"test": 2, "train": 10, "val": 2}
    assert 'unit = "weeks"' in (tmp_path / "fed" / "study.toml").read_text()
    assert "follow_up = 61.5" in (tmp_path / "fed" / "study.toml").read_text()


@pytest.mark.parametrize(
    ("table", "flags", "sentence"),
    [
        (TABLE.replace(",7.5,", ",-7.5,"), TIMES, "months .*'-7.5'.*a time, which is a number of at least 0"),
        (TABLE.replace(",7.5,", ",soon,"), TIMES, "months .*'soon'.*a time, which is a number"),
        (TABLE.replace(",7.5,1", ",7.5,2"), TIMES, "died .*'2'.*1 where the event was seen, 0 where not"),
        (TABLE.replace(",7.5,", ",,"), TIMES, "months is blank, expected a time"),
        (TABLE.replace("died", "alive"), TIMES, "no column 'died'"),
        (TABLE, "--time-column months", "what is learned is not clear"),
        (TABLE, f"{TIMES} --classes a,b", "what is learned is not clear"),
        (TABLE, f"{TIMES} --horizons 12,99", "a horizon of 99 months, expected one above 0 and before"),
        (TABLE, f"{TIMES} --horizons soon", "--horizons is 'soon', expected numbers"),
        (TABLE, f"{TIMES} --follow-up 0", "follow_up must be a positive number of months, found 0"),
    ],
)
def test_bad_times_are_refused_in_a_sentence(tmp_path, table, flags, sentence):
    found = prepared(tmp_path, table, flags)
    assert isinstance(found.exception, Exception)
    assert re.search(sentence, str(found.exception)), str(found.exception)
    assert not (tmp_path / "fed").exists()


def without_events(at=""):
    """The table without the events of a site, or of all."""
    header, *lines = TABLE.split("\n")
    return "\n".join(
        [header, *(re.sub(r",1,", ",0,", line, count=1) if at in line else line for line in lines)]
    )


def test_without_an_event_to_train_on_nothing_is_prepared(tmp_path):
    found = prepared(tmp_path, without_events())
    assert isinstance(found.exception, DataError)
    assert "no patient of the split train has the event" in str(found.exception)


def test_a_site_without_events_trains_all_the_same(tmp_path):
    found = prepared(tmp_path, without_events(at="east"))
    assert "nobody of site east has the event; it trains all the same" in " ".join(found.output.split())
    run_nodes(tmp_path / "fed", tmp_path / "run", settings=["training.rounds=1", "model.width=16"])
    updates = [each["site"] for each in events(tmp_path / "run", "site_update") if each["samples"]]
    assert sorted(updates) == ["east", "west"]
    test = result(tmp_path / "run")["metrics"]["test"]
    assert test["sites"]["east"]["concordance"] is None
    assert np.isfinite(test["pooled"]["log_loss"])
