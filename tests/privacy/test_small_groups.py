"""Groups of too few patients: blocks, class sizes and score bins that tell of one (adversary A)."""

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from client.data.dataset import load_data
from client.training.trainer import patients_of
from mmare.errors import SiteCode
from mmare.metrics.coarse import coarsened
from mmare.metrics.state import MetricState, merge_all
from mmare.models.blocks import exposures
from mmare.models.registry import build_model
from mmare.wire.messages import Split, Task
from mmare.wire.tensors import layout_of
from tests.federations import tiny_study
from tests.privacy.hospital import LIMIT, STUDY, Hospital, flat, sent_and_arrived
from tests.properties import first_quick

ADAPTER = "adapters.adapters.0.weight"


def having_ct(count):
    """Leave ct to the first patients of the train split."""

    def edit(tables):
        train = tables.manifest.loc[tables.manifest["split"] == "train", "patient_id"].tolist()
        kept = {patient: tables.features["ct"][patient] for patient in train[:count]}
        tables.features["ct"] = kept

    return edit


def answer_of(hospital, update):
    """What the coordinator learns of each block that was sent: its change."""
    sent, after = sent_and_arrived(build_model(hospital.study), update, hospital.tensors)
    return {name: after[name] - value for name, value in sent.items()}


@pytest.mark.parametrize("count", [1, LIMIT - 1, LIMIT])
@pytest.mark.parametrize("untouched", ["stay", "drift"])
@pytest.mark.parametrize("optimizer", ["sgd", "adam"])
def test_a_block_of_few_patients_tells_nothing(tmp_path, count, untouched, optimizer):
    """One patient's adapter showed its features at a cosine of 1.000 with SGD, .778 with Adam."""
    study = tiny_study(
        training={"optimizer": optimizer, "noise_probability": 0.0, "weight_decay": 0.0, "local_epochs": 3},
        federation={"untouched": untouched},
        privacy={"min_count": LIMIT},
    )
    hospital = Hospital(tmp_path / "federation", study, missing=0.0, edit=having_ct(count))
    update = hospital.train(1)
    change = answer_of(hospital, update)
    assert update.exposures["shared"] > 0
    if count >= LIMIT:
        assert update.exposures["adapter.ct"] == 3 * count
        assert change[ADAPTER].abs().max() > 0
        return
    assert update.exposures["adapter.ct"] == update.exposures["merge"] == 0
    if untouched == "drift":
        assert not change[ADAPTER].any()
    else:
        assert ADAPTER not in change
    assert hospital.train(2, state_round=1).exposures["adapter.ct"] == 0  # its moments are the old ones, too


def test_one_patient_s_block_shows_the_patient_where_no_limit_is_set(tmp_path, monkeypatch):
    """The attack itself: without the rule, the change of the adapter is the patient."""
    study = tiny_study(
        training={"optimizer": "sgd", "noise_probability": 0.0, "weight_decay": 0.0},
        privacy={"min_count": LIMIT},
    )
    monkeypatch.setattr("client.training.trainer.TrainedRound.of_enough", lambda self, _limit: self)
    hospital = Hospital(tmp_path / "federation", study, missing=0.0, edit=having_ct(1))
    change = answer_of(hospital, hospital.train(1))[ADAPTER]
    data = load_data(hospital.site, study)
    (row,) = data.embedding[0][data.rows[Split.TRAIN][data.present[data.rows[Split.TRAIN], 0]]]
    direction = torch.linalg.svd(change)[2][0]
    assert abs(torch.nn.functional.cosine_similarity(direction, row, dim=0)) > 0.999


@given(st.data())
def test_patients_are_counted_once_however_often_they_are_drawn(data):
    n, draws = data.draw(st.integers(1, 8)), data.draw(st.integers(1, 20))
    rows = torch.tensor(data.draw(st.lists(st.integers(0, n - 1), min_size=draws, max_size=draws)))
    present = torch.tensor(
        data.draw(
            st.lists(st.tuples(st.booleans(), st.booleans()).filter(any), min_size=draws, max_size=draws)
        )
    )
    blocks = build_model(STUDY).blocks()
    found = patients_of(blocks, rows, present)
    for block in blocks:
        each = {
            row.item()
            for row, there in zip(rows, present, strict=True)
            if exposures([block], there[None])[block.name] > 0
        }
        assert found[block.name] == len(each)


def with_few_of_a_class(split, few):
    """Leave one class a few patients of a split."""

    def edit(tables):
        table = tables.manifest
        wanted = table.index[(table["split"] == split) & (table["label"] == "yes")]
        table.loc[wanted[few:], "label"] = "no"

    return edit


