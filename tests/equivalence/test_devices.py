"""A federation whose sites train on a GPU is near one whose sites train on their processors."""

from dataclasses import replace

import pytest
import torch

from mmare.study.specs import ModelSpec
from sites.federation import SITE_FILE, site_folders
from tests.federations import SITES, ModelsByRound, events, run_nodes, tiny_federation, tiny_study
from tests.mmare.models.examples import SMALL, small_options

pytestmark = pytest.mark.gpu

NEAR = {"rtol": 1e-3, "atol": 1e-4}


def federation_on(device, folder, study):
    federation = tiny_federation(folder, study)
    for site in SITES:
        with (federation / site / SITE_FILE).open("a") as file:
            file.write(f'[compute]\ndevice = "{device}"\n')
    assert {site.device for site in site_folders(federation)} == {device}
    return federation


@pytest.mark.parametrize("model", ["mmare", "drim", "adacomed"])  # one optimiser, two, two phases
def test_a_federation_on_a_gpu_is_near_one_on_processors(tmp_path, model):
    slow = {"optimizer": "sgd", "learning_rate": 0.01}  # Adam's first steps tell the sign of a rounding error
    options = small_options(model, **SMALL, small_rounds=2)
    study = replace(tiny_study(training=slow), model=ModelSpec(model, options))
    models, losses = {}, {}
    for device in ("cpu", "cuda"):
        federation, out = federation_on(device, tmp_path / device, study), tmp_path / f"{device}-run"
        kept = ModelsByRound(out, study, {})
        run_nodes(federation, out, listeners=(kept,))
        models[device] = kept.models
        losses[device] = [event["metrics"]["pooled"]["log_loss"] for event in events(out, "validated")]
    torch.testing.assert_close(models["cuda"], models["cpu"], **NEAR)
    torch.testing.assert_close(torch.tensor(losses["cuda"]), torch.tensor(losses["cpu"]), **NEAR)
