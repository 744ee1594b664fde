import json
import math
import shutil
import subprocess
import threading
import urllib.request
from collections import deque

import pytest
from hypothesis import given
from hypothesis import strategies as st
from prometheus_client import CollectorRegistry, generate_latest
from prometheus_client.parser import text_string_to_metric_families

from mmare.errors import Ending, InputError, Reason, SiteCode
from mmare.host.metric_families import Kind
from server.monitoring.exporter import SHOWN_RUNS, Exporter, serving
from server.monitoring.run_metrics import METRICS
from server.monitoring.run_state import PHASES, RunState
from server.store.events import parse_event
from tests.properties import examples
from tests.server.journals import (
    START,
    a_round,
    aggregated,
    called,
    event,
    left_out,
    started,
    update,
    validated,
    write,
)


def page(exporter):
    while exporter.read_on():
        pass
    registry = CollectorRegistry()
    registry.register(exporter)
    return generate_latest(registry).decode()


def values(text):
    """Per sample name: labels, as a sorted tuple of pairs without study and run, to value."""
    found = {}
    for family in text_string_to_metric_families(text):
        for sample in family.samples:
            labels = {key: value for key, value in sample.labels.items() if key not in {"study", "run"}}
            found.setdefault(sample.name, {})[tuple(sorted(labels.items()))] = sample.value
    return found


def exported(folder, **options):
    return values(page(Exporter(folder, **options)))


def counted(found, name):
    """Values of a counter that are not zero."""
    return {labels: value for labels, value in found[name].items() if value}


def one(**labels):
    return tuple(sorted(labels.items()))


def full_run():
    return [
        started(),
        called("ash", samples=40, patterns={"11": 20, "10": 20}),
        called("birch", samples=30, patterns={"01": 30}, modalities=("wsi",)),
        called("cedar", samples=8),
        called("dogwood", accepted=False, reason="refused: S102"),
        event("roll_call", 1, site="node 123456", accepted=False, reason="no answer before the deadline"),
        event("round_started", 2, round=1),
        update("ash", 1, 3, norm=1.0),
        update("birch", 1, 4, norm=2.0, samples=30),
        left_out("cedar", 1, "values that are not finite", 4),
        aggregated(1, 5, shared=70, **{"adapter.ct": 40, "conditioning.wsi": 0, "merge": 3}),
        event("checkpoint", 6, round=1, file="round-000001.safetensors", bytes=1000, seconds=0.3),
        event("round_started", 7, round=2),
        update("ash", 2, 8),
        update("birch", 2, 8),
        left_out("cedar", 2, "no answer before the deadline", 38),
        validated(1, 0.75, 39, ash=(20, 0.9), birch=(20, 0.6), cedar=(3, 0.1)),
    ]


def test_a_run_under_way_is_exported(tmp_path):
    write(tmp_path / "one", full_run())
    found = exported(tmp_path)
    assert found["mmare_rounds_started_total"] == {(): 2}
    assert found["mmare_rounds_finished_total"] == {(): 1}
    assert found["mmare_round_current"] == {(): 2}
    assert found["mmare_round_active"] == found["mmare_run_active"] == {(): 1}
    assert found["mmare_sites_required"] == {(): 2}
    assert found["mmare_round_deadline_seconds"] == {(): 30}
    assert found["mmare_sites_expected"] == {(): 3}
    assert found["mmare_sites_in"] == {(): 2}
    assert found["mmare_sites_late"] == {(): 1}
    assert "mmare_sites_refused" not in found  # of this round
    assert found["mmare_sites_not_admitted"] == {one(reason="S102"): 1, one(reason="late"): 1}
    assert (
        found["mmare_site_left_out_total"][one(site="ash", reason="late")] == 0
    )  # so that a first one is seen
    assert counted(found, "mmare_site_left_out_total") == {
        one(site="cedar", reason="non_finite"): 1,
        one(site="cedar", reason="late"): 1,
    }
    assert found["mmare_site_missed_rounds"][one(site="cedar")] == 2
    assert found["mmare_site_last_seen_timestamp_seconds"][one(site="ash")] == START + 8
    assert found["mmare_site_last_seen_timestamp_seconds"][one(site="cedar")] == START + 1
    assert found["mmare_site_received_bytes_total"][one(site="ash")] == 200
    assert found["mmare_site_sent_bytes_total"][one(site="ash")] == 400
    assert found["mmare_checkpoint_bytes"] == {(): 1000}
    assert found["mmare_checkpoint_timestamp_seconds"] == {(): START + 6}
    assert found["mmare_score_best"] == {(): 0.75}
    assert found["mmare_run_info"][
        one(
            mode="federated", backend="ray", model="mmare", strategy="fedavg", torch="2.15.0+cpu",
            flwr="other", numpy="other", python="other", federated_mmare="other",
        )
    ] == 1  # fmt: skip
    assert 0 < found["mmare_disk_free_bytes"][()] <= found["mmare_disk_size_bytes"][()]


