"""Several scans of a patient in training and evaluation."""

from dataclasses import replace

import numpy as np
import pytest
import torch

from client.data.dataset import SiteData, read_inputs
from client.training.evaluate import evaluate
from client.training.optimizers import PhaseOptimizers
from client.training.scans import fuse_inputs, weighed
from client.training.trainer import train_round
from mmare.errors import StudyError
from mmare.models.registry import build_model
from mmare.models.scans import Bag
from mmare.study.choices import Scans
from mmare.wire.messages import Split
from mmare.wire.tensors import global_tensors, tensor_digest
from tests.federations import tiny_data, tiny_study

BASE = tiny_study(training={"noise_probability": 0.0})
WEIGHED = (Scans.SAMPLE, Scans.ATTENTION)


def study_of(scans):
    ct, wsi = BASE.modalities
    return replace(BASE, modalities=(replace(ct, scans=scans), wsi))


def data_of(study, shuffled=None, again=False, one=False):
    """Tiny data whose patients with a CT have one to four of them, the first the only one with ``one``."""
    data = tiny_data(study)
    random = np.random.default_rng(7)
    scans = []
    for row in torch.nonzero(data.present[:, 0]).flatten().tolist():
        first = data.embedding[0][row].numpy()
        more = [] if one else [first + random.normal(size=8).astype(np.float32) for _ in range(row % 4)]
        scans += [(row, vector) for vector in (first, *more)]
    scans += scans[:9] if again else []
    if shuffled is not None:
        scans = [scans[place] for place in np.random.default_rng(shuffled).permutation(len(scans))]
    wsi = [
        (row, data.embedding[1][row].numpy()) for row in torch.nonzero(data.present[:, 1]).flatten().tolist()
    ]
    embedding, present, bags = read_inputs(study, len(data.label), {"ct": scans, "wsi": wsi})
    assert torch.equal(present, data.present)
    return replace(data, embedding=embedding, bags=bags)


def trained(study, data, seed=1):
    model = build_model(study)
    optimizers = PhaseOptimizers(model, model.phases()[0], study.training)
    found = train_round(
        model, optimizers, data, data.rows[Split.TRAIN], study, torch.Generator().manual_seed(seed)
    )
    return model, found


@pytest.mark.parametrize("scans", list(Scans)[1:])
def test_neither_order_nor_duplicates_change_a_bit_of_training_or_evaluation(scans):
    study, digests, states = study_of(scans), set(), []
    for data in (data_of(study), data_of(study, shuffled=3), data_of(study, shuffled=4, again=True)):
        model, _ = trained(study, data)
        digests.add(tensor_digest(global_tensors(model)))
        states.append(evaluate(model, data, Split.TEST, 0).state)
    assert len(digests) == 1
    assert states[0] == states[1] == states[2]


@pytest.mark.parametrize("scans", list(Scans)[1:])
def test_patients_with_one_scan_train_as_before(scans):
    study = study_of(scans)
    data = data_of(study, one=True)
    assert data.bags == {}
    one, _ = trained(BASE, data_of(BASE, one=True))
    model, found = trained(study, data)
    ours, theirs = global_tensors(model), global_tensors(one)
    assert all(torch.equal(ours[name], value) for name, value in theirs.items())
    assert set(found.exposures) - {"attention.ct"} == set(trained(BASE, data)[1].exposures)


def test_a_drawn_scan_is_one_of_the_patients_own_and_all_are_drawn():
    study = study_of(Scans.SAMPLE)
    data, model = data_of(study), build_model(study)
    bag = data.bags[0]
    row = int(bag.rows[0])
    own = {vector.numpy().tobytes() for vector in bag.vectors[bag.rows == row]}
    scaled = model.scaling(list(data.embedding), data.present)
    generator, seen = torch.Generator().manual_seed(0), set()
    drawn = torch.tensor([row, row, 4])  # a patient may be drawn twice
    for _ in range(40):
        inputs = fuse_inputs(model, scaled[drawn], data.bags, drawn, generator)
        assert torch.equal(inputs[0], inputs[1])
        seen.add(inputs[0, :8].numpy().tobytes())
        assert torch.equal(inputs[2, 8:], scaled[4, 8:])
    assert seen == own  # the moments of a new model change nothing
    assert weighed(model, data.embedding, data.bags)[0] is data.embedding[0]  # the mean, at evaluation


