import json
import math

import pytest

from mmare.study.choices import Select
from server.store.selection import NEVER_MOVED, NO_ROWS, ONE_CLASS, Selection, selection_note


def metrics(accuracy, loss):
    return {"pooled": {"balanced_accuracy": accuracy, "log_loss": loss}, "sites": {}}


def chosen(rounds):
    found = Selection()
    for number, (accuracy, loss) in enumerate(rounds, start=1):
        found = found.after(number, metrics(accuracy, loss), Select.BALANCED_ACCURACY)
    return found


@pytest.mark.parametrize(
    ("rounds", "best"),
    [
        pytest.param([(0.5, 1.0), (0.6, 2.0), (0.55, 0.1)], 2, id="accuracy-first"),
        pytest.param([(0.5, 1.0), (0.5, 0.9), (0.5, 0.95)], 2, id="tie-by-loss"),
        pytest.param([(0.5, 1.0), (0.5, 1.0)], 1, id="full-tie-stays-with-the-earlier"),
        pytest.param([(None, 0.5), (0.1, 9.0)], 2, id="a-defined-one-beats-none"),
        pytest.param([(None, 0.5), (None, 0.4), (None, 0.6)], 2, id="no-accuracy-goes-by-loss"),
        pytest.param([(None, None), (None, None)], 1, id="nothing-defined-keeps-the-first"),
        pytest.param([(0.5, None), (0.5, 3.0)], 2, id="a-defined-loss-beats-none"),
        pytest.param([(0.0, 3.0), (None, 0.1)], 1, id="zero-is-not-none"),
    ],
)
def test_the_best_round(rounds, best):
    assert chosen(rounds).round == best


def rows_of_one_class(loss):
    return {"pooled": {"n": 9, "balanced_accuracy": None, "auc": None, "log_loss": loss}, "sites": {}}


@pytest.mark.parametrize("select", [Select.AUC, Select.LOSS, Select.BALANCED_LOSS])
def test_rows_of_one_class_choose_no_round_that_calls_everybody_so(select):
    found = Selection()
    for number, loss in enumerate((0.5, 0.1, 0.3), start=1):
        found = found.after(number, rows_of_one_class(loss), select)
    assert found.round == 3
    assert not found.exhausted(patience=1)
    assert selection_note(found, rows_of_one_class(0.3), select, 1) == ONE_CLASS


def test_a_score_that_never_moved_is_named():
    told = {"pooled": {"n": 9, "balanced_accuracy": 0.5, "auc": 0.5, "log_loss": 0.5}, "sites": {}}
    assert selection_note(Selection(1, (-0.5, -0.5), 26), told, Select.LOSS, 1) == NEVER_MOVED
    assert selection_note(Selection(2, (-0.5, -0.5), 26), told, Select.LOSS, 1) == ""
    assert selection_note(Selection(2, (-0.5, -0.5), 26), told, Select.LOSS, 2) == NEVER_MOVED
    assert selection_note(Selection(1, (-0.5, -0.5), 1), told, Select.LOSS, 1) == ""  # there was no other
    assert selection_note(Selection(3, (-0.5, -0.5), 3), {"pooled": {"n": 0}}, Select.LOSS, 1) == NO_ROWS


def test_without_validation_rows_the_last_round_is_kept():
    nothing = {"pooled": {"balanced_accuracy": None, "log_loss": None, "n": 0}, "sites": {}}
    found = Selection()
    for number in range(1, 6):
        found = Selection.from_dict(found.to_dict()).after(number, nothing, Select.BALANCED_ACCURACY)
    assert (found.round, found.exhausted(1)) == (5, False)
    scored = found.after(6, metrics(0.1, 1), Select.BALANCED_ACCURACY)
    assert scored.after(7, nothing, Select.BALANCED_ACCURACY).round == 6  # nobody answered once


@pytest.mark.parametrize(("patience", "stops"), [(1, 3), (2, 4), (3, 5)])
def test_patience_counts_rounds_without_a_better_one(patience, stops):
    found, number = Selection(), 0
    for number, accuracy in enumerate((0.5, 0.6, 0.6, 0.6, 0.6, 0.6), start=1):
        found = found.after(number, metrics(accuracy, 1.0), Select.BALANCED_ACCURACY)
        if found.exhausted(patience):
            break
    assert (found.round, number) == (2, stops)


def test_a_better_round_starts_the_count_again():
    assert not chosen([(0.5, 1), (0.4, 1), (0.6, 1), (0.5, 1)]).exhausted(2)


@pytest.mark.parametrize("rounds", [[], [(None, None)], [(0.25, None)], [(0.1, 0.3), (0.2, 0.1)]])
def test_a_selection_survives_json(rounds):
    found = chosen(rounds)
    again = Selection.from_dict(json.loads(json.dumps(found.to_dict(), allow_nan=False)))
    assert again == found
    assert all(not math.isnan(value) for value in again.score)


SITES = {"ash": {"balanced_accuracy": 0.4}, "birch": {"balanced_accuracy": 0.9}, "cedar": {}}


@pytest.mark.parametrize(
    ("select", "score"),
    [
        (Select.BALANCED_ACCURACY, 0.7),
        (Select.WORST_SITE, 0.4),
        (Select.AUC, 0.8),
        (Select.LOSS, -0.5),
        (Select.BALANCED_LOSS, -0.6),
    ],
)
def test_what_is_selected_by(select, score):
    pooled = {"balanced_accuracy": 0.7, "auc": 0.8, "log_loss": 0.5, "balanced_log_loss": 0.6}
    found = Selection().after(1, {"pooled": pooled, "sites": SITES}, select)
    assert found.score == (score, -0.5)