def test_durations_are_told_by_phase(tmp_path):
    write(tmp_path, full_run())
    found = exported(tmp_path)
    name = "mmare_round_phase_duration_seconds"
    assert found[f"{name}_count"] == {
        one(phase=phase): 1 for phase in ("wait", "evaluate", "aggregate", "checkpoint")
    }
    assert found[f"{name}_sum"][one(phase="wait")] == 2.0
    assert found[f"{name}_bucket"][one(phase="wait", le="1.0")] == 0
    assert found[f"{name}_bucket"][one(phase="wait", le="5.0")] == 1
    assert found[f"{name}_bucket"][one(phase="wait", le="+Inf")] == 1


def test_small_counts_and_their_complements_are_withheld(tmp_path):
    write(
        tmp_path,
        [
            started(),
            called("ash", samples=40, patterns={"11": 30, "10": 6, "01": 4}),
            called("birch", samples=30, patterns={"11": 28, "10": 2}),
            called("cedar", samples=4),
            called("dogwood", samples=40, patterns={"11": 34, "10": None, "01": 6}),
            event("round_started", 2, round=1),
            update("ash", 1),
            aggregated(1, shared=40, adapter=38, few=4, none=0, merge=90),
            validated(0, 0.5, n=4, ash=(20, 0.9), birch=(4, 0.2)),
        ],
    )
    found = exported(tmp_path, min_count=5)
    assert found["mmare_site_samples"] == {
        one(site=name): n for name, n in (("ash", 40), ("birch", 30), ("dogwood", 40))
    }
    assert found["mmare_site_modality_samples"] == {
        one(site="birch", modality="ct"): 30,  # 4 of ash lack ct, 2 of birch lack wsi
        one(site="ash", modality="wsi"): 34,
        one(site="dogwood", modality="wsi"): 40,
        one(site="dogwood", modality="ct"): 34,
    }
    assert found["mmare_block_exposure_samples"] == {
        one(block="shared"): 40,
        one(block="none"): 0,
        one(block="merge"): 90,
    }
    assert "mmare_score" not in found
    assert set(found["mmare_site_score"]) == {one(site="ash", split="validation", metric="balanced_accuracy")}
    assert found["mmare_score_site_gap"][one(split="validation", metric="balanced_accuracy")] == 0


def test_rows_are_compared_with_the_others_and_with_before(tmp_path):
    calls = [("ash", 40), ("birch", 20), ("cedar", 300), ("dogwood", 4), ("ash", 60), ("ash", 60)]
    write(tmp_path, [started(), *(called(name, samples=samples) for name, samples in calls)])
    found = exported(tmp_path, min_count=5)
    assert found["mmare_site_samples_ratio"] == {
        one(site="ash"): 60 / 160,
        one(site="birch"): 20 / 180,
        one(site="cedar"): 300 / 40,
    }
    assert found["mmare_site_samples_change"] == {one(site="ash"): 1.5}


def test_a_study_may_ask_for_a_larger_smallest_count(tmp_path):
    events = [started(privacy={"min_count": 50}), called("ash"), called("birch", samples=60)]
    write(tmp_path, events)
    assert exported(tmp_path)["mmare_site_samples"] == {one(site="birch"): 60}


@pytest.mark.parametrize(
    ("ends", "reason"),
    [
        pytest.param([event("run_failed", 9, reason="interrupted")], "interrupted", id="interrupted"),
        pytest.param(
            [event("run_failed", 9, reason="1 sites …, expected at least 2 (federation.min_sites); …")],
            "quorum",
            id="quorum",
        ),
        pytest.param([started(9)], "stopped", id="died-and-started-again"),
    ],
)
def test_a_round_that_was_given_up_has_a_reason(tmp_path, ends, reason):
    write(tmp_path, [started(), called("ash"), event("round_started", 5, round=1), *ends])
    found = exported(tmp_path)
    assert counted(found, "mmare_rounds_failed_total") == {one(reason=reason): 1}
    assert set(found["mmare_rounds_failed_total"]) == {one(reason=ending.value) for ending in Ending}
    assert found["mmare_run_active"] == {(): float(reason == "stopped")}
    assert found.get("mmare_run_failed", {}) == ({} if reason == "stopped" else {one(reason=reason): 1})


