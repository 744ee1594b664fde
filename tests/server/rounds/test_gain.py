"""The paired comparison of two models against plain counting over rows."""

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from sklearn.metrics import balanced_accuracy_score

from client.training.evaluate import compare
from mmare.errors import RunError
from mmare.models.registry import build_model
from mmare.wire.messages import Comparison, encode
from mmare.wire.tensors import global_tensors
from server.rounds.fleet import Answer
from server.rounds.gain import gain_of, gains
from tests.federations import tiny_study

CLASSES = ("ill", "well")


@given(st.lists(st.tuples(st.booleans(), st.booleans(), st.integers(0, 1)), min_size=4, max_size=60))
def test_the_difference_is_that_of_the_rows(rows):
    first, second, label = (torch.tensor(column) for column in zip(*rows, strict=True))
    found = gain_of(compare("ash", first, second, label, CLASSES).cells, CLASSES)
    assert found["n"] == len(rows)
    if len(set(label.tolist())) < 2:
        assert found["difference"] is None
        return
    truth = label.numpy()
    scores = [balanced_accuracy_score(truth, np.where(right, truth, 1 - truth)) for right in (first, second)]
    assert (found["first"], found["second"]) == pytest.approx(tuple(scores))
    assert found["difference"] == pytest.approx(scores[0] - scores[1])
    low, high = found["ci95"]
    assert low - 1e-12 <= found["difference"] <= high + 1e-12 or len(rows) < 20


def test_the_interval_is_the_bootstrap_over_rows():
    """Resample rows within each class, pair by pair, in a plain loop."""
    generator = np.random.default_rng(0)
    label = np.repeat([0, 1], [40, 90])
    first, second = generator.random(130) < 0.8, generator.random(130) < 0.7
    cells = compare("ash", *map(torch.from_numpy, (first, second, label)), CLASSES).cells
    differences = []
    for _ in range(4000):
        parts = [generator.choice(np.flatnonzero(label == value), (label == value).sum()) for value in (0, 1)]
        differences.append(np.mean([first[part].mean() - second[part].mean() for part in parts]))
    assert gain_of(cells, CLASSES)["ci95"] == pytest.approx(
        np.quantile(differences, [0.025, 0.975]), abs=0.02
    )


def test_models_that_agree_have_no_gain():
    found = gain_of({"ill": (5, 0, 0, 2), "well": (8, 0, 0, 1)}, CLASSES)
    assert found["difference"] == 0
    assert found["ci95"] == [0, 0]


def test_a_class_that_is_too_small_is_withheld():
    label = torch.tensor([0, 0, 1, 1, 1, 1, 1, 1])
    right = torch.ones(8, dtype=torch.bool)
    assert set(compare("ash", right, right, label, CLASSES, {0}).cells) == {CLASSES[1]}
    assert set(compare("ash", right, right, label, CLASSES).cells) == set(CLASSES)


class Sites:
    """Answers what it is told to."""

    def __init__(self, *answers):
        self.answers = answers

    def nodes(self, _at_least, _deadline_s):
        return range(len(self.answers))

    def ask(self, requests, _payload, _deadline_s):
        for node in requests:
            if self.answers[node] is not None:
                yield Answer(node, self.answers[node])


class Member:
    def __init__(self, node):
        self.node = node


def ask(*answers):
    study = tiny_study()
    tensors = global_tensors(build_model(study))
    sites = ["ash", "birch", "cedar"][: len(answers)]
    members = {site: Member(node) for node, site in enumerate(sites)}
    return gains(Sites(*answers), study, "run", members, tensors, dict.fromkeys(sites, tensors))


def told(site, cells):
    return encode(Comparison(site, cells))


def test_pooled_counts_are_added_over_sites():
    names = tiny_study().classes
    found = ask(
        told("ash", {names[0]: (5, 1, 0, 2), names[1]: (3, 0, 0, 0)}),
        told("birch", {names[0]: (1, 1, 1, 1), names[1]: (0, 2, 0, 0)}),
    )
    together = gain_of({names[0]: (6, 2, 1, 3), names[1]: (3, 2, 0, 0)}, names)
    assert found["pooled"] == together
    assert set(found["sites"]) == {"ash", "birch"}


@pytest.mark.parametrize(
    ("answer", "reason"),
    [
        pytest.param("{}", "not a message", id="garbage"),
        pytest.param(told("cedar", {}), "an answer of site 'cedar'", id="other-site"),
        pytest.param(told("birch", {"ghost": (1, 1, 1, 1)}), "no rows could give", id="no-such-class"),
        pytest.param(told("birch", {"yes": (1, 1, 1)}), "no rows could give", id="three-cells"),
        pytest.param(told("birch", {"yes": (1, -1, 1, 1)}), "no rows could give", id="negative"),
        pytest.param(None, "no answer before the deadline", id="silent"),
    ],
)
def test_an_odd_answer_is_left_out_by_name(answer, reason):
    names = tiny_study().classes
    good = told("ash", dict.fromkeys(names, (3, 1, 1, 1)))
    found = ask(good, answer)
    assert reason in found["left_out"]["birch"]
    assert set(found["sites"]) == {"ash"}


def test_nobody_to_compare_is_one_sentence():
    with pytest.raises(RunError, match="no site could compare: no answer"):
        ask(None, None)