def test_attention_starts_as_the_mean_and_learns_which_scan_tells():
    study = study_of(Scans.ATTENTION)
    data, model = data_of(study), build_model(study)
    start = weighed(model, data.embedding, data.bags)[0]
    torch.testing.assert_close(start, data.embedding[0])
    model, found = trained(study, data)
    assert found.exposures["attention.ct"] == int(data.present[data.rows[Split.TRAIN], 0].sum())
    assert model.weighing_scans["0"].score.weight.abs().sum() > 0
    assert not torch.equal(weighed(model, data.embedding, data.bags)[0], data.embedding[0])


def test_weights_are_those_of_the_paper_by_a_loop_over_patients():
    study = study_of(Scans.ATTENTION)
    data, model = data_of(study), build_model(study)
    model.scaling.set_moments(0, torch.full((8,), 0.5), torch.full((8,), 2.0))
    torch.nn.init.normal_(model.weighing_scans["0"].score.weight, generator=torch.Generator().manual_seed(3))
    attention, bag = model.weighing_scans["0"], data.bags[0]
    found = weighed(model, data.embedding, data.bags)[0]
    for row in bag.rows.unique().tolist():
        own = bag.vectors[bag.rows == row]
        scaled = (own - 0.5) / 2.0
        scores = [
            (
                attention.score.weight[0]
                * torch.tanh(attention.content.weight @ each + attention.content.bias)
                * torch.sigmoid(attention.gate.weight @ each + attention.gate.bias)
            ).sum()
            for each in scaled
        ]
        weights = torch.stack(scores).softmax(dim=0)
        torch.testing.assert_close(found[row], (weights[:, None] * own).sum(dim=0).detach())


def test_blank_cells_give_no_gradient_that_is_not_a_number():
    study = study_of(Scans.ATTENTION)
    data = data_of(study)
    vectors = data.bags[0].vectors.clone()
    vectors[:, 0] = torch.nan  # nobody has it
    vectors[::2, 1] = torch.nan
    model, _ = trained(study, replace(data, bags={0: Bag(data.bags[0].rows, vectors)}))
    assert all(value.isfinite().all() for value in model.parameters())


def test_pooled_rows_have_the_scans_of_their_sites():
    study = study_of(Scans.ATTENTION)
    data, model = data_of(study), build_model(study)
    torch.nn.init.normal_(model.weighing_scans["0"].score.weight, generator=torch.Generator().manual_seed(3))
    pooled = SiteData.pooled([data, data])
    alone = weighed(model, data.embedding, data.bags)[0]
    torch.testing.assert_close(weighed(model, pooled.embedding, pooled.bags)[0], torch.cat([alone, alone]))


@pytest.mark.parametrize(
    ("change", "sentence"),
    [
        ({"model": {"name": "late-mean"}}, "ct scans attention is of model mmare, found late-mean"),
        (
            {"privacy": {"dp": {"epsilon": 8.0}}},
            "scans of ct are weighed anew in every step; expected one or mean",
        ),
    ],
)
def test_where_scans_cannot_be_weighed_the_study_is_refused(change, sentence):
    modality = [{"name": "ct", "kind": "features", "width": 8, "scaling": "l2", "scans": "attention"}]
    settings = {"training": {"noise_probability": 0.0}, **change}
    with pytest.raises(StudyError, match=sentence):
        build_model(tiny_study(modality=modality, **settings))
