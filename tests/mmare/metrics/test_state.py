"""`mmare.metrics.state` against scikit-learn, plain loops, and what another hospital may send."""

from __future__ import annotations

import copy
import json
import math

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from sklearn import metrics as sk

from mmare.metrics.state import MAX_LOG_LOSS, N_BINS, N_CALIBRATION_BINS, MetricState, merge_all

RATES = ["accuracy", "log_loss", "brier", "ece"]
OF_ALL_CLASSES = ["balanced_accuracy", "auc", "macro_f1", "macro_precision", "macro_recall"]
METRICS = ["n", *RATES, *OF_ALL_CLASSES, "balanced_log_loss", "f1", "precision", "recall"]
LOGIT = st.one_of(
    st.floats(-15, 15, width=32),
    st.sampled_from([0.0, -0.0, 1e-45, 1e-20, 1.0, -1.0]),  # ties, and scores that differ by less than a bit
)


def rows_of(n_classes, *, complete=False, max_size=12):
    """Logits and labels; with ``complete`` every class has a row."""
    row = st.tuples(st.tuples(*[LOGIT] * n_classes), st.integers(0, n_classes - 1))
    rows = st.lists(row, max_size=max_size)
    if complete:
        one_of_each = st.tuples(
            *(st.tuples(st.tuples(*[LOGIT] * n_classes), st.just(label)) for label in range(n_classes))
        )
        rows = st.tuples(one_of_each, rows).map(lambda parts: [*parts[0], *parts[1]])
    return rows.map(
        lambda pairs: (
            torch.tensor([logits for logits, _ in pairs], dtype=torch.float32).reshape(-1, n_classes),
            torch.tensor([label for _, label in pairs], dtype=torch.int64),
        )
    )


any_rows = st.sampled_from([2, 3, 4]).flatmap(rows_of)
complete_rows = st.sampled_from([2, 3, 4]).flatmap(lambda n_classes: rows_of(n_classes, complete=True))


def random_rows(n_classes, n, seed=0, spread=2.0):
    generator = torch.Generator().manual_seed(seed)
    labels = torch.randint(n_classes, (n,), generator=generator)
    logits = spread * torch.randn(n, n_classes, generator=generator)
    return logits + torch.nn.functional.one_hot(labels, n_classes), labels


def example(n_classes=2, n=60, seed=0):
    return MetricState.of(*random_rows(n_classes, n, seed))


def expected_calibration_error(probability, predicted, labels):
    """The definition, row by row."""
    bins = [[] for _ in range(N_CALIBRATION_BINS)]
    for p, guess, label in zip(probability.tolist(), predicted.tolist(), labels.tolist(), strict=True):
        top = p[guess]
        bins[min(int(top * N_CALIBRATION_BINS), N_CALIBRATION_BINS - 1)].append((top, guess == label))
    gaps = [abs(sum(hit for _, hit in held) - sum(top for top, _ in held)) for held in bins]
    return sum(gaps) / len(labels)


def sklearn_metrics(logits, labels, positive):
    """Every metric but the AUC, for rows of all classes."""
    n_classes = logits.shape[1]
    probability = logits.double().softmax(dim=1).numpy()
    truth, guess = labels.numpy(), logits.numpy().argmax(axis=1)
    binary = {
        name: score(truth, guess, pos_label=positive, zero_division=0) if n_classes == 2 else None
        for name, score in [
            ("f1", sk.f1_score),
            ("precision", sk.precision_score),
            ("recall", sk.recall_score),
        ]
    }
    squared = ((probability - np.eye(n_classes)[truth]) ** 2).sum(axis=1).mean()
    return {
        "n": len(truth),
        "accuracy": sk.accuracy_score(truth, guess),
        "balanced_accuracy": sk.balanced_accuracy_score(truth, guess),
        **binary,
        "macro_f1": sk.f1_score(truth, guess, average="macro", zero_division=0),
        "macro_precision": sk.precision_score(truth, guess, average="macro", zero_division=0),
        "macro_recall": sk.recall_score(truth, guess, average="macro", zero_division=0),
        "log_loss": sk.log_loss(truth, probability, labels=range(n_classes)),
        "balanced_log_loss": np.mean(
            [-np.log(probability[truth == label, label]).mean() for label in range(n_classes)]
        ),
        "brier": sk.brier_score_loss(truth, probability[:, 1]) if n_classes == 2 else squared,
        "ece": expected_calibration_error(probability, guess, truth),
    }