@pytest.mark.parametrize("split", [Split.TRAIN, Split.VAL, Split.TEST])
@pytest.mark.parametrize("few", [1, LIMIT - 1, LIMIT])
def test_metrics_and_roll_call_cannot_be_subtracted(tmp_path, split, few):
    """The metric state told the size that the roll call hid; train rows less the class shown is the other."""
    study = tiny_study(privacy={"min_count": LIMIT, "extra": ["train"]})
    hospital = Hospital(tmp_path / "federation", study, 96, edit=with_few_of_a_class(split, few))
    call = hospital.ask(Task.DESCRIBE)
    layout = layout_of({**dict(build_model(study).state_dict())}).fingerprint
    test = hospital.ask(
        Task.EVALUATE,
        flat(build_model(study)),
        round=1,
        splits=(split,),
        layout=layout,
        patterns=True,
        final=True,
    )
    (evaluation,) = test.evaluations
    sizes = [entry and entry["n"] for entry in evaluation.state["classes"]]
    told = list(call.counts.splits[split].values())
    assert sizes == told  # one rule for both
    patterns = {name for name, size in call.counts.patterns[split].items() if size is not None}
    assert patterns == set(evaluation.patterns)
    if few >= LIMIT:
        assert told[1] == few
        return
    assert told[1] is None
    assert (told[0] is None) == (split is Split.TRAIN)  # whose total is told
    assert not patterns


# Bins of scores


def scores(sizes, seed=0):
    """States of sites with two classes, of ``sizes`` rows, and of all rows together."""
    generator = torch.Generator().manual_seed(seed)
    states = []
    for size in sizes:
        label = (torch.rand(size, generator=generator) < 0.4).long()
        logit = torch.randn(size, generator=generator) + 0.8 * label
        states.append(MetricState.of(torch.stack([-logit, logit], dim=1), label))
    return states


def smallest_bin(state):
    """Of a true class's scores, the two bins beside one half taken as one."""
    found = []
    for bins in state.histogram:
        low, high = (side[side > 0].tolist() for side in bins)
        found += [*low[:-1], sum(low[-1:] + high[:1]), *high[1:]]
    return min((count for count in found if count), default=None)


@given(st.lists(st.integers(0, 60), min_size=1, max_size=4), st.integers(0, 12), st.integers(0, 99))
def test_every_bin_holds_the_limit_or_its_whole_class(sizes, limit, seed):
    for state in scores(sizes, seed):
        found = coarsened(state, limit)
        least = min((count for count in state.counts if count), default=0)
        assert (smallest_bin(found) or 0) >= min(limit, least)
        assert torch.equal(found.histogram.sum(dim=2), state.histogram.sum(dim=2))
        assert torch.equal(found.confusion, state.confusion)
        assert torch.equal(found.losses, state.losses)
        read = MetricState.from_dict(found.to_dict(), 2)
        assert torch.equal(read.histogram, found.histogram)
        if limit <= 1:
            assert found is state


@pytest.mark.parametrize(
    ("sizes", "most", "usual"),
    first_quick(([20] * 7, 0.15, 0.07), ([60] * 7, 0.03, 0.012), ([200] * 7, 0.004, 0.0015)),
)
def test_the_auc_of_wider_bins_is_off_by_little(sizes, most, usual):
    """The price of a limit of five at seven sites of so many rows: largest and mean error of forty draws."""
    errors = []
    for seed in range(40):
        states = scores(sizes, seed)
        exact, wide = (
            merge_all(each, 2).compute(1)["auc"]
            for each in (states, [coarsened(state, 5) for state in states])
        )
        errors.append(abs(exact - wide))
    assert max(errors) < most
    assert sum(errors) / len(errors) < usual


def test_no_score_of_a_patient_leaves(tmp_path):
    """A third to half of a class stood alone in its bin."""
    hospital = Hospital(tmp_path / "federation", patients=96)
    update = hospital.train(1, splits=(Split.VAL,))
    state = MetricState.from_dict(update.evaluations[0].state, 2)
    assert smallest_bin(state) >= LIMIT
    assert state.calibration[:, 0][state.calibration[:, 0] > 0].min() >= LIMIT
    assert state.auc_error_bound() is None


def test_a_state_with_a_score_alone_is_held_back(tmp_path, monkeypatch):
    monkeypatch.setattr("mmare.tasks.classification.coarsened", lambda state, _limit: state)
    hospital = Hospital(tmp_path / "federation", patients=96)
    assert hospital.train(1, splits=(Split.VAL,)) is SiteCode.RELEASE