def test_a_round_that_patience_ends_is_no_failure(tmp_path):
    metrics = validated(1, 0.8)["metrics"]
    events = [started(), called("ash"), *a_round(1, ["ash"], shared=40), event("round_started", 9, round=2)]
    events += [event("selected", 10, round=1, metrics=metrics), event("tested", 10, round=1, metrics=metrics)]
    write(tmp_path, [*events, event("run_finished", 11, rounds_run=1, best_round=1, seconds={})])
    found = exported(tmp_path)
    assert found["mmare_rounds_finished_total"] == found["mmare_rounds_started_total"] == {(): 2}
    assert not counted(found, "mmare_rounds_failed_total")
    assert found["mmare_runs_finished_total"] == {(): 1}
    assert found["mmare_score"][one(split="test", metric="balanced_accuracy")] == 0.8


def test_a_resume_steps_back(tmp_path):
    events = [
        started(),
        called("ash"),
        validated(1, 0.6),
        validated(2, 0.9),
        event("round_started", 5, round=4),
    ]
    write(tmp_path, [*events, started(6), called("ash", 7), event("resumed", 8, round=1, resumed_from=1)])
    found = exported(tmp_path)
    assert found["mmare_round_current"] == {(): 1}
    assert found["mmare_score_best"] == {(): 0.6}
    assert found["mmare_round_best"] == {(): 1}
    assert found["mmare_runs_started_total"] == {(): 2}


def test_starving_is_counted_in_rounds(tmp_path):
    both = [started(), called("ash", modalities=("ct",)), called("birch")]
    rounds = [line for number in (1, 2, 3) for line in a_round(number, ["ash"], adapter=0, shared=40)]
    write(tmp_path, [*both, *rounds])
    found = exported(tmp_path)
    assert found["mmare_modality_absent_rounds"] == {one(modality="ct"): 0, one(modality="wsi"): 3}
    assert found["mmare_block_starved_rounds"] == {one(block="adapter"): 3, one(block="shared"): 0}
    write(tmp_path, a_round(4, ["ash", "birch"], adapter=30, shared=40), mode="ab")
    found = exported(tmp_path)
    assert found["mmare_modality_absent_rounds"][one(modality="wsi")] == 0
    assert found["mmare_block_starved_rounds"][one(block="adapter")] == 0


# Journals that come, go and break


def test_new_runs_are_found_and_deleted_ones_stay_counted(tmp_path):
    exporter = Exporter(tmp_path)
    assert "mmare_runs_started_total" not in values(page(exporter))
    write(tmp_path / "group" / "one", [started()])
    write(tmp_path / "two", [started()])
    write(tmp_path / "two" / "local" / "ash", [started()])  # part of the run
    found = values(page(exporter))
    assert found["mmare_runs_started_total"] == {(): 2}
    assert found["mmare_exporter_runs"] == {(): 2}
    shutil.rmtree(tmp_path / "two")
    found = values(page(exporter))
    assert found["mmare_runs_started_total"] == {(): 2}
    assert found["mmare_exporter_events_total"] == {(): 2}
    assert found["mmare_exporter_runs"] == {(): 1}
    shutil.rmtree(tmp_path / "group")
    tmp_path.rmdir()
    assert "mmare_disk_free_bytes" not in values(page(exporter))


def test_a_run_that_replaces_another_starts_over(tmp_path):
    exporter = Exporter(tmp_path)
    write(tmp_path, [started(), called("ash"), *a_round(1, ["ash"])])
    assert values(page(exporter))["mmare_round_current"] == {(): 1}
    (tmp_path / "rounds.jsonl").unlink()
    later = [started(100), *(called(name, 101) for name in ("oak", "pine", "quince", "rowan"))]
    write(tmp_path, [*later, *a_round(1, ["oak"], 102)[:2]])
    found = values(page(exporter))
    assert set(found["mmare_site_missed_rounds"]) == {
        one(site=name) for name in ("oak", "pine", "quince", "rowan")
    }
    assert found["mmare_rounds_started_total"] == {(): 2}


