import itertools
from collections import Counter
from dataclasses import replace

import pytest
import torch
from sklearn.metrics import accuracy_score

from client.privacy.extra_answers import check_attribution
from client.training.evaluate import evaluate, pattern_names
from mmare.errors import SiteCode, SiteError
from mmare.metrics.attribution import AttributionState
from mmare.metrics.calibration import CalibrationState
from mmare.metrics.state import MetricState, merge_all
from mmare.models.batch import Batch
from mmare.models.registry import build_model
from mmare.wire.messages import Split
from tests.federations import tiny_data, tiny_study

STUDY = tiny_study()


def state(content):
    return MetricState.from_dict(content, 2)


def test_patterns_sum_to_the_total():
    data = tiny_data(STUDY, 200)
    found = evaluate(build_model(STUDY), data, Split.TEST, 0, patterns=True)
    parts = {name: state(content) for name, content in found.patterns.items()}
    wanted = Counter(pattern_names(data.present[data.rows[Split.TEST]]))
    assert {name: part.n for name, part in parts.items()} == wanted
    merged, total = merge_all(parts.values(), 2), state(found.state)
    assert torch.equal(merged.confusion, total.confusion)
    assert torch.equal(merged.histogram, total.histogram)
    torch.testing.assert_close(merged.losses, total.losses)
    torch.testing.assert_close(merged.calibration, total.calibration)


def test_the_state_is_that_of_the_models_predictions():
    data, model = tiny_data(STUDY, 100), build_model(STUDY)
    found = evaluate(model, data, Split.VAL, 0, patterns=False)
    rows = data.rows[Split.VAL]
    batch = Batch(tuple(part[rows] for part in data.embedding), data.present[rows])
    predicted = model.predict(batch).argmax(dim=1)
    assert state(found.state).compute(1)["accuracy"] == pytest.approx(
        accuracy_score(data.label[rows], predicted)
    )
    assert found.split is Split.VAL
    assert found.patterns == {}


def test_small_groups_are_withheld():
    data = tiny_data(STUDY, 200, missing=0.05)
    found = evaluate(build_model(STUDY), data, Split.TEST, 8, patterns=True)
    sizes = Counter(pattern_names(data.present[data.rows[Split.TEST]]))
    assert min(sizes.values()) < 8 < max(sizes.values())
    assert all(sizes[name] >= 8 for name in found.patterns)
    for content in (found.state, *found.patterns.values()):
        assert all(count == 0 or count >= 8 for count in state(content).counts)


def test_losses_on_the_calibration_grid_withhold_the_same_classes():
    data = tiny_data(STUDY, 200)
    found = evaluate(build_model(STUDY), data, Split.VAL, 5, calibration=True)
    grid = CalibrationState.from_dict(found.calibration, 2)
    assert tuple(grid.counts.tolist()) == state(found.state).counts
    few = evaluate(build_model(STUDY), data, Split.VAL, 200, calibration=True)
    assert CalibrationState.from_dict(few.calibration, 2).counts.tolist() == [0, 0]
    assert few.calibration["withheld"] == [0, 1]
    assert evaluate(build_model(STUDY), data, Split.VAL, 5).calibration == {}


@pytest.mark.parametrize(("least", "missing"), [(0, 0.3), (8, 0.3), (8, 0.15), (12, 0.5)])
def test_shapley_values_are_summed_over_rows_that_are_told_in_large_groups(least, missing):
    """Of two modalities by hand: the mean of what each moves first and second."""
    data, model = tiny_data(STUDY, 200, missing=missing), build_model(STUDY)
    found = evaluate(model, data, Split.TEST, least, patterns=True, shapley=True)
    prior = data.label[data.rows[Split.TRAIN]].double().mean().item()
    rows, moved = [0, 0], [0.0, 0.0]
    names = pattern_names(data.present[data.rows[Split.TEST]])
    others = [name for name in names if name not in found.patterns]
    having = [sum(name[slot] == "1" for name in others) for slot in (0, 1)]
    enough = all(n == 0 or n >= least for one in having for n in (one, len(others) - one))
    for row in data.rows[Split.TEST].tolist():
        present = data.present[row].tolist()
        told = pattern_names(data.present[[row]])[0] in found.patterns

        def probability(*shown, row=row, present=present):
            if not any(there and other for there, other in zip(shown, present, strict=True)):
                return prior
            seen = torch.tensor([shown]) & data.present[[row]]
            return model.predict(Batch(tuple(part[[row]] for part in data.embedding), seen))[0, 1].item()

        both, ct, text = (probability(*shown) for shown in ((True, True), (True, False), (False, True)))
        shares = (((ct - prior) + (both - text)) / 2, ((text - prior) + (both - ct)) / 2)
        for slot, share in enumerate(shares):
            if present[slot] and (told or enough):
                rows[slot] += 1
                moved[slot] += abs(share)
    state_of = AttributionState.from_dict(found.attribution, 2)
    assert state_of.rows.tolist() == rows
    assert state_of.moved.tolist() == pytest.approx(moved, abs=1e-3)
    assert evaluate(model, data, Split.TEST, least, patterns=True).attribution == {}