def sklearn_auc(logits, labels):
    probability = logits.double().softmax(dim=1).numpy()
    if logits.shape[1] == 2:
        return sk.roc_auc_score(labels.numpy(), probability[:, 1])
    return sk.roc_auc_score(labels.numpy(), probability, multi_class="ovr", average="macro")


def assert_same(left, right):
    """Counts exactly, float sums within rounding."""
    for mine, theirs in zip(left._tensors, right._tensors, strict=True):
        tolerance = 0 if mine.dtype == torch.int64 else 1e-9
        torch.testing.assert_close(mine, theirs, rtol=tolerance, atol=tolerance)
    assert torch.equal(left.calibration[:, :2], right.calibration[:, :2])
    assert left.withheld == right.withheld


@given(complete_rows, st.sampled_from([0, 1]))
def test_every_metric_is_that_of_scikit_learn(rows, positive):
    logits, labels = rows
    found = MetricState.of(logits, labels).compute(positive)
    assert set(found) == set(METRICS)
    for name, value in sklearn_metrics(logits, labels, positive).items():
        assert found[name] == (value if value is None else pytest.approx(value, rel=1e-9, abs=1e-9)), name


@given(complete_rows)
def test_auc_is_within_its_bound_of_the_exact_one(rows):
    state = MetricState.of(*rows)
    bound = state.auc_error_bound()
    assert abs(state.compute(1)["auc"] - sklearn_auc(*rows)) <= bound + 1e-12
    assert 0 <= bound <= 0.5


@pytest.mark.parametrize("n_classes", [2, 3, 5])
def test_auc_of_spread_scores_is_nearly_exact(n_classes):
    rows = random_rows(n_classes, 500)
    state = MetricState.of(*rows)
    assert state.auc_error_bound() < 2e-3
    assert state.compute(1)["auc"] == pytest.approx(sklearn_auc(*rows), abs=2e-4)


def test_auc_does_not_depend_on_which_class_is_positive():
    logits, labels = random_rows(2, 80)
    state, swapped = MetricState.of(logits, labels), MetricState.of(logits.flip(1), 1 - labels)
    values = {state.compute(0)["auc"], state.compute(1)["auc"], state.compute(None)["auc"]}
    assert len(values) == 1
    assert swapped.compute(1)["auc"] == pytest.approx(values.pop(), abs=1e-3)


@pytest.mark.parametrize(
    ("logits", "auc", "bound"),
    [
        pytest.param([[5.0, 0.0], [0.0, 5.0]], 1.0, 0.0, id="separated"),
        pytest.param([[0.0, 5.0], [5.0, 0.0]], 0.0, 0.0, id="reversed"),
        pytest.param([[1.0, 1.0], [3.0, 3.0]], 0.5, 0.5, id="tied"),
    ],
)
def test_auc_at_its_limits(logits, auc, bound):
    state = MetricState.of(torch.tensor(logits), torch.tensor([0, 1]))
    assert (state.compute(1)["auc"], state.auc_error_bound()) == (auc, bound)


@given(any_rows, st.data())
def test_merging_any_partition_gives_the_pooled_state(rows, data):
    logits, labels = rows
    site = torch.tensor(data.draw(st.lists(st.integers(0, 3), min_size=len(labels), max_size=len(labels))))
    parts = [MetricState.of(logits[site == index], labels[site == index]) for index in range(4)]
    pooled = MetricState.of(logits, labels)
    merged = merge_all(parts, logits.shape[1])
    assert_same(merged, pooled)
    expected = pooled.compute(0)
    for name, value in merged.compute(0).items():
        assert value == (None if expected[name] is None else pytest.approx(expected[name], abs=1e-9)), name


@given(rows_of(3), rows_of(3), rows_of(3))
def test_merge_is_associative_commutative_and_has_a_neutral_element(a, b, c):
    first, second, third = (MetricState.of(*rows) for rows in (a, b, c))
    assert_same(first.merge(second).merge(third), first.merge(second.merge(third)))
    assert_same(first.merge(second), second.merge(first))
    assert_same(first.merge(MetricState.empty(3)), first)


def test_merge_leaves_its_parts_as_they_were():
    first, second = example(seed=1), example(seed=2)
    before = copy.deepcopy(first.to_dict())
    first.merge(second)
    first.withhold(1000)
    assert first.to_dict() == before