def test_gauges_are_of_the_runs_under_way_and_the_last_ones(tmp_path):
    for number in range(SHOWN_RUNS + 3):
        ended = [] if number == 0 else [event("run_finished", number)]
        lines = [{**each, "run": f"tiny-{number:08x}"} for each in [started(number), *ended]]
        write(tmp_path / f"run{number}", lines)
    text = page(Exporter(tmp_path))
    runs = {
        sample.labels["run"]
        for family in text_string_to_metric_families(text)
        for sample in family.samples
        if "run" in sample.labels
    }
    assert runs == {f"{number:08x}" for number in (0, *range(4, SHOWN_RUNS + 3))}


def test_two_folders_of_one_run_are_no_duplicate_series(tmp_path):
    write(tmp_path / "one", [started()])
    write(tmp_path / "copy", [started(), called("ash", 5)])
    assert exported(tmp_path)["mmare_sites_expected"] == {(): 1}


# What may be in the page


def test_lines_written_before_they_had_a_code_get_one_of_the_closed_set():
    def code(sentence):
        return parse_event(left_out("ash", 1, sentence)).code.value

    for each in SiteCode:
        assert code(f"refused: {each.value}") == each.value
    assert code("refused: S999") == code("patient 17 of /data") == "other"
    assert code("12 bytes of tensors, expected 24") == "layout"
    assert code("node failed (ValueError)") == "node_failed"
    assert code("exposure 9 of block shared, expected 0 to 4") == "exposure"
    assert code("9 samples, expected 1 to 4") == "samples"
    failed = event("run_failed", reason="the selected model cannot be read (x)")
    assert parse_event(failed).code is Ending.CHECKPOINT


def test_a_code_counts_and_not_its_sentence(tmp_path):
    late = {**left_out("ash", 1, "no answer before the deadline"), "code": "moments"}
    odd = {**left_out("ash", 1, "not finite"), "code": "PAT-0001"}
    ended = event("run_failed", 9, reason="not finite", code="quorum")
    write(tmp_path, [started(), called("ash"), event("round_started", 2, round=1), late, odd, ended])
    found = exported(tmp_path)
    assert found["mmare_sites_refused"] == {one(reason="moments"): 1, one(reason="other"): 1}
    assert found["mmare_run_failed"] == {one(reason="quorum"): 1}


ODD = st.one_of(
    st.none(), st.booleans(), st.integers(), st.floats(), st.text(max_size=80),
    st.integers(1, 4),
    st.sampled_from(["/home/patients/PAT-0001.nii.gz", "PAT-0001\n# TYPE x", 'a"b', "x" * 500, "ash"]),
)  # fmt: skip
JSON = st.recursive(
    ODD,
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=20), inner, max_size=3),
    max_leaves=6,
)
WHOLE = [*full_run(), *a_round(3, ["ash"], shared=40), event("resumed", 9, round=1, resumed_from=1)]


@st.composite
def odd_events(draw):
    """An event of a journal with some of its values, at any depth, replaced."""
    found = json.loads(json.dumps(draw(st.sampled_from(WHOLE))))
    for _ in range(draw(st.integers(0, 3))):
        place = found
        while True:
            key = draw(st.sampled_from(sorted(place)))
            if isinstance(place[key], dict) and place[key] and draw(st.booleans()):
                place = place[key]
                continue
            if key != "event":
                place[key] = draw(JSON)
            break
    return found


@examples(60)
@given(st.lists(odd_events(), max_size=12), st.lists(st.binary(max_size=30), max_size=2))
def test_odd_journals_break_nothing_and_leak_nothing(tmp_path_factory, changed, rubbish):
    folder = tmp_path_factory.mktemp("odd")
    write(folder, [started(), called("ash"), *changed], tail=b"\n".join(rubbish))
    text = page(Exporter(folder, min_count=5))
    known = {metric.name: metric for metric in METRICS}
    plain = set("ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789._+-")
    closed = {
        "reason": {*Reason, *SiteCode, *Ending},
        "phase": {*PHASES, "other"},
        "split": {"validation", "test"},
        "mode": {"federated", "centralised", "local", "other"},
        "backend": {"inprocess", "ray", "flower", "other"},
    }
    for family in text_string_to_metric_families(text):
        for sample in family.samples:
            name = next(name for name in (sample.name, sample.name.rsplit("_", 1)[0]) if name in known)
            assert set(sample.labels) - {"le"} == set(known[name].labels)
            for label, value in sample.labels.items():
                assert len(value) <= 64
                assert set(value) <= plain
                assert value in closed.get(label, {value})
            if name.endswith("_samples"):
                assert sample.value == 0 or sample.value >= 5
            assert math.isfinite(sample.value)

    for odd in ("/home", "patients", "PAT-0001", "node "):
        assert odd not in text


