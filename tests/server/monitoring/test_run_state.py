"""What the state says of a journal, of today or as it was written before lines had codes."""

import json

import pytest

from mmare.errors import Ending, Reason, SiteCode
from server.monitoring.followed_run import read_run
from tests.server.journals import TOML, a_round, called, event, left_out, started, update, validated, write


@pytest.mark.parametrize(("resumed_from", "kept"), [(2, [1, 2, 3]), (0, [3])])
def test_a_resume_supersedes_later_rounds(tmp_path, resumed_from, kept):
    rounds = [
        [*a_round(number, ["ash"]), left_out("birch", number, "late"), validated(number, number / 10)]
        for number in (1, 2, 3, 4)
    ]
    resumed = event("resumed", round=resumed_from, resumed_from=resumed_from)
    lines = [started(), called("ash"), *(line for each in rounds for line in each)]
    state = read_run(write(tmp_path, [*lines, started(), resumed, *rounds[2]]))
    assert list(state.rounds) == kept
    assert [each.round for each in state.absences] == kept
    assert (state.best_round, state.saved, state.starts) == (3, 4, 2)


def test_what_a_round_was_like(tmp_path):
    lines = [event("round_started", round=1), update("ash", 1, samples=30), update("birch", 1, samples=10)]
    lines += [
        {**update("cedar", 1, samples=0), "train_loss": None},
        left_out("dogwood", 1, "node failed (x)"),
    ]
    state = read_run(write(tmp_path, [started(), *lines, *a_round(1, [])[1:], validated(1, 0.7)]))
    row = state.rounds[1]
    assert (sorted(row.updates), row.loss, row.score) == (["ash", "birch"], 0.5, 0.7)
    assert [(each.site, each.code) for each in row.left_out] == [("dogwood", Reason.NODE_FAILED)]
    assert (row.seconds, row.checkpoint_s) == (pytest.approx(2.22), 0.3)


def test_answers_of_the_test_belong_to_no_round(tmp_path):
    late = {**left_out("birch", 1, "no answer before the deadline"), "phase": "test"}
    lines = [started(), *a_round(1, ["ash"]), {**update("ash", 1), "train_loss": None, "phase": "test"}, late]
    state = read_run(write(tmp_path, lines))
    assert state.rounds[1].updates["ash"].train_loss == 0.5
    assert state.rounds[1].left_out == []
    assert [(each.site, each.phase) for each in state.absences] == [("birch", "test")]
    assert state.sites["other"].answer.phase == "test"  # of nobody who was at the roll call


def test_a_site_that_came_before_the_first_round_has_missed_nothing(tmp_path):
    refused = called("birch", accepted=False, reason="refused: S102")
    waited = [started(), refused, event("run_failed", reason="x"), started(), called("ash"), called("birch")]
    assert read_run(write(tmp_path / "waited", waited)).absences == []
    later = [started(), refused, called("ash"), *a_round(1, ["ash"]), called("birch")]
    assert [each.site for each in read_run(write(tmp_path / "later", later)).absences] == ["birch"]


BEFORE = """\
{"event": "run_started", "time": "2026-01-01T00:00:00+00:00", "run": "tiny-0123abcd", "settings": \
{"study": {"name": "tiny", "seed": 3}, "modality": [{"name": "ct"}], "model": {"name": "mmare"}, \
"training": {"rounds": 9, "select": "loss"}, "federation": "/data/fed", "privacy": {"min_count": 0}, \
"mode": "federated", "subsets": false}, "versions": {}, "hash": "ab", "mode": "federated", "backend": "ray"}
{"event": "roll_call", "time": "2026-01-01T00:00:01+00:00", "run": "tiny-0123abcd", "site": "ash", \
"accepted": true, "reason": null, "samples": 40, "encoders": {"ct": "given"}, "software": "0.1.0", \
"notes": ["untrained"], "counts": {"splits": {}, "patterns": {"train": {"1": 40}}}}
{"event": "roll_call", "time": "2026-01-01T00:00:01+00:00", "run": "tiny-0123abcd", "site": "node 7", \
"accepted": false, "reason": "refused: S102"}
{"event": "round_started", "time": "2026-01-01T00:00:02+00:00", "run": "tiny-0123abcd", "round": 1}
{"event": "site_update", "time": "2026-01-01T00:00:03+00:00", "run": "tiny-0123abcd", "round": 1, \
"site": "ash", "samples": 40, "seconds": 1.0, "bytes_up": 9, "bytes_down": 9, "norm": 1.0, "train_loss": 0.5}
{"event": "site_left_out", "time": "2026-01-01T00:00:03+00:00", "run": "tiny-0123abcd", "round": 1, \
"site": "birch", "reason": "values that are not finite"}
{"event": "run_failed", "time": "2026-01-01T00:00:04+00:00", "run": "tiny-0123abcd", "reason": \
"0 sites with training rows sent a good update in round 2, expected at least 2 (federation.min_sites); x"}
"""


def test_a_journal_of_an_earlier_version_says_the_same(tmp_path):
    (tmp_path / "study.toml").write_text(TOML)
    (tmp_path / "rounds.jsonl").write_text(BEFORE)
    state = read_run(tmp_path)
    assert (state.name, state.first.settings["federation"]) == ("tiny-0123abcd", "/data/fed")
    assert (state.min_sites, state.deadline_s, state.info["strategy"]) == (2, 30, "fedavg")
    assert [each.code for each in state.absences] == [SiteCode.STUDY, Reason.NON_FINITE]
    assert (state.calls["ash"].notes, state.calls["ash"].code) == (("untrained",), None)
    assert state.failed is Ending.QUORUM


def test_the_journal_of_a_site_alone_had_no_settings(tmp_path):
    (tmp_path / "study.toml").write_text('[training]\nrounds = 5\nselect = "loss"\n' + TOML)
    lines = [{"event": "run_started", "run": "tiny-ash", "mode": "local", "site": "ash", "hash": "ab"}]
    lines += [validated(1, 0.9, loss=2.0), validated(2, 0.5, loss=1.0)]
    (tmp_path / "rounds.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    state = read_run(tmp_path)
    assert (state.first.site, state.planned_rounds, state.best_round) == ("ash", 5, 2)
