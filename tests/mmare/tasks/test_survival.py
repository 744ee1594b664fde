"""Hazards of intervals: likelihood patient by patient, the curve, the cuts; every model can learn them."""

import math

import pytest
import torch

from mmare.models.registry import MODELS, build_model
from mmare.study.outcome import N_TIMES
from mmare.study.study import parse_study
from mmare.tasks.survival import Survival, equal_cuts, event_cuts

CUTS = [0.0, 10.0, 40.0, 128.0]


def task():
    found = Survival(3)
    found.cuts.copy_(torch.tensor(CUTS))
    return found


def study(model="mmare", **options):
    return parse_study(
        {
            "study": {"name": "s", "task": "survival", "seed": 1},
            "survival": {"follow_up": 60.0, "intervals": 4},
            "modality": [{"name": name, "kind": "features", "width": 8} for name in ("ct", "mri")],
            "model": {"name": model, **options},
        },
        "test",
    )


def slow_likelihood(logits, label):
    """Interval by interval."""
    total = 0.0
    time = label // 2 + 0.5
    for k, logit in enumerate(logits):
        hazard = 1 / (1 + math.exp(-logit))
        start, end = CUTS[k], CUTS[k + 1]
        if label % 2 and start < time <= end:
            total += math.log(hazard)
        elif time > start:
            total += (min(time, end) - start) / (end - start) * math.log(1 - hazard)
    return -total


def test_the_likelihood_is_that_of_each_interval():
    logits = torch.randn(60, 3, generator=torch.Generator().manual_seed(0)).double()
    label = torch.arange(60) * 4 + torch.arange(60) % 2
    expected = [slow_likelihood(*row) for row in zip(logits.tolist(), label.tolist(), strict=True)]
    assert task().likelihood(logits, label).tolist() == pytest.approx(expected)
    assert task().loss(logits, label).item() == pytest.approx(sum(expected) / 60)


def test_the_curve_falls_from_one_and_gives_the_chance_of_intervals():
    logits = torch.randn(5, 3, generator=torch.Generator().manual_seed(1)).double()
    curve = task().survival(logits, torch.arange(N_TIMES + 1))
    assert torch.equal(curve[:, 0], torch.ones(5).double())
    assert (curve.diff(dim=1) < 0).all()
    left = (1 - logits.sigmoid()).cumprod(dim=1)
    torch.testing.assert_close(curve[:, [10, 40, 128]], left)
    torch.testing.assert_close(task().prediction(logits), curve)
    torch.testing.assert_close(curve[:, 25], left[:, 0] * (1 - logits[:, 1].sigmoid()).sqrt())


def test_the_risk_rises_with_every_hazard_and_stays_within_bounds():
    low = torch.tensor([[-3.0, -3.0, -3.0]])
    for k in range(3):
        high = low.clone()
        high[0, k] = 3.0
        assert 0 < task().risk(low).item() < task().risk(high).item() < 1
    ends = task().risk(torch.tensor([[-40.0] * 3, [40.0] * 3]))
    assert ends.tolist() == pytest.approx([0.0, 1.0], abs=0.03)


def test_training_on_times_finds_their_hazards():
    """Rates of 0.2, 0.1 and 0.4 an interval, of which a third of the patients is censored in the second."""
    found = task()
    label = torch.tensor(
        [2 * 5 + 1] * 20 + [2 * 30 + 1] * 5 + [2 * 30] * 30 + [2 * 90 + 1] * 18 + [2 * 127] * 27
    )
    logits = torch.zeros(3, dtype=torch.float64, requires_grad=True)
    optimizer = torch.optim.LBFGS([logits], max_iter=100, tolerance_grad=1e-12)

    def step():
        optimizer.zero_grad()
        loss = found.loss(logits.expand(len(label), 3), label)
        loss.backward()
        return loss

    optimizer.step(step)
    part = (30.5 - 10) / 30
    assert logits.sigmoid()[0].item() == pytest.approx(20 / 100, abs=1e-4)
    assert logits.sigmoid()[1].item() == pytest.approx(5 / (5 + 45 + 30 * part), abs=1e-4)


def test_agreement_is_zero_between_equals_and_has_no_gradient_of_the_teacher():
    whole, subset = (torch.randn(4, 3, generator=torch.Generator().manual_seed(seed)) for seed in (0, 1))
    whole.requires_grad_(), subset.requires_grad_()
    assert task().agreement(whole, whole, 2.0).item() == pytest.approx(0, abs=1e-6)
    found = task().agreement(whole, subset, 1.0)
    h, g = whole.detach().sigmoid(), subset.detach().sigmoid()
    each = h * (h / g).log() + (1 - h) * ((1 - h) / (1 - g)).log()
    assert found.item() == pytest.approx(each.sum(dim=1).mean().item(), rel=1e-4)
    found.backward()
    assert whole.grad is None
    assert subset.grad.abs().sum() > 0


def test_cuts_hold_alike_many_events_and_rise():
    events = torch.zeros(N_TIMES)
    events[:20] = 10.0
    events[100] = 50.0
    cuts = event_cuts(events, 5)
    assert (cuts[0], cuts[-1]) == (0, N_TIMES)
    assert (cuts.diff() > 0).all()
    reached = torch.cat([torch.zeros(1), events.cumsum(dim=0)])
    shares = [reached[int(cut)].item() / 250 for cut in cuts[1:-1]]
    assert shares == pytest.approx([0.2, 0.4, 0.6, 0.8], abs=0.1)
    alone = torch.zeros(N_TIMES)
    alone[3] = 1.0
    assert (event_cuts(alone, 8).diff() > 0).all()
    assert torch.equal(event_cuts(torch.zeros(N_TIMES), 4), equal_cuts(4))


def test_a_state_is_that_of_the_risk_and_counts_events():
    logits = torch.randn(50, 3, generator=torch.Generator().manual_seed(2))
    label = torch.arange(50) * 4 + torch.arange(50) % 2
    state = task().state(logits, label)
    assert state.counts == tuple(torch.bincount(label % 2).tolist())
    assert state.losses.sum().item() == pytest.approx(task().likelihood(logits.double(), label).sum().item())
    parts = {name: getattr(state, name).double() for name in Survival.PARTS}
    assert torch.equal(task().restored(parts, (1,)).histogram, state.histogram)
    with pytest.raises(ValueError, match="below zero"):
        task().restored({**parts, "histogram": parts["histogram"] - 1}, ())


@pytest.mark.parametrize("name", sorted(set(MODELS) - {"hypermm"}))  # of images; hypermm-embedding is alike
def test_every_model_learns_times(name):
    small = {} if name in {"drim", "adacomed", "linear", "unilmmv"} else {"width": 8}
    model = build_model(study(name, **small))
    rows = torch.randn(6, 16, generator=torch.Generator().manual_seed(0))
    present = torch.tensor([[True, True], [True, False], [False, True]] * 2)
    label = torch.tensor([1, 40, 81, 120, 201, 254])
    generator = torch.Generator().manual_seed(0)
    assert model.logits(rows, present, generator).shape == (6, 4)
    for phase in model.phases():
        loss = phase.objectives[0].loss(rows, present, label, generator)
        loss.backward()
        assert loss.isfinite()
    grads = [value.grad for value in model.parameters() if value.grad is not None]
    assert any(grad.abs().sum() > 0 for grad in grads)
    assert "task.cuts" in model.state_dict()
