"""A hospital under differential privacy, behind its real service and gate: what leaves, and what it costs."""

import json
import logging
from dataclasses import replace

import pytest
from typer.testing import CliRunner

from client.cli import app
from client.privacy.records.audit_log import log_of
from client.privacy.study_summary import study_in_words
from client.telemetry.endpoint import SiteMetrics
from client.telemetry.seen import WorkerActivity
from mmare.errors import InputError, RunError, SiteCode, StudyError
from mmare.models.registry import MODELS, build_model
from mmare.study.study import parse_study
from mmare.wire.messages import Split, Task
from mmare.wire.tensors import global_tensors, layout_of
from sites.config import load_site
from tests.privacy.hospital import LIMIT, Hospital, flat
from tests.privacy.private import private_study

RUNNER = CliRunner(env={"COLUMNS": "160", "NO_COLOR": "1"})


def limited(hospital, limit):
    """The hospital with a limit in its site.toml."""
    text = toml(hospital).read_text().replace("[policy]\n", f"[policy]\nepsilon_limit = {limit}\n")
    toml(hospital).write_text(text)
    hospital.site = replace(load_site(toml(hospital)), min_count=LIMIT)
    assert hospital.site.epsilon_limit == limit
    hospital.start()
    return hospital


def toml(hospital):
    return hospital.site.folder / "site.toml"


@pytest.fixture(scope="module")
def answered(tmp_path_factory):
    """A hospital that was asked all up to a run's first round, with the tensors that it sent."""
    hospital = Hospital(tmp_path_factory.mktemp("federation"), private_study(), 80)
    hospital.call = hospital.ask(Task.DESCRIBE)
    hospital.moments = hospital.ask(Task.STATISTICS)
    hospital.update = hospital.train(1)
    hospital.first = bytes(hospital.tensors)
    return hospital


def ledger(hospital):
    path = hospital.site.folder / "budget.jsonl"
    return path.read_text().splitlines() if path.exists() else []


def test_no_count_moment_exposure_or_loss_leaves(answered):
    assert (answered.call.counts.splits, answered.call.samples) == ({}, 40)
    assert not any(each.n or any(each.total) or any(each.squares) for each in answered.moments.moments)
    assert answered.update.train_loss is None
    assert set(answered.update.exposures.values()) == {answered.update.samples} == {40}


def test_all_blocks_leave_whoever_exercised_them(answered):
    model = build_model(answered.study)
    assert answered.update.blocks == tuple(block.name for block in model.blocks())


def test_the_identical_request_gets_the_identical_answer_for_nothing_also_after_a_restart(answered):
    spent = ledger(answered)
    assert len(spent) == 1
    for begin in (lambda: None, answered.restart):
        begin()
        again = answered.train(1)
        assert bytes(answered.tensors) == answered.first
        assert replace(again, seconds={}) == replace(answered.update, seconds={})
    assert ledger(answered) == spent


def test_another_run_of_the_same_study_has_other_noise_and_is_paid_for(answered):
    spent = ledger(answered)
    answered.train(1, run="another")
    assert bytes(answered.tensors) != answered.first
    assert len(ledger(answered)) == len(spent) + 1


def test_who_knows_the_studys_seed_cannot_take_the_noise_away(answered, tmp_path):
    """The same study, table and requests at a site with another secret give another answer."""
    twin = Hospital(tmp_path, answered.study, 80)
    twin.train(1)
    assert bytes(twin.tensors) != answered.first


@pytest.mark.parametrize(
    ("task", "fields"),
    [
        (Task.TRAIN, {"round": 2, "train": True, "splits": (Split.VAL,)}),
        (Task.EVALUATE, {"round": 2, "splits": (Split.VAL,)}),
        (Task.EVALUATE, {"round": 2, "splits": (Split.TRAIN,), "final": True}),
        (Task.EVALUATE, {"round": 2, "splits": (Split.TEST,), "final": True, "subsets": True}),
        (Task.COMPARE, {}),
    ],
    ids=["metrics of a round", "the same alone", "train rows", "subsets", "comparison"],
)
def test_what_the_budget_does_not_count_is_not_answered(answered, task, fields):
    model = build_model(answered.study)
    layout = layout_of(global_tensors(model)).fingerprint
    assert answered.ask(task, flat(model), layout=layout, **fields) is SiteCode.REQUEST


