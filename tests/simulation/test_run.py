"""`run_federation`: what a caller of one run gets, per mode."""

import json
import math

import pytest
import tomli_w

from mmare.errors import InputError, RunError
from mmare.study.choices import Mode
from server.run.request import RunRequest
from simulation.run import run_federation
from tests.federations import SITES, tiny_federation, tiny_study
from tests.properties import first_quick

SHORT = ("training.rounds=2",)

VALUE = (float, int, type(None))  # null where a metric is not defined
METRICS = {
    "n": int,
    **dict.fromkeys(
        (
            *(
                "accuracy",
                "balanced_accuracy",
                "auc",
                "f1",
                "precision",
                "recall",
                "log_loss",
                "brier",
                "ece",
            ),
            *("macro_f1", "macro_precision", "macro_recall"),
        ),
        VALUE,
    ),
    "ci95": {
        name: (list, type(None))
        for name in (
            *("accuracy", "balanced_accuracy", "auc", "f1", "precision", "recall"),
            *("macro_f1", "macro_precision", "macro_recall"),
        )
    },
}
EACH_SITE = dict.fromkeys(SITES, METRICS)
CALLED = {"n": int, **dict.fromkeys(("accuracy", "balanced_accuracy", "f1", "precision", "recall"), VALUE)}
FACTS = {
    "rounds_run": int,
    "best_round": int,
    "bytes": {"down_per_round": int, "up_per_round": int},
    "seconds": dict.fromkeys(("total", "setup", "rounds", "train"), (int, float)),
}
COMMON = {
    **dict.fromkeys(("study", "model", "strategy", "mode", "backend"), str),
    "seed": int,
    **FACTS,
    "parameters": {"trainable": int, "federated": int},
    "versions": {"federated-mmare": str, "torch": str, "python": str},
    "left_out": list,
}
FEDERATED = {
    **COMMON,
    "metrics": {
        "validation": {"pooled": METRICS, "sites": EACH_SITE},
        "test": {
            "pooled": METRICS,
            "sites": EACH_SITE,
            "patterns": dict.fromkeys(("01", "10", "11"), METRICS),
            "worst_site": {"site": str, "balanced_accuracy": VALUE},
            "over": {"no": list, "yes": list},
            "operating_point": {
                "rule": str,
                "threshold": float,
                "validation": CALLED,
                "pooled": CALLED,
                "sites": dict.fromkeys(SITES, CALLED),
            },
        },
    },
}
LOCAL = {
    **COMMON,
    "local": {
        site: {
            "best_round": int,
            "metrics": {
                "validation": METRICS,
                "test": {"own": METRICS, "pooled": METRICS, "sites": EACH_SITE},
            },
        }
        for site in SITES
    },
}
SCHEMAS = {Mode.FEDERATED: FEDERATED, Mode.CENTRALISED: FEDERATED, Mode.LOCAL: LOCAL}


def misfits(content, schema, where="result"):
    """What of a result is not as the schema says: absent keys, other types."""
    if not isinstance(schema, dict):
        return [] if isinstance(content, schema) else [f"{where}: {content!r}"]
    if not isinstance(content, dict):
        return [f"{where}: {content!r} is no table"]
    found = [f"{where}.{key}: absent" for key in schema if key not in content]
    for key in schema.keys() & content.keys():
        found += misfits(content[key], schema[key], f"{where}.{key}")
    return found


def numbers(content):
    if isinstance(content, dict | list):
        for value in content.values() if isinstance(content, dict) else content:
            yield from numbers(value)
    elif isinstance(content, float):
        yield content


@pytest.fixture(scope="module")
def federation(tmp_path_factory):
    return tiny_federation(tmp_path_factory.mktemp("federation") / "fed")


@pytest.fixture(scope="module", params=list(Mode))
def finished(request, federation, tmp_path_factory):
    out = tmp_path_factory.mktemp("runs") / request.param
    return request.param, run_federation(RunRequest(federation, out, request.param, SHORT)), out