@pytest.mark.parametrize("least", [2, 5, 9])
@pytest.mark.parametrize("missing", [0.05, 0.3, 0.6])
def test_the_gate_lets_those_sums_pass_and_none_over_one_row_more_or_less(least, missing):
    data = tiny_data(STUDY, 160, missing=missing)
    found = evaluate(build_model(STUDY), data, Split.TEST, least, patterns=True, shapley=True)
    patterns = {name: state(content).counts for name, content in found.patterns.items()}

    def check(evaluation):
        check_attribution(evaluation, state(found.state).counts, patterns, STUDY, least)

    check(found)
    rows, rest = found.attribution["rows"], sum(state(found.state).counts) - sum(map(sum, patterns.values()))
    for more in (1, rest - 1):
        if 0 < more < rest and min(more, rest - more) < least:
            disclosed = sum(sum(counts) for name, counts in patterns.items() if name[0] == "1")
            lying = {"rows": [disclosed + more, rows[1]], "moved": [0.0, 0.0]}
            with pytest.raises(ValueError, match="Shapley values of a small group"):
                check(replace(found, attribution=lying))


def test_shapley_values_of_too_few_are_not_told():
    found = evaluate(build_model(STUDY), tiny_data(STUDY, 60), Split.TEST, 50, patterns=True, shapley=True)
    assert found.attribution == {"rows": [0, 0], "moved": [0.0, 0.0]}


def test_a_split_without_rows_is_an_empty_state():
    data = tiny_data(STUDY)
    data.rows[Split.VAL] = torch.zeros(0, dtype=torch.int64)
    found = evaluate(build_model(STUDY), data, Split.VAL, 0, patterns=True)
    assert state(found.state).n == 0
    assert found.patterns == {}


def test_output_that_is_not_finite_is_refused():
    model = build_model(STUDY)
    with torch.no_grad():
        model.head.out.bias.fill_(float("inf"))
    with pytest.raises(SiteError, match=SiteCode.NON_FINITE):
        evaluate(model, tiny_data(STUDY), Split.VAL, 0, patterns=False)


def test_evaluating_twice_is_the_same_and_leaves_the_model_alone():
    data, model = tiny_data(STUDY), build_model(STUDY)
    before = {name: value.clone() for name, value in model.state_dict().items()}
    first = evaluate(model, data, Split.TRAIN, 0, patterns=True)
    assert evaluate(model, data, Split.TRAIN, 0, patterns=True) == first
    assert all(torch.equal(value, before[name]) for name, value in model.state_dict().items())


def test_a_subset_is_tested_on_the_rows_that_have_it_with_the_rest_hidden():
    study = tiny_study()
    data, model = tiny_data(study), build_model(study)
    found = evaluate(model, data, Split.TRAIN, 0, patterns=True, subsets=True)
    rows = data.rows[Split.TRAIN]
    width = data.present.shape[1]
    for name, state in found.subsets.items():
        wanted = torch.tensor([letter == "1" for letter in name])
        chosen = rows[(data.present[rows] | ~wanted).all(dim=1)]
        there = wanted.expand(len(chosen), width)
        with torch.no_grad():
            logits = model.eval()(Batch(tuple(part[chosen] for part in data.embedding), there))
        assert MetricState.of(logits, data.label[chosen]).to_dict() == state
    everyone = {"".join(bits) for bits in itertools.product("01", repeat=width)} - {"0" * width}
    assert set(found.subsets) <= everyone
    assert set(found.patterns) <= set(found.subsets)


def test_subsets_tell_no_size_that_patterns_do_not():
    """Rows of withheld patterns are in no subset: every count is a sum of released ones."""
    study = tiny_study()
    data, model = tiny_data(study), build_model(study)
    found = evaluate(model, data, Split.TRAIN, 3, patterns=True, subsets=True)
    told = {name: MetricState.from_dict(dict(state), 2).counts for name, state in found.patterns.items()}
    for name, state in found.subsets.items():
        over = [
            counts
            for pattern, counts in told.items()
            if all(a <= b for a, b in zip(name, pattern, strict=True))
        ]
        expected = tuple(sum(column) for column in zip(*over, strict=True)) if over else (0, 0)
        assert MetricState.from_dict(dict(state), 2).counts == expected
