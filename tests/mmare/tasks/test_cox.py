"""A Cox model by intervals: likelihood by hand, coefficients and baseline of the partial likelihood."""

import math

import pytest
import torch

from mmare.models.registry import MODELS, build_model
from mmare.study.outcome import N_TIMES
from mmare.study.study import parse_study
from mmare.tasks.cox import Cox
from server.aggregation.server_optimizers import signal_share
from simulation.cox_references import fit_cox
from tests.mmare.tasks.test_survival import CUTS


def study(model="mmare", **options):
    return parse_study(
        {
            "study": {"name": "s", "task": "survival", "seed": 1},
            "survival": {"follow_up": 60.0, "intervals": 4, "hazard": "cox"},
            "modality": [{"name": name, "kind": "features", "width": 8} for name in ("ct", "mri")],
            "model": {"name": model, **options},
        },
        "test",
    )


def cohort(n=400, seed=0):
    """Two inputs, labels and their times; risks are exp(x0 - x1 / 2)."""
    generator = torch.Generator().manual_seed(seed)
    inputs = torch.randn(n, 2, generator=generator).double()
    rate = (inputs[:, 0] - inputs[:, 1] / 2).exp() / 40
    time = -torch.rand(n, generator=generator).double().log() / rate
    censored = torch.rand(n, generator=generator).double() * N_TIMES * 1.5
    event = ((time < censored) & (time < N_TIMES)).long()
    return inputs, torch.minimum(time, censored).clamp_max(N_TIMES - 1).long(), event


def test_the_hazards_of_an_interval_are_proportional():
    task = Cox(3)
    task.cuts.copy_(torch.tensor(CUTS))
    task.start.copy_(torch.tensor([-1.0, 0.0, 1.0]))
    with torch.no_grad():
        task.baseline.copy_(torch.tensor([0.5, 0.0, -2.0]))
    output, label = (
        torch.tensor([[0.3], [0.3], [-2.0]]).double(),
        torch.tensor([2 * 24 + 1, 2 * 24, 2 * 90 + 1]),
    )
    rates = [math.exp(rate) for rate in (-0.5, 0.0, -1.0)]
    part, risk, low = (24.5 - 10) / 30, math.exp(0.3), math.exp(-2.0)
    expected = [
        rates[0] * risk - math.log(1 - math.exp(-rates[1] * risk)),
        (rates[0] + part * rates[1]) * risk,
        (rates[0] + rates[1]) * low - math.log(1 - math.exp(-rates[2] * low)),
    ]
    assert task.likelihood(output, label).tolist() == pytest.approx(expected)
    curve = task.survival(output, torch.tensor([10, 40, 128]))
    assert curve[2].tolist() == pytest.approx([math.exp(-sum(rates[: k + 1]) * low) for k in range(3)])


def test_before_training_the_curve_is_that_of_all():
    """Without censoring it is the share that lives, at every cut."""
    events = torch.zeros(N_TIMES)
    events[5:105] = 3
    task = Cox(5)
    task.learn_times(events, rows=400)
    curve = task.survival(torch.zeros(1, 1), torch.tensor([N_TIMES]))
    assert curve.item() == pytest.approx(100 / 400, abs=0.01)
    assert task.residual == pytest.approx(300 / 400)


def test_with_short_intervals_it_is_breslow_s_cox_model():
    inputs, time, event = cohort()
    task = Cox(64)
    task.learn_times(time[event == 1].bincount(minlength=N_TIMES), len(time))
    beta = torch.zeros(2, 1, dtype=torch.float64, requires_grad=True)
    optimizer = torch.optim.LBFGS(
        [beta, *task.double().parameters()], max_iter=300, line_search_fn="strong_wolfe"
    )

    def closure():
        optimizer.zero_grad()
        loss = task.loss(inputs @ beta, 2 * time + event)
        loss.backward()
        return loss

    optimizer.step(closure)
    found = beta.detach()
    expected = fit_cox(inputs, time, event, 0.0)
    assert found[:, 0].tolist() == pytest.approx(expected.tolist(), rel=0.06)  # of ties Breslow makes less
    assert task.baseline.grad.abs().max() < 1e-4  # risk sets' hazards are the events
    risks = (inputs @ expected).exp()
    sums = torch.stack([risks[time >= each].sum() for each in range(N_TIMES)])
    breslow = (time[event == 1].bincount(minlength=N_TIMES) / sums.clamp_min(1e-9))[:80].cumsum(0)
    ours = -task.survival(torch.zeros(1, 1).double(), torch.arange(1, 81)).log()[0]
    assert (ours - breslow).abs().max() < 0.08 * breslow[-1]


def test_large_outputs_have_finite_losses_and_gradients():
    task = Cox(4)
    output = torch.tensor([[80.0], [-200.0], [0.0]], requires_grad=True)
    loss = task.likelihood(output, torch.tensor([101, 101, 200]))
    loss.sum().backward()
    assert loss.isfinite().all()
    assert output.grad.isfinite().all()
    assert (loss >= 0).all()


@pytest.mark.parametrize("name", sorted(set(MODELS) - {"hypermm"}))  # of images
def test_every_model_learns_a_log_risk(name):
    model = build_model(study(name))
    blocks = [block for block in model.blocks() if block.name == "baseline"]
    assert [block.parameters for block in blocks] == [("task.baseline",)]
    assert model.classes == 1
    parts = [name for block in model.blocks() for name in block.parameters if block.column is None]
    assert len(parts) == len(set(parts))


def test_the_share_of_a_gradient_is_that_above_noise():
    """Of inputs that tell nothing it is mostly small, of inputs that tell most it is near one."""
    generator = torch.Generator().manual_seed(3)
    shares = {"noise": [], "signal": []}
    for _ in range(40):
        noise, signal = torch.randn(2, 200, 30, generator=generator) / 30**0.5
        residual = torch.randn(200, generator=generator) * 0.4 + signal @ torch.ones(30) * 0.3
        for name, rows in (("noise", noise), ("signal", signal)):
            shares[name].append(signal_share((residual[:, None] * rows).mean(0), 200, 200, 0.16 + 0.09))
    assert sum(shares["noise"]) / 40 < 0.2
    assert min(shares["signal"]) > 0.5
    assert signal_share(torch.zeros(3), 10, 100, 0.3) == 0