def test_every_mode_has_the_fields_of_the_design(finished):
    mode, result, out = finished
    assert misfits(result, SCHEMAS[mode]) == []
    assert ("local" in result, "metrics" in result) == (mode is Mode.LOCAL, mode is not Mode.LOCAL)
    assert (result["mode"], result["study"], result["model"]) == (mode.value, "tiny", "mmare")
    assert (result["strategy"], result["backend"], result["seed"]) == ("fedavg", "inprocess", 3)
    assert result == json.loads((out / "result.json").read_text())


def test_no_number_is_nan(finished):
    _, result, out = finished
    found = list(numbers(result))
    assert len(found) > 100
    assert all(math.isfinite(value) for value in found)
    for word in ("NaN", "Infinity"):
        assert word not in (out / "result.json").read_text()
        assert word not in (out / "rounds.jsonl").read_text()


def test_intervals_hold_their_values(finished):
    mode, result, _ = finished
    tested = (
        [entry["metrics"]["test"]["pooled"] for entry in result["local"].values()]
        if mode is Mode.LOCAL
        else [result["metrics"]["test"]["pooled"]]
    )
    for metrics in tested:
        for name, interval in metrics["ci95"].items():
            assert interval[0] <= metrics[name] <= interval[1]


def test_all_modes_are_tested_on_the_same_rows(finished):
    mode, result, _ = finished
    tests = (
        [entry["metrics"]["test"] for entry in result["local"].values()]
        if mode is Mode.LOCAL
        else [result["metrics"]["test"]]
    )
    for test in tests:
        assert {site: metrics["n"] for site, metrics in test["sites"].items()} == {
            "ash": 10,
            "birch": 12,
            "cedar": 14,
        }
        assert test["pooled"]["n"] == 36


def test_bytes_are_what_the_messages_weigh(finished):
    mode, result, _ = finished
    sites = {Mode.FEDERATED: 3, Mode.CENTRALISED: 1, Mode.LOCAL: 1}[mode]
    assert result["bytes"]["up_per_round"] >= sites * 4 * result["parameters"]["federated"]
    assert result["bytes"]["down_per_round"] >= sites * 4 * result["parameters"]["trainable"]
    assert result["bytes"]["up_per_round"] < 20 * 4 * result["parameters"]["federated"]


def test_a_model_is_handed_out(finished):
    mode, _, out = finished
    folders = [out / "local" / site for site in SITES] if mode is Mode.LOCAL else [out]
    for folder in folders:
        assert (folder / "model" / "model.safetensors").exists()
        assert (folder / "model" / "model.json").exists()


def test_a_finished_run_is_not_run_again(finished, federation):
    mode, result, out = finished
    heard = []
    again = run_federation(RunRequest(federation, out, mode, SHORT), (heard.append,))
    assert again == result
    assert heard == []


def test_the_report_is_written(finished):
    assert (finished[2] / "report.html").stat().st_size > 10_000


@pytest.mark.slow
def test_a_metric_that_is_not_defined_is_null(tmp_path):
    study = tiny_study(training={"rounds": 1})
    federation = tiny_federation(tmp_path / "fed", study)
    manifest = federation / "ash" / "patients.csv"
    manifest.write_text(manifest.read_text().replace("yes,test", "yes,train"))
    result = run_federation(RunRequest(federation, tmp_path / "run"))
    own = result["metrics"]["test"]["sites"]["ash"]
    assert own["n"] == 5
    assert (own["auc"], own["balanced_accuracy"], own["ci95"]["auc"]) == (None, None, None)
    assert own["accuracy"] is not None
    assert result["metrics"]["test"]["over"] == {"no": list(SITES), "yes": ["birch", "cedar"]}


def test_settings_take_effect(federation, tmp_path):
    settings = ("training.rounds=1", "study.seed=11", "model.name=late-mean")
    result = run_federation(RunRequest(federation, tmp_path / "run", set=settings))
    assert (result["rounds_run"], result["seed"], result["model"]) == (1, 11, "late-mean")


