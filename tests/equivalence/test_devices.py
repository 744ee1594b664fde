"""A federation whose sites train on a GPU is near one whose sites train on their processors."""

from dataclasses import replace

import pytest
import torch

from mmare.study import ModelSpec
from sites.federation import SITE_FILE, site_folders
from tests.federations import SITES, ModelsByRound, events, run_nodes, tiny_federation, tiny_study

pytestmark = pytest.mark.gpu

NEAR = {"rtol": 1e-3, "atol": 1e-4}
MODELS = {  # with one optimiser, with a second one of its own, and with two phases
    "mmare": {"width": 16},
    "drim": {"width": 16, "hidden": 16, "heads": 2, "head_width": 8, "feedforward": 16},
    "adacomed": {"hidden": 16, "in_dim": 16, "heads": 2, "small_rounds": 2},
}


def federation_on(device, folder, study):
    federation = tiny_federation(folder, study)
    for site in SITES:
        with (federation / site / SITE_FILE).open("a") as file:
            file.write(f'[compute]\ndevice = "{device}"\n')
    assert {site.device for site in site_folders(federation)} == {device}
    return federation


@pytest.mark.parametrize("model", sorted(MODELS))
def test_a_federation_on_a_gpu_is_near_one_on_processors(tmp_path, model):
    slow = {"optimizer": "sgd", "learning_rate": 0.01}  # Adam's first steps tell the sign of a rounding error
    study = replace(tiny_study(training=slow), model=ModelSpec(model, MODELS[model]))
    models, losses = {}, {}
    for device in ("cpu", "cuda"):
        federation, out = federation_on(device, tmp_path / device, study), tmp_path / f"{device}-run"
        kept = ModelsByRound(out, study, {})
        run_nodes(federation, out, listeners=(kept,))
        models[device] = kept.models
        losses[device] = [event["metrics"]["pooled"]["log_loss"] for event in events(out, "validated")]
    torch.testing.assert_close(models["cuda"], models["cpu"], **NEAR)
    torch.testing.assert_close(torch.tensor(losses["cuda"]), torch.tensor(losses["cpu"]), **NEAR)