def test_labels_of_sites_are_bounded(tmp_path, monkeypatch):
    monkeypatch.setattr("server.monitoring.run_state.MOST_SITES", 3)
    names = [f"site{number}" for number in range(20)]
    write(tmp_path, [started(), *(called(name) for name in names)])
    assert set(exported(tmp_path)["mmare_site_missed_rounds"]) == {
        one(site=name) for name in ("site0", "site1", "site2", "other")
    }


def test_a_site_without_a_plain_name_or_a_place_at_the_roll_call_is_other(tmp_path):
    lines = [started(), called("/data/PAT-1"), called("ash"), update("mallory", 1), left_out("PAT 2", 1, "x")]
    write(tmp_path, lines)
    text = page(Exporter(tmp_path))
    assert set(values(text)["mmare_site_missed_rounds"]) == {one(site="ash"), one(site="other")}
    assert "PAT" not in text
    assert "mallory" not in text


@pytest.mark.parametrize("number", ["NaN", "Infinity", "1e999", "-1e999", '"7"', "true", "null"])
def test_values_that_are_not_finite_are_not_exported(tmp_path, number):
    write(tmp_path, [started(), called("ash"), update("ash", 1, norm=0.125)])
    path = tmp_path / "rounds.jsonl"
    assert '"norm": 0.125' in path.read_text()
    path.write_text(path.read_text().replace('"norm": 0.125', f'"norm": {number}'))
    found = exported(tmp_path)
    assert "mmare_site_update_norm" not in found
    assert found["mmare_site_train_loss"] == {one(site="ash"): 0.5}


@pytest.mark.parametrize(
    ("name", "label"), [("a" * 64, "a" * 64), ("a" * 65, "other"), ("a+b.c_d-e", "a+b.c_d-e"), ("é", "other")]
)
def test_names_have_a_length_and_plain_signs(tmp_path, name, label):
    write(tmp_path, [started(), called(name)])
    assert set(exported(tmp_path)["mmare_site_missed_rounds"]) == {one(site=label)}


def test_every_metric_is_well_formed_for_promtool(tmp_path):
    promtool = shutil.which("promtool")
    if promtool is None:
        pytest.skip("promtool is not installed")
    write(tmp_path, [*full_run(), event("run_failed", 50, reason="interrupted")])
    text = page(Exporter(tmp_path))
    done = subprocess.run(
        [promtool, "check", "metrics"], input=text, capture_output=True, text=True, check=False, timeout=30
    )
    assert (done.returncode, done.stdout + done.stderr) == (0, "")


def test_types_are_those_of_the_table(tmp_path):
    write(tmp_path, full_run())
    lines = [line.split() for line in page(Exporter(tmp_path)).splitlines() if line.startswith("# TYPE")]
    assert {name: kind for _, _, name, kind in lines} == {
        metric.name: metric.kind.value for metric in METRICS
    }
    assert all(metric.name.endswith("_total") == (metric.kind is Kind.COUNTER) for metric in METRICS)


# Served


def test_a_journal_that_grows_is_served(tmp_path):
    write(tmp_path / "one", [started(), called("ash")])
    with serving(Exporter(tmp_path), 0, "127.0.0.1", interval_s=0.02) as port:
        url = f"http://127.0.0.1:{port}/metrics"
        for number in (1, 2):
            write(tmp_path / "one", a_round(number, ["ash"], number * 10.0), mode="ab")
            for _ in range(100):
                with urllib.request.urlopen(url, timeout=5) as answer:
                    text = answer.read().decode()
                if values(text).get("mmare_rounds_finished_total") == {(): number}:
                    break
                threading.Event().wait(0.02)
            assert values(text)["mmare_rounds_finished_total"] == {(): number}
        with pytest.raises(InputError, match=f"port {port}"), serving(Exporter(tmp_path), port, "127.0.0.1"):
            pass


def weigh(value):
    """How many values a state holds, at any depth."""
    if isinstance(value, dict):
        return sum(1 + weigh(each) for each in value.values())
    if isinstance(value, list | tuple | set | frozenset | deque):
        return sum(1 + weigh(each) for each in value)
    return weigh(vars(value)) if hasattr(value, "__dict__") else 1


def test_the_state_does_not_grow_with_rounds():
    def size(rounds):
        state = RunState(min_count=5)
        lines = (line for number in range(1, rounds) for line in a_round(number, ["ash"], shared=40))
        for each in (started(), called("ash"), *lines):
            assert state.take(each)
        return weigh(state)

    assert size(500) == size(50)