@pytest.mark.slow
def test_patience_ends_a_run(federation, tmp_path):
    settings = ("training.rounds=40", "training.patience=1", "training.learning_rate=1e-9")
    result = run_federation(RunRequest(federation, tmp_path / "run", set=settings))
    assert result["rounds_run"] < 10
    assert result["best_round"] <= result["rounds_run"]


@pytest.mark.parametrize(
    ("setting", "sentence"),
    [
        pytest.param("training.rounds=1;study.seed=2", "must not hold a semicolon", id="semicolon"),
        pytest.param("training.rond=1", "unknown key 'rond'", id="unknown-key"),
        pytest.param("trainings.rounds=1", "no section 'trainings'", id="unknown-section"),
        pytest.param("rounds=1", "expected section.key=value", id="no-section"),
        pytest.param("training.rounds", "expected section.key=value", id="no-value"),
        pytest.param("training.rounds=many", "must be a whole number", id="not-a-number"),
        pytest.param("training.rounds=0", "at least 1", id="too-small"),
        pytest.param("modality.mri.scaling=l2", "no section 'mri'", id="unknown-modality"),
        pytest.param("model.breadth=3", "unknown key 'breadth'", id="unknown-option"),
        pytest.param(
            "federation.strategy=fedsum", "strategy must be one of exposure, fedadam", id="strategy"
        ),
    ],
)
def test_a_setting_that_cannot_be_used_is_named_and_nothing_written(federation, tmp_path, setting, sentence):
    with pytest.raises(InputError, match=sentence) as error:
        run_federation(RunRequest(federation, tmp_path / "run", set=(setting,)))
    assert error.value.exit_code == 2
    assert not (tmp_path / "run").exists()


def test_a_wrong_federation_is_named_and_nothing_written(tmp_path):
    (tmp_path / "empty").mkdir()
    for folder in ("absent", "empty"):
        with pytest.raises(InputError, match=rf"{folder}/study\.toml: no ") as error:
            run_federation(RunRequest(tmp_path / folder, tmp_path / "run"))
        assert error.value.exit_code == 2
    assert not (tmp_path / "run").exists()


def test_more_sites_needed_than_there_are_fails_and_says_so(federation, tmp_path):
    settings = ("federation.min_sites=4", "federation.deadline_s=0.5")
    with pytest.raises(RunError, match=r"3 sites with training rows .*, expected at least 4"):
        run_federation(RunRequest(federation, tmp_path / "run", set=settings))


@pytest.mark.parametrize(
    ("file", "old", "new"),
    [
        pytest.param("patients.csv", None, None, id="missing-file"),
        pytest.param("patients.csv", "birch-1,", "birch-0,", id="duplicate-id"),
        pytest.param("ct.csv", ",f7", "", id="wrong-width"),
    ],
)
def test_bad_data_of_a_site_are_one_sentence_before_anything_is_written(tmp_path, file, old, new):
    federation = tiny_federation(tmp_path / "fed")
    path = federation / "birch" / file
    if old is None:
        path.unlink()
    else:
        path.write_text(path.read_text().replace(old, new, 1))
    with pytest.raises(InputError, match="birch") as error:
        run_federation(RunRequest(federation, tmp_path / "run", set=SHORT))
    assert error.value.exit_code == 2
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize("mode", first_quick(Mode.LOCAL, Mode.FEDERATED))
def test_a_run_without_validation_rows_keeps_the_last_round_and_says_so(tmp_path, mode):
    federation = tiny_federation(tmp_path / "fed", sites=SITES[:2])
    for manifest in federation.glob("*/patients.csv"):
        manifest.write_text(manifest.read_text().replace(",val", ",train"))
    study = tiny_study(training={"rounds": 3, "patience": 1})
    (federation / "study.toml").write_text(tomli_w.dumps(study.to_dict()))
    result = run_federation(RunRequest(federation, tmp_path / "run", mode))
    assert (result["rounds_run"], result["best_round"]) == (3, 3)
    (note,) = (note for note in result["notes"] if note.startswith("no validation rows: "))
    assert note.endswith("the last one is kept" + (" (ash, birch)" if mode is Mode.LOCAL else ""))
