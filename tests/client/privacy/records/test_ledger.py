"""The ledger of a budget: charged once a run, never overdrawn, and whole or of no use."""

import json

import pytest

from client.privacy.accountant import BudgetError, Plan
from client.privacy.records.chained_log import ChainError
from client.privacy.records.ledger import Ledger, budget_table, budget_text
from tests.federations import tiny_study

PLAN = Plan(rows=40, rate=0.2, steps=5, noise=1.5, histogram_noise=0.9)


def study_of(epsilon=4.0, seed=3):
    tables = tiny_study().to_dict()
    return tiny_study(
        modality=[{**each, "scaling": "l2"} for each in tables["modality"]],
        training={"noise_probability": 0.0},
        study={"seed": seed},
        privacy={"dp": {"epsilon": epsilon}},
    )


@pytest.fixture
def path(tmp_path):
    return tmp_path / "budget.jsonl"


def test_a_run_is_charged_once_and_every_other_run_anew(path):
    ledger = Ledger(path)
    ledger.charge(study_of(), "one", PLAN)
    assert ledger.charge(study_of(), "one", PLAN) is None
    assert Ledger(path).charge(study_of(), "one", PLAN) is None  # after a restart
    ledger.charge(study_of(), "two", PLAN)
    ledger.charge(study_of(seed=4), "one", PLAN)
    ledger.charge(study_of(2.0), "one", PLAN)
    assert ledger.spent == 14
    assert [each.run for each in ledger.charges()] == ["one", "two", "one", "one"]
    assert ledger.left is None


def test_the_line_says_how_the_noise_was_chosen(path):
    Ledger(path).charge(study_of(), "one", PLAN)
    line = json.loads(path.read_text())
    assert line["study"] == study_of().hash
    found = {key: line[key] for key in ("epsilon", "delta", "rows", "rate", "noise", "seed", "name")}
    wanted = {"epsilon": 4.0, "delta": 1e-5, "rows": 40, "rate": 0.2, "noise": 1.5, "seed": 3, "name": "tiny"}
    assert found == wanted
    assert path.stat().st_mode & 0o077 == 0


def test_what_would_overdraw_is_refused_in_one_sentence_and_what_was_paid_goes_on(path):
    ledger = Ledger(path, limit=10.0)
    ledger.charge(study_of(), "one", PLAN)
    ledger.charge(study_of(), "two", PLAN)
    before = path.read_bytes()
    sentence = (
        r"the study tiny asks for an epsilon of 4, 8 is spent at this site and its limit is 10 \(\[policy\]"
    )
    for refused in (lambda: ledger.charge(study_of(), "three", PLAN), lambda: ledger.admit(study_of())):
        with pytest.raises(BudgetError, match=sentence):
            refused()
    assert path.read_bytes() == before
    ledger.admit(study_of(), "two")
    ledger.charge(study_of(2.0), "three", PLAN)
    assert ledger.left == 0


@pytest.mark.parametrize(
    ("harm", "wrong"),
    [
        (lambda lines: lines[1:], "number 2 of the chain"),
        (lambda lines: lines[:-1], "lines were removed"),
        (lambda lines: [lines[0].replace(b"4.0", b"0.4"), *lines[1:]], "a line before it was changed"),
        (lambda lines: [*lines[:-1], lines[-1].replace(b"4.0", b"0.4")], "it was changed"),
    ],
    ids=["first removed", "last removed", "first changed", "last changed"],
)
def test_a_ledger_that_was_changed_is_of_no_use(path, harm, wrong):
    for run in ("one", "two"):
        Ledger(path).charge(study_of(), run, PLAN)
    path.write_bytes(b"".join(harm(path.read_bytes().splitlines(keepends=True))))
    for use in (lambda: Ledger(path).check(), lambda: Ledger(path).charge(study_of(), "three", PLAN)):
        with pytest.raises(ChainError, match=f"{wrong}.*restore the ledger and its head from a backup"):
            use()


def test_a_ledger_that_is_gone_is_missed_by_who_knows_its_head(path):
    head = Ledger(path).charge(study_of(), "one", PLAN)
    path.unlink()
    path.with_suffix(".head").unlink()
    Ledger(path).check()
    with pytest.raises(ChainError, match="lines were removed"):
        Ledger(path).check(head)


def test_the_table_adds_up_by_study(path):
    ledger = Ledger(path, limit=20.0)
    for run, study in (("one", study_of()), ("two", study_of(seed=4)), ("three", study_of(2.5))):
        ledger.charge(study, run, PLAN)
    table = budget_table("ash", ledger)
    assert [(each["epsilon"], len(each["runs"])) for each in table["studies"]] == [(8.0, 2), (2.5, 1)]
    assert (table["site"], table["spent"], table["left"], table["delta"]) == (
        "ash",
        10.5,
        9.5,
        pytest.approx(3e-5),
    )
    first, second, whole = budget_text(table).splitlines()
    assert first == f"tiny {study_of().hash[:12]}: epsilon 8, delta 2e-05, 2 runs"
    assert second.endswith("epsilon 2.5, delta 1e-05, 1 run")
    assert whole == "in all: epsilon 10.5, delta 3e-05; limit 20, left 9.5"
    assert budget_text(budget_table("ash", Ledger(path))).endswith(
        "no limit ([policy] epsilon_limit in site.toml)"
    )