def test_metrics_at_the_end_are_noisy_and_without_patterns(tmp_path):
    hospital = Hospital(tmp_path, private_study(epsilon=2.0), 200)
    model = build_model(hospital.study)
    asked = {"layout": layout_of(global_tensors(model)).fingerprint, "splits": (Split.VAL, Split.TEST)}
    update = hospital.ask(Task.EVALUATE, flat(model), round=0, patterns=True, final=True, **asked)
    sizes = [sum(each["n"] for each in one.state["classes"] if each) for one in update.evaluations]
    assert sizes != [50, 50]  # the real ones
    assert not any(one.patterns for one in update.evaluations)
    assert len(ledger(hospital)) == 1  # they cost as a run does


def test_another_draw_of_an_answer_is_refused(tmp_path, caplog):
    hospital = Hospital(tmp_path, private_study(), 80)
    hospital.train(1)
    (hospital.site.folder / "site.secret").write_text("ab" * 32 + "\n")
    hospital.start()
    caplog.set_level(logging.ERROR)
    assert hospital.train(1) is SiteCode.BUDGET
    assert "train of round 1 would be drawn a second time; a new run can be charged anew" in caplog.text


def test_a_study_that_would_overdraw_is_refused_before_any_training(tmp_path, caplog):
    hospital = limited(Hospital(tmp_path, private_study(), 80), 10.0)
    assert hospital.train(1).samples == 40
    caplog.set_level(logging.ERROR)
    assert hospital.ask(Task.DESCRIBE, run="next") is SiteCode.BUDGET
    assert hospital.train(1, run="next") is SiteCode.BUDGET
    sentence = "the study tiny asks for an epsilon of 8, 8 is spent at this site and its limit is 10"
    assert sentence in caplog.text
    assert hospital.ask(Task.DESCRIBE).samples == 40  # the run that was paid for goes on
    assert len(ledger(hospital)) == 1
    refused = RUNNER.invoke(
        app, ["approve", str(study_file(hospital)), "--site", str(toml(hospital)), "--yes"]
    )
    assert isinstance(refused.exception, InputError)
    assert sentence in str(refused.exception)


def study_file(hospital):
    return hospital.site.folder.parent / "study.toml"


def test_a_budget_that_the_data_cannot_carry_is_refused_at_the_roll_call(tmp_path, caplog):
    dp = {"epsilon": 0.05, "delta": 1e-6}
    hospital = Hospital(tmp_path, private_study(privacy={"dp": dp}), 80)
    caplog.set_level(logging.ERROR)
    assert hospital.ask(Task.DESCRIBE) is SiteCode.BUDGET
    assert "epsilon 0.05 of the study tiny is more than 40 train rows can carry" in caplog.text
    with pytest.raises(InputError, match="more than 40 train rows can carry"):
        hospital.service.prepare(hospital.study)
    assert ledger(hospital) == []


@pytest.mark.parametrize("lost", ["ledger and head", "line"])
def test_nothing_leaves_where_the_ledger_lost_lines(tmp_path, caplog, lost):
    hospital = Hospital(tmp_path, private_study(), 80)
    hospital.train(1)
    path = hospital.site.folder / "budget.jsonl"
    if lost == "line":
        path.write_text("")
    else:
        path.unlink()
        path.with_suffix(".head").unlink()
    hospital.start()
    caplog.set_level(logging.ERROR)
    assert hospital.train(1) is SiteCode.BUDGET
    assert hospital.ask(Task.DESCRIBE, run="next") is SiteCode.BUDGET
    assert (
        "lines were removed; no study with differential privacy is answered; restore the ledger"
        in caplog.text
    )
    broken = RUNNER.invoke(app, ["budget", str(toml(hospital))])
    assert isinstance(broken.exception, RunError)
    assert "lines were removed" in str(broken.exception)


