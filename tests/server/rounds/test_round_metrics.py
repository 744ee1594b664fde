from dataclasses import replace

import numpy as np
import pytest
import torch
from sklearn import metrics as reference

from mmare.errors import Reason
from mmare.metrics.calibration import CalibrationState
from mmare.metrics.state import MetricState
from mmare.wire.messages import Evaluation, Split, Update, WireError
from server.rounds.round_metrics import collect_states, final_metrics, headline, metrics_of
from tests.federations import tiny_study

STUDY = tiny_study()


def rows(seed, n, shift=0.0):
    generator = torch.Generator().manual_seed(seed)
    label = torch.randint(0, 2, (n,), generator=generator)
    logits = torch.randn(n, 2, generator=generator)
    logits[:, 1] += label * 1.5 + shift
    return logits, label


ROWS = {"ash": rows(1, 31), "birch": rows(2, 57, 1.0), "cedar": rows(3, 12, -2.0)}


def state(logits, label, min_count=0):
    return MetricState.of(logits, label).withhold(min_count).to_dict()


def update(site, patterns=None, min_count=0, split=Split.TEST):
    evaluation = Evaluation(split, state(*ROWS[site], min_count), patterns or {})
    return Update(site, 1, evaluations=(evaluation,))


def pooled_rows():
    logits = torch.cat([part[0] for part in ROWS.values()])
    label = torch.cat([part[1] for part in ROWS.values()])
    return logits.softmax(dim=1)[:, 1].double().numpy(), logits.argmax(dim=1).numpy(), label.numpy()


def test_the_merge_over_sites_is_scikit_learns_value_on_the_pooled_rows():
    states = collect_states({site: update(site) for site in ROWS}, Split.TEST, STUDY)
    found = metrics_of(states, STUDY)["pooled"]
    score, predicted, label = pooled_rows()
    wanted = {
        "n": len(label),
        "accuracy": reference.accuracy_score(label, predicted),
        "balanced_accuracy": reference.balanced_accuracy_score(label, predicted),
        "f1": reference.f1_score(label, predicted),
        "precision": reference.precision_score(label, predicted),
        "recall": reference.recall_score(label, predicted),
        "macro_f1": reference.f1_score(label, predicted, average="macro"),
        "log_loss": reference.log_loss(label, score),
        "brier": reference.brier_score_loss(label, score),
    }
    assert {name: found[name] for name in wanted} == pytest.approx(wanted, abs=1e-6)
    assert found["auc"] == pytest.approx(reference.roc_auc_score(label, score), abs=2e-3)
    mean_of_sites = np.mean([metrics_of(states, STUDY)["sites"][site]["balanced_accuracy"] for site in ROWS])
    assert found["balanced_accuracy"] != pytest.approx(mean_of_sites, abs=1e-3)


def test_the_threshold_is_chosen_on_validation_and_scored_on_test():
    val = collect_states({site: update(site, split=Split.VAL) for site in ("ash", "birch")}, Split.VAL, STUDY)
    test = collect_states({"cedar": update("cedar")}, Split.TEST, STUDY)
    found = final_metrics({"validation": val, "test": test}, STUDY)["test"]["operating_point"]
    logits, label = (torch.cat(parts) for parts in zip(ROWS["ash"], ROWS["birch"], strict=True))
    score = logits.softmax(dim=1)[:, 1].numpy()
    false, true, edges = reference.roc_curve(label, score)
    best = (true - false).max()
    called = score >= found["threshold"]
    assert reference.recall_score(label, called) - called[label == 0].mean() == pytest.approx(best)
    assert edges[(true - false).argmax()] == pytest.approx(found["threshold"], abs=0.05)
    assert found["validation"]["balanced_accuracy"] == pytest.approx((1 + best) / 2)
    logits, label = ROWS["cedar"]
    called = logits.softmax(dim=1)[:, 1].numpy() >= found["threshold"]
    wanted = {
        "accuracy": reference.accuracy_score(label, called),
        "balanced_accuracy": reference.balanced_accuracy_score(label, called),
        "f1": reference.f1_score(label, called),
        "recall": reference.recall_score(label, called),
        "macro_f1": reference.f1_score(label, called, average="macro"),
    }
    assert {name: found["pooled"][name] for name in wanted} == pytest.approx(wanted)
    assert found["sites"] == {"cedar": found["pooled"]}
    assert "auc" not in found["pooled"]


