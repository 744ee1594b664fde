"""What every model of the registry keeps in a federation; a new model is tested here without being asked."""

import json
import math
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import pytest
import torch

from client.data.dataset import load_data
from client.training.trainer import draw_rows
from mmare.models.adapters import add_noise
from mmare.models.baselines.hypermm import HyperMM
from mmare.models.blocks import exposures
from mmare.models.phases import last_phase_start, phase_at
from mmare.models.registry import MODELS, build_model
from mmare.randomness import generator_for
from mmare.study.choices import Backend
from mmare.study.recipes import recipe_of
from mmare.study.specs import ModelSpec
from mmare.wire.messages import Split
from server.store.model_file import load_model
from server.store.selection import NEVER_MOVED
from sites.federation import site_folders
from tests.federations import ModelsByRound, run_nodes, tiny_federation, tiny_study, weights
from tests.mmare.models.examples import SMALL, small_maps, small_options
from tests.properties import first_quick

EVERY = pytest.mark.parametrize("name", sorted(MODELS))
MMARE_SIM = Path(sys.executable).parent / "mmare-sim"
PHASE_ROUNDS = 2  # of each phase but the last
UNSEEN = {
    "attention.key_bias"
}  # by a softmax: its gradient is rounding error, of which Adam makes whole steps


def study_of(name, rounds_after=2, width=8, **sections: object):
    """A small form of the model that trains ``rounds_after`` rounds of its last phase."""
    widths = [
        {"name": slot, "kind": "features", "width": width, "scaling": "zscore"} for slot in ("ct", "wsi")
    ]
    options = small_options(name, **SMALL, phase_rounds=PHASE_ROUNDS, small_rounds=PHASE_ROUNDS)
    study = replace(tiny_study(modality=widths, **sections), model=ModelSpec(name, options))
    rounds = last_phase_start(build_model(study).phases()) - 1 + rounds_after
    return replace(study, training=replace(study.training, rounds=rounds, recipe=recipe_of(name, None)[0]))


def plain_optimizers(model, phase, training):
    """One of torch's own per objective, over the parameters of its blocks."""
    parameters, blocks = dict(model.named_parameters()), {block.name: block for block in model.blocks()}
    kinds = {"adam": torch.optim.Adam, "adamw": torch.optim.AdamW, "sgd": torch.optim.SGD}
    for objective in phase.objectives:
        names = {
            name: None for block in objective.blocks for name in blocks[block].parameters
        }  # in order, once
        own = replace(training, **objective.training)
        settings = {"lr": own.learning_rate, "weight_decay": own.weight_decay, "fused": False}
        yield objective, kinds[own.optimizer]([parameters[name] for name in names], **settings)


def train_plainly(model, study, data):
    """Train on one site's rows in a loop without server, messages or kept state; yields after every round."""
    training, rows = study.training, data.rows[Split.TRAIN]
    present, label = data.present[rows], data.label[rows]
    scaled = model.scaling([part[rows] for part in data.embedding], present)
    phases, optimizers = model.phases(), {}
    for number in range(1, training.rounds + 1):
        phase, generator = phase_at(phases, number), generator_for(study.seed, "ash", number)
        if phase.name not in optimizers:
            optimizers[phase.name] = list(plain_optimizers(model, phase, training))
        model.train()
        for batch in draw_rows(label, study, generator).split(training.batch_size):
            noisy = add_noise(
                scaled[batch], model.scaling.noise_deviation(), training.noise_probability, generator
            )
            for objective, optimizer in optimizers[phase.name]:
                model.zero_grad(set_to_none=True)
                objective.loss(noisy, present[batch], label[batch], generator).backward()
                optimizer.step()
        yield number, {name: value.detach().clone() for name, value in model.named_parameters()}


@pytest.fixture
def _small_maps():
    with small_maps():
        yield


@pytest.mark.usefixtures("_small_maps")
@pytest.mark.parametrize("name", first_quick("mmare", *sorted(MODELS.keys() - {"mmare"})))
def test_one_site_is_a_plain_training_loop(tmp_path, name):
    study = study_of(name, federation={"min_sites": 1})
    federation, out = tiny_federation(tmp_path / "fed", study, sites=("ash",), patients=60), tmp_path / "run"
    kept = ModelsByRound(out, study, {})
    result = run_nodes(federation, out, listeners=(kept,))
    told = [note for note in result["notes"] if note != NEVER_MOVED]  # as it may be of a small form
    assert told == list(filter(None, [MODELS[name].NOTE]))

    (site,) = site_folders(federation)
    model = build_model(study)
    model.scaling.load_state_dict(load_model(out / "model").scaling.state_dict())  # has tests of its own
    start = {key: value.detach().clone() for key, value in model.named_parameters()}
    data = load_data(site, study)
    for number, wanted in train_plainly(model, study, data):
        compared = [key for key in wanted if key not in UNSEEN]
        found = {key: kept.models[number][key] for key in compared}
        torch.testing.assert_close(found, {key: wanted[key] for key in compared}, rtol=1e-4, atol=1e-4)
    exposed = exposures(model.blocks(), data.present[data.rows[Split.TRAIN]])
    for block in model.blocks():
        moved = any(not torch.equal(start[key], wanted[key]) for key in block.parameters)
        assert moved or not exposed[block.name], block.name


@pytest.mark.system
@pytest.mark.parametrize("name", ["adacomed", "hypermm"])  # phases, scans in full; ours is in tests/system
def test_ray_gives_the_same_bits_as_this_process(tmp_path, name):
    maps = math.prod(HyperMM.MAPS)  # in full: Ray's processes know nothing of a changed size
    width = maps if name == "hypermm" else 8
    study = study_of(name, rounds_after=1, width=width, federation={"deadline_s": 200})
    federation = tiny_federation(tmp_path / "fed", study, sites=("ash", "birch"), patients=8)
    run_nodes(federation, tmp_path / Backend.INPROCESS)
    command = [MMARE_SIM, "run", federation, "--out", tmp_path / Backend.RAY, "--backend", Backend.RAY]
    done = subprocess.run(command, capture_output=True, text=True, timeout=240, check=False)
    assert done.returncode == 0, done.stderr
    results = [json.loads((tmp_path / backend / "result.json").read_text()) for backend in Backend]
    assert [result["backend"] for result in results] == list(Backend)
    assert results[0]["metrics"] == results[1]["metrics"]
    assert len({weights(tmp_path / backend) for backend in Backend}) == 1