def test_a_run_whose_records_were_lost_is_paid_for_again(tmp_path):
    """Approving again goes on after an audit log that lost lines; what they say was answered is not free."""
    hospital = Hospital(tmp_path, private_study(), 80)
    hospital.train(1)
    assert len(ledger(hospital)) == 1
    hospital.audit.path.write_text("")
    assert hospital.train(1) is SiteCode.CHAIN
    said = RUNNER.invoke(app, ["approve", str(study_file(hospital)), "--site", str(toml(hospital)), "--yes"])
    assert "The audit log does not verify" in said.output
    other = build_model(hospital.study)
    assert hospital.train(1, other).samples == 40
    assert len(ledger(hospital)) == 2


def test_the_budget_command_tells_what_was_spent_and_what_is_left(tmp_path):
    hospital = limited(Hospital(tmp_path, private_study(), 80), 20.0)
    said = RUNNER.invoke(app, ["budget", str(toml(hospital))]).output
    assert said == "in all: epsilon 0, delta 0; limit 20, left 20\n"
    for run in ("one", "two"):
        hospital.train(1, run=run)
    said = RUNNER.invoke(app, ["budget", str(toml(hospital))]).output.splitlines()
    assert said == [
        f"tiny {hospital.study.hash[:12]}: epsilon 16, delta 0.002, 2 runs",
        "in all: epsilon 16, delta 0.002; limit 20, left 4",
    ]
    table = json.loads(RUNNER.invoke(app, ["budget", str(toml(hospital)), "--json"]).output)
    assert (table["limit"], table["spent"], table["left"]) == (20.0, 16.0, 4.0)
    assert [run["run"] for run in table["studies"][0]["runs"]] == ["one", "two"]


def test_the_page_says_what_the_noise_promises_and_what_it_costs(tmp_path):
    hospital = limited(Hospital(tmp_path, private_study(), 80), 20.0)
    hospital.train(1)
    said = " ".join(study_in_words(hospital.study, hospital.site, 100).split())
    assert "factor of at most 2.98e+03 (epsilon 8), whatever is known already, except with" in said
    assert "Each run costs 8 of this site's budget, of which 8 is spent; 12 of 20 are left." in said
    assert "adds noise to every parameter" in said
    assert "no noise is added" not in said
    assert "Not sent: counts per class or pattern, moments, exposures" in said


def test_the_metrics_page_tells_what_is_spent(tmp_path):
    hospital = limited(Hospital(tmp_path, private_study(), 80), 20.0)
    for run in ("one", "two"):
        hospital.train(1, run=run)
    metrics = SiteMetrics(hospital.site, hospital.approvals, log_of(hospital.site), WorkerActivity())

    def found():
        samples = [each for family in metrics.collect() for each in family.samples]
        wanted = ("epsilon_spent", "epsilon_limit", "ledger_intact")
        return {name: each.value for each in samples for name in wanted if each.name.endswith(name)}

    assert found() == {"epsilon_spent": 16.0, "epsilon_limit": 20.0, "ledger_intact": 1.0}
    (hospital.site.folder / "budget.jsonl").unlink()
    assert found()["ledger_intact"] == 0.0


@pytest.mark.parametrize("model", sorted(name for name, made in MODELS.items() if not made.SEPARATE))
def test_models_whose_patients_meet_are_refused_by_name(model):
    tables = private_study().to_dict()
    tables["model"] = {"name": model}
    with pytest.raises(
        StudyError, match=f"which {model} does not give.*expected one of late-mean, linear, mmare"
    ):
        build_model(parse_study(tables, "test"))