def test_merge_refuses_another_number_of_classes():
    with pytest.raises(ValueError, match="2 and 3 classes"):
        example(2).merge(example(3))


@pytest.mark.parametrize("n_classes", [2, 3])
def test_no_rows(n_classes):
    nothing = MetricState.of(torch.empty(0, n_classes), torch.empty(0, dtype=torch.int64))
    assert_same(nothing, MetricState.empty(n_classes))
    assert_same(merge_all([], n_classes), nothing)
    assert nothing.counts == (0,) * n_classes
    assert nothing.compute(1) == {**dict.fromkeys(METRICS), "n": 0}
    assert nothing.auc_error_bound() is None


@given(any_rows, st.sampled_from([None, 0, 1]))
def test_what_is_not_defined_is_none_and_never_nan(rows, positive):
    state = MetricState.of(*rows)
    found = state.compute(positive)
    assert all(value is None or math.isfinite(value) for value in found.values())
    json.dumps(found, allow_nan=False)
    assert all((found[name] is not None) == all(state.counts) for name in OF_ALL_CLASSES)
    assert all((found[name] is not None) == (state.n > 0) for name in RATES)
    if state.n_classes > 2 or positive is None:
        assert found["f1"] is found["precision"] is found["recall"] is None
    else:
        assert (found["f1"] is not None) == (found["precision"] is not None) == all(state.counts)
        assert (found["recall"] is not None) == (state.counts[positive] > 0)


def test_class_that_is_never_predicted_has_precision_zero():
    state = MetricState.of(torch.tensor([[1.0, 0.0], [1.0, 0.0]]), torch.tensor([0, 1]))
    found = state.compute(1)
    assert (found["precision"], found["recall"], found["f1"]) == (0.0, 0.0, 0.0)
    assert found["macro_precision"] == 0.25


def test_log_loss_is_not_clipped():
    state = MetricState.of(torch.tensor([[1000.0, 0.0]]), torch.tensor([1]))
    assert state.compute(1)["log_loss"] == 1000.0


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float32, torch.float64])
def test_any_float_with_a_gradient_is_taken(dtype):
    logits = torch.tensor([[2.0, 1.0], [0.0, 1.0]], dtype=dtype, requires_grad=True)
    state = MetricState.of(logits, torch.tensor([0, 1]))
    assert state.compute(1)["accuracy"] == 1.0
    assert not any(tensor.requires_grad for tensor in state._tensors)


@pytest.mark.parametrize("bad", [math.nan, math.inf, -math.inf])
@pytest.mark.parametrize("label", [0, 1])
def test_logits_that_are_not_finite_are_refused(bad, label):
    with pytest.raises(ValueError, match="finite"):
        MetricState.of(torch.tensor([[bad, 0.0]]), torch.tensor([label]))


def test_logits_that_give_an_infinite_loss_are_refused():
    with pytest.raises(ValueError, match="finite"):
        MetricState.of(torch.tensor([[1e308, -1e308]], dtype=torch.float64), torch.tensor([1]))


def test_largest_float32_logits_are_taken_and_read_back():
    top = torch.finfo(torch.float32).max
    state = MetricState.of(torch.tensor([[top, -top], [-top, top]]), torch.tensor([1, 1]))
    assert_same(MetricState.from_dict(state.to_dict(), 2), state)


def test_withhold_empties_small_classes_and_names_them():
    logits, labels = random_rows(3, 40)
    labels = torch.where(labels == 2, 0, labels)
    labels[0] = 2
    state = MetricState.of(logits, labels)
    released = state.withhold(2)
    assert released.withheld == (2,)
    assert released.counts == (*state.counts[:2], 0)
    kept = labels != 2
    assert released.compute(1) == MetricState.of(logits[kept], labels[kept]).compute(1)
    assert released.compute(None)["balanced_accuracy"] is None
    assert released.compute(None)["accuracy"] is not None


@pytest.mark.parametrize("min_count", [0, 1, 3])
def test_withhold_releases_groups_that_are_large_enough_or_empty(min_count):
    state = MetricState.of(torch.zeros(3, 2), torch.tensor([1, 1, 1]))
    assert state.withhold(min_count).withheld == ()
    assert state.withhold(min_count).counts == (0, 3)


