"""A step of training with differential privacy over a plain one, in pairs. Run with ``make bench``."""

import statistics
import time
from dataclasses import replace

import pytest
import torch

from client.data.dataset import SiteData
from client.privacy.accountant import Plan
from client.privacy.noise import Noise
from client.training.optimizers import PhaseOptimizers
from client.training.private_trainer import train_privately
from client.training.trainer import train_round
from mmare.models.registry import MODELS, build_model
from mmare.study.choices import Scaling
from mmare.study.specs import DifferentialPrivacySpec, ModelSpec
from mmare.wire.messages import Split
from tests.bench.printed import report
from tests.bench.test_bench import rows, study

pytestmark = [pytest.mark.bench, pytest.mark.filterwarnings("default")]

STEPS, PAIRS = 10, 15
CASES = [("mmare", 512), ("mmare", 64), *((name, 512) for name in ("late-mean", "unilmmv", "unimodal"))]


def seconds(work):
    began = time.perf_counter()
    work()
    return (time.perf_counter() - began) / STEPS


@pytest.mark.parametrize(("name", "width"), CASES)
def test_a_private_step_over_a_plain_one(name, width):
    torch.set_num_threads(1)
    assert MODELS[name].SEPARATE
    plain = study(name, local_epochs=STEPS)
    plain = replace(
        plain,
        modalities=tuple(replace(each, scaling=Scaling.L2) for each in plain.modalities),
        model=ModelSpec(name, {"width": width}),
        training=replace(plain.training, noise_probability=0.0),
    )
    private = replace(plain, privacy=replace(plain.privacy, dp=DifferentialPrivacySpec(8.0)))
    embedding, present, label = rows()
    everyone = torch.arange(len(label))
    empty = everyone[:0]
    data = SiteData(
        tuple(embedding), present, label, {Split.TRAIN: everyone, Split.VAL: empty, Split.TEST: empty}, {}
    )
    model = build_model(plain)
    optimizers = PhaseOptimizers(model, model.phases()[0], plain.training)
    plan = Plan(rows=len(label), rate=1.0, steps=1, noise=1.0, histogram_noise=1.0)  # all of them, as there
    source = Noise(b"bench")

    def usual():
        train_round(model, optimizers, data, everyone, plain, torch.Generator().manual_seed(0))

    def noisy():
        train_privately(model, optimizers, data, everyone, private, plan, source)

    usual(), noisy()  # the first steps make the optimiser's moments
    pairs = [(seconds(usual), seconds(noisy)) for _ in range(PAIRS)]
    report(
        f"step of {name}, width {width}, {len(label)} patients, one core",
        parameters=sum(value.numel() for value in model.parameters()),
        plain_ms=f"{1000 * statistics.median(pair[0] for pair in pairs):.2f}",
        private_ms=f"{1000 * statistics.median(pair[1] for pair in pairs):.2f}",
        ratio=f"{statistics.median(pair[1] / pair[0] for pair in pairs):.2f}",
    )
