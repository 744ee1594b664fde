"""A step of training with differential privacy over a plain one, side by side. Run with ``make bench``."""

import statistics
import time
from dataclasses import replace
from importlib.util import find_spec

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
from tests.bench.plain import PlainMMARE
from tests.bench.printed import report
from tests.bench.test_bench import WIDTHS, rows, study

pytestmark = [pytest.mark.bench, pytest.mark.filterwarnings("default")]

STEPS, TIMES = 5, 9
CASES = [("mmare", 512), ("mmare", 64), *((name, 512) for name in ("late-mean", "unilmmv", "unimodal"))]


def seconds(work):
    began = time.perf_counter()
    work()
    return (time.perf_counter() - began) / STEPS


def opacus_step(width):
    """A step of the straightforward MMARE by the hooks of Opacus, each patient clipped as a whole."""
    import opacus

    embedding, present, label = rows()
    model = opacus.GradSampleModule(PlainMMARE(list(WIDTHS.values()), 2, width))
    optimizer = opacus.optimizers.DPOptimizer(
        torch.optim.Adam(model.parameters(), lr=1e-4),
        noise_multiplier=1.0,
        max_grad_norm=1.0,
        expected_batch_size=len(label),
    )

    def step():
        for _ in range(STEPS):
            optimizer.zero_grad()
            torch.nn.functional.cross_entropy(model(embedding, present), label).backward()
            optimizer.step()

    return step


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

    steps = {"plain": usual, "private": noisy}
    if name == "mmare" and find_spec("opacus"):
        steps["opacus"] = opacus_step(width)
    for step in steps.values():
        step()  # the first ones make the optimiser's moments
    spent = [{each: seconds(step) for each, step in steps.items()} for _ in range(TIMES)]
    report(
        f"step of {name}, width {width}, {len(label)} patients, one core",
        parameters=sum(value.numel() for value in model.parameters()),
        **{f"{each}_ms": f"{1000 * statistics.median(run[each] for run in spent):.2f}" for each in steps},
        **{
            f"{each}_ratio": f"{statistics.median(run[each] / run['plain'] for run in spent):.2f}"
            for each in list(steps)[1:]
        },
    )