@pytest.mark.parametrize("positive", ["no", "yes"])
def test_classes_by_a_threshold_are_of_whichever_class_is_positive(positive):
    study = replace(STUDY, positive=positive)
    states = collect_states({site: update(site) for site in ROWS}, Split.TEST, study)
    found = final_metrics({"validation": states, "test": states}, study)["test"]["operating_point"]
    score, _, label = pooled_rows()
    index = STUDY.classes.index(positive)
    called = np.where((score if index else 1 - score) >= found["threshold"], index, 1 - index)
    assert found["pooled"]["f1"] == pytest.approx(reference.f1_score(label, called, pos_label=index))
    assert found["pooled"]["balanced_accuracy"] == found["validation"]["balanced_accuracy"]


def test_without_validation_rows_of_both_classes_or_a_positive_class_there_is_no_threshold():
    test = collect_states({site: update(site) for site in ROWS}, Split.TEST, STUDY)
    none = collect_states({}, Split.VAL, STUDY)
    assert final_metrics({"validation": none, "test": test}, STUDY)["test"]["operating_point"] is None
    unnamed = replace(STUDY, positive=None)
    assert final_metrics({"validation": test, "test": test}, unnamed)["test"]["operating_point"] is None


def test_the_order_of_sites_does_not_matter():
    forwards = collect_states({site: update(site) for site in ROWS}, Split.TEST, STUDY)
    backwards = collect_states({site: update(site) for site in reversed(ROWS)}, Split.TEST, STUDY)
    assert metrics_of(forwards, STUDY) == metrics_of(backwards, STUDY)
    assert headline(forwards, STUDY) == headline(backwards, STUDY)


def test_headline_is_metrics_without_intervals():
    states = collect_states({site: update(site) for site in ROWS}, Split.TEST, STUDY)
    short, long = headline(states, STUDY), metrics_of(states, STUDY)
    assert "ci95" not in short["pooled"]
    assert short["pooled"].items() <= long["pooled"].items()
    assert all(short["sites"][site].items() <= long["sites"][site].items() for site in ROWS)


def test_the_worst_site_is_the_one_of_lowest_balanced_accuracy():
    found = metrics_of(collect_states({site: update(site) for site in ROWS}, Split.TEST, STUDY), STUDY)
    scores = {site: found["sites"][site]["balanced_accuracy"] for site in ROWS}
    worst = min(scores, key=scores.get)
    assert found["worst_site"] == {"site": worst, "balanced_accuracy": scores[worst]}


def test_over_names_the_sites_whose_rows_of_a_class_count():
    few = {site: int((ROWS[site][1] == 1).sum()) for site in ROWS}
    limit = min(few.values()) + 1
    updates = {site: update(site, min_count=limit) for site in ROWS}
    found = metrics_of(collect_states(updates, Split.TEST, STUDY), STUDY)
    kept = {
        name: [site for site in ROWS if int((ROWS[site][1] == index).sum()) >= limit]
        for index, name in enumerate(STUDY.classes)
    }
    assert found["over"] == kept
    assert len(kept["yes"]) < len(ROWS)
    assert found["pooled"]["n"] == sum(
        int((ROWS[site][1] == index).sum()) for index, name in enumerate(STUDY.classes) for site in kept[name]
    )


def with_grid(site, rows):
    return Update(
        site, 1, evaluations=(Evaluation(Split.VAL, state(*ROWS[site]), calibration=rows.to_dict()),)
    )