def test_withheld_classes_are_united_by_merge():
    first = MetricState.of(torch.zeros(4, 3), torch.tensor([2, 1, 1, 1])).withhold(2)
    second = MetricState.of(torch.zeros(4, 3), torch.tensor([0, 1, 2, 2])).withhold(2)
    assert (first.withheld, second.withheld) == ((2,), (0, 1))
    assert first.merge(second).withheld == (0, 1, 2)
    assert first.merge(second).counts == (0, 3, 2)


@given(any_rows, st.integers(0, 5))
def test_dict_round_trip_through_json(rows, min_count):
    state = MetricState.of(*rows).withhold(min_count)
    text = json.dumps(state.to_dict(), allow_nan=False)
    back = MetricState.from_dict(json.loads(text), state.n_classes)
    assert all(torch.equal(mine, theirs) for mine, theirs in zip(state._tensors, back._tensors, strict=True))
    assert back.withheld == state.withheld
    assert json.dumps(back.to_dict()) == text
    assert all(mine.dtype == theirs.dtype for mine, theirs in zip(state._tensors, back._tensors, strict=True))


@given(rows_of(3, complete=True), rows_of(3))
def test_a_merged_state_is_read_back(first, second):
    state = MetricState.of(*first).withhold(3).merge(MetricState.of(*second))
    assert_same(MetricState.from_dict(state.to_dict(), 3), state)