def test_losses_on_the_calibration_grid_are_those_of_the_pooled_rows():
    updates = {site: with_grid(site, CalibrationState.of(*ROWS[site])) for site in ROWS}
    found = collect_states(updates, Split.VAL, STUDY).calibration
    logits, label = (torch.cat(parts) for parts in zip(*ROWS.values(), strict=True))
    expected = CalibrationState.of(logits, label)
    assert found.fit().temperature == pytest.approx(expected.fit().temperature, rel=1e-3)
    torch.testing.assert_close(found.losses, expected.losses, atol=3e-4, rtol=0)


@pytest.mark.parametrize("grid", [CalibrationState.of(*ROWS["birch"]), CalibrationState.empty(3)])
def test_losses_of_other_rows_or_classes_are_rejected_with_their_reason(grid):
    with pytest.raises(WireError, match="calibration state") as error:
        collect_states({"ash": with_grid("ash", grid)}, Split.VAL, STUDY)
    assert error.value.code is Reason.METRICS


def test_shapley_shares_are_of_all_rows_and_of_each_site():
    told = {"ash": {"rows": [10, 4], "moved": [1.0, 1.0]}, "birch": {"rows": [10, 0], "moved": [2.0, 0.0]}}
    updates = {
        site: Update(
            site, 1, evaluations=(Evaluation(Split.TEST, state(*ROWS[site]), attribution=told.get(site, {})),)
        )
        for site in ROWS
    }
    states = collect_states(updates, Split.TEST, STUDY)
    found = metrics_of(states, STUDY)["shapley"]
    first, second = (modality.name for modality in STUDY.modalities)
    assert found["pooled"][first] == {"n": 20, "share": 0.75, "mean": 0.15}
    assert found["sites"]["ash"][second] == {"n": 4, "share": 0.5, "mean": 0.25}
    assert found["sites"].keys() == {"ash", "birch"}
    assert "shapley" not in metrics_of(collect_states(updates, Split.VAL, STUDY), STUDY)


def test_shapley_values_that_no_rows_have_are_rejected_with_their_reason():
    lying = Evaluation(Split.TEST, state(*ROWS["ash"]), attribution={"rows": [1, 1], "moved": [5.0, 0.0]})
    with pytest.raises(WireError, match="attribution state") as error:
        collect_states({"ash": Update("ash", 1, evaluations=(lying,))}, Split.TEST, STUDY)
    assert error.value.code is Reason.METRICS


def test_patterns_are_merged_over_the_sites_that_told_them():
    first = {"10": state(*rows(7, 20)), "11": state(*rows(8, 10))}
    second = {"11": state(*rows(9, 25))}
    updates = {"ash": update("ash", first), "birch": update("birch", second)}
    found = metrics_of(collect_states(updates, Split.TEST, STUDY), STUDY)["patterns"]
    assert {name: value["n"] for name, value in found.items()} == {"10": 20, "11": 35}


def test_another_split_has_no_rows_and_no_values():
    found = metrics_of(collect_states({"ash": update("ash")}, Split.VAL, STUDY), STUDY)
    assert found["pooled"]["n"] == 0
    assert found["pooled"]["auc"] is None
    assert found["worst_site"] is None
    assert found["over"] == {"no": [], "yes": []}


@pytest.mark.parametrize(
    "content",
    [
        pytest.param({}, id="empty"),
        pytest.param({"bins": [1, 2], "classes": [None, None], "withheld": []}, id="other-bins"),
        pytest.param(MetricState.empty(3).to_dict(), id="three-classes"),
    ],
)
@pytest.mark.parametrize("place", ["state", "pattern"])
def test_what_is_no_state_is_refused(content, place):
    good = state(*ROWS["ash"])
    evaluation = Evaluation(
        Split.TEST, content if place == "state" else good, {"10": content} if place == "pattern" else {}
    )
    with pytest.raises(WireError, match="metric state", check=lambda error: error.code is Reason.METRICS):
        collect_states({"ash": Update("ash", 1, evaluations=(evaluation,))}, Split.TEST, STUDY)