def test_dict_holds_occupied_bins_only():
    state = MetricState.of(torch.tensor([[0.0, 0.0], [0.0, 0.0]]), torch.tensor([1, 1]))
    assert state.to_dict() == {
        "bins": [N_BINS, N_CALIBRATION_BINS],
        "classes": [
            None,
            {
                "n": 2,
                "confusion": [2, 0],
                "histogram": [[[N_BINS // 2, 2]], []],
                "log_loss": pytest.approx(2 * math.log(2)),
                "brier": 0.5,
                "calibration": [[7, 2, 0, 1.0]],
            },
        ],
        "withheld": [],
    }


def _set(*path_and_value: object):
    """A change: sets the value at a path of keys."""
    *path, last, value = path_and_value

    def change(content):
        for key in path:
            content = content[key]
        content[last] = value

    return change


def _class(*path_and_value: object):
    return _set("classes", 1, *path_and_value)


HONEST = (torch.tensor([[0.0, 2.0], [2.0, 0.0], [0.0, 3.0], [0.0, 1.0]]), torch.tensor([1, 1, 1, 0]))


@pytest.mark.parametrize(
    ("change", "reason"),
    [
        pytest.param(_set("bins", [100, 15]), "other bins", id="other bins"),
        pytest.param(_set("bins", None), "other bins", id="no bins"),
        pytest.param(_set("note", "x"), "table of", id="unknown key"),
        pytest.param(lambda content: content.pop("withheld"), "table of", id="missing key"),
        pytest.param(_set("classes", None), "classes must be a list", id="classes not a list"),
        pytest.param(_set("classes", [None]), "classes must be a list of 2", id="too few classes"),
        pytest.param(_set("classes", [None] * 3), "classes must be a list of 2", id="too many classes"),
        pytest.param(_set("classes", 1, 7), "class 1 must be a table", id="class not a table"),
        pytest.param(_class("note", "x"), "class 1 must be a table", id="unknown class key"),
        pytest.param(_set("withheld", [2]), "withheld", id="withheld out of range"),
        pytest.param(_set("withheld", [1, 0]), "not sorted", id="withheld not sorted"),
        pytest.param(_set("withheld", [0, 0]), "not sorted", id="withheld twice"),
        pytest.param(_set("withheld", [True]), "withheld", id="withheld a bool"),
        pytest.param(_set("withheld", "0"), "withheld", id="withheld a text"),
        pytest.param(_class("n", 4), "confusion does not sum", id="n too large"),
        pytest.param(_class("n", 3.0), "class 1 n", id="n a float"),
        pytest.param(_class("n", -3), "class 1 n", id="n negative"),
        pytest.param(_class("n", 2**63), "class 1 n", id="n overflows"),
        pytest.param(_class("n", 0), "class 1", id="n zero"),
        pytest.param(_class("confusion", [2, 1]), "class 1", id="confusion against histogram"),
        pytest.param(_class("confusion", [4, -1]), "confusion", id="confusion negative"),
        pytest.param(_class("confusion", [3]), "confusion must be a list of 2", id="confusion short"),
        pytest.param(_class("confusion", 0, True), "confusion", id="confusion a bool"),
        pytest.param(_class("histogram", [[]]), "histogram must be a list of 2", id="histogram short"),
        pytest.param(_class("histogram", 1, []), "histogram does not agree", id="histogram sums to less"),
        pytest.param(
            _class("histogram", 1, 0, 1, 2), "histogram does not agree", id="histogram sums to more"
        ),
        pytest.param(_class("histogram", 1, 0, 1, 1.0), "histogram", id="histogram a float"),
        pytest.param(_class("histogram", 1, 0, 1, -1), "histogram", id="histogram negative"),
        pytest.param(_class("histogram", 1, 0, 0, N_BINS), "histogram", id="bin out of range"),
        pytest.param(_class("histogram", 1, 0, 0, -1), "histogram", id="bin negative"),
        pytest.param(_class("histogram", 1, [[9, 1], [9, 1]]), "bins do not rise", id="bin twice"),
        pytest.param(_class("histogram", 1, [[9, 1], [8, 1]]), "bins do not rise", id="bins unsorted"),
        pytest.param(_class("histogram", 1, [[9]]), "histogram must be a list of 2", id="entry short"),
        pytest.param(_class("histogram", 1, {"9": 2}), "histogram must be a list", id="histogram a table"),
        pytest.param(_class("log_loss", math.nan), "log_loss", id="log loss nan"),
        pytest.param(_class("log_loss", math.inf), "log_loss", id="log loss infinite"),
        pytest.param(_class("log_loss", -1.0), "log_loss", id="log loss negative"),
        pytest.param(_class("log_loss", 4 * MAX_LOG_LOSS), "log_loss", id="log loss too large"),
        pytest.param(_class("log_loss", 10**400), "log_loss", id="log loss a huge int"),
        pytest.param(_class("log_loss", "1"), "log_loss", id="log loss a text"),
        pytest.param(_class("log_loss", True), "log_loss", id="log loss a bool"),
        pytest.param(_class("brier", 3.1), "brier", id="brier too large"),
        pytest.param(_class("brier", None), "brier", id="brier null"),
        pytest.param(_class("calibration", []), "calibration does not agree", id="calibration empty"),
        pytest.param(_class("calibration", 0, 2, 5), "calibration", id="more hits than rows"),
        pytest.param(
            _class("calibration", 0, 2, 0), "calibration does not agree", id="hits against confusion"
        ),
        pytest.param(_class("calibration", 0, 3, 0.1), "calibration", id="confidence below its bin"),
        pytest.param(_class("calibration", 0, 3, 3.1), "calibration", id="confidence above its bin"),
        pytest.param(_class("calibration", 0, 3, math.nan), "calibration", id="confidence nan"),
        pytest.param(_class("calibration", 0, 0, 15), "calibration", id="calibration bin out of range"),
    ],
)
def test_contradictory_or_invalid_content_is_refused(change, reason):
    content = MetricState.of(*HONEST).to_dict()
    MetricState.from_dict(content, 2)
    change(content)
    with pytest.raises(ValueError, match=reason) as caught:
        MetricState.from_dict(content, 2)
    assert len(str(caught.value)) < 120


@pytest.mark.parametrize("content", [None, [], "state", 3, {}])
def test_content_of_another_kind_is_refused(content):
    with pytest.raises(ValueError, match="the state must be a table"):
        MetricState.from_dict(content, 2)


def test_each_score_of_many_classes_must_sum_to_all_rows():
    content = example(3).to_dict()
    content["classes"][0]["histogram"][2].pop()
    with pytest.raises(ValueError, match="class 0 histogram does not agree"):
        MetricState.from_dict(content, 3)


JSON_VALUE = st.one_of(
    st.none(),
    st.booleans(),
    st.integers(),
    st.floats(),
    st.text(max_size=3),
    st.lists(st.integers(), max_size=3),
)


@given(st.data(), JSON_VALUE)
def test_any_change_is_refused_or_gives_a_state_without_nan(data, value):
    content = MetricState.of(*HONEST).to_dict()
    place = content
    while True:
        key = data.draw(
            st.sampled_from(sorted(place) if isinstance(place, dict) else list(range(len(place))))
        )
        if not place[key] or not isinstance(place[key], dict | list) or data.draw(st.booleans()):
            place[key] = value
            break
        place = place[key]
    try:
        state = MetricState.from_dict(content, 2)
    except ValueError:
        return
    json.dumps([state.compute(1), state.auc_error_bound()], allow_nan=False)
