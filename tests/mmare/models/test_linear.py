"""The linear term: logistic regression, of a curvature that is known beforehand."""

import numpy as np
import pytest
import torch
from sklearn.linear_model import LogisticRegression
from sklearn.metrics import balanced_accuracy_score
from torch.nn import functional

from mmare.models.linear import LinearTerm
from mmare.models.numeric import piecewise_linear
from mmare.models.registry import build_model
from mmare.study.choices import Scaling
from tests.mmare.models.examples import FORMULAS, a_study, generator, random_presence

WIDTHS = (6, 3, 8)


def rows_of(patients=200, seed=0, **options):
    """A model of three modalities with the moments of its rows, which differ in size a hundredfold."""
    options = {"width": 8, "linear": True, **options}
    study = a_study(WIDTHS, classes=2, scalings=FORMULAS, model="mmare", **options)
    model = build_model(study)
    source = generator(seed)
    present = random_presence(patients, len(WIDTHS), seed)
    embedding = [
        (10.0**slot) * (torch.randn(patients, width, generator=source) + slot)
        for slot, width in enumerate(WIDTHS)
    ]
    for slot, part in enumerate(embedding):
        having = part[present[:, slot]].double()
        if model.scaling.scalings[slot] is Scaling.L2:
            having = functional.normalize(having, dim=1)
        model.scaling.set_moments(slot, having.mean(0).float(), having.std(0, correction=0).float())
    score = sum(
        torch.where(present[:, slot], part[:, 0] / 10.0**slot, 1.0) for slot, part in enumerate(embedding)
    )
    label = (score + 3 * torch.randn(patients, generator=source) > score.mean()).long()
    return model, model.scaling(embedding, present), present, label


def test_a_model_with_it_starts_with_equal_logits():
    model, scaled, present, _ = rows_of()
    assert not model.logits(scaled, present, generator(0)).any()


def test_lengths_are_those_of_the_train_rows():
    model, scaled, present, _ = rows_of()
    for slot, part in enumerate(torch.split(scaled, list(WIDTHS), dim=1)):
        length = part[present[:, slot]].square().sum(dim=1).mean().sqrt()
        assert model.scaling.lengths()[slot].item() == pytest.approx(length.item(), rel=1e-4)


def test_columns_of_all_tables_count_alike():
    """Of the tables 0 and 1 here; the third modality is of another kind of scaling."""
    model, *_ = rows_of(even=True)
    assert model.scaling.tables == (0,)
    own = model.scaling.lengths()
    model.scaling.tables = (0, 1)
    even = model.scaling.lengths(even=True)
    assert even[0] == even[1] == ((own[0] ** 2 + own[1] ** 2) / 2).sqrt()
    assert even[2] == own[2]
    assert model.scaling.lengths() == own


@pytest.mark.parametrize(
    ("options", "most"),
    [
        pytest.param({}, (len(WIDTHS) + 1) / 2, id="linear"),
        pytest.param({"numeric": "piecewise"}, (len(WIDTHS) + 4 + 1) / 2, id="one of them bent"),
    ],
)
def test_its_curvature_is_bounded_beforehand(options, most):
    model, scaled, present, label = rows_of(**options)
    steps = {block.descent for block in model.blocks() if block.name.startswith("linear.")}
    assert steps == {1 / (len(WIDTHS) + 1 + len(model.linear.bends))}
    assert most * max(steps) < 2  # gradient descent converges
    weights = [value for name, value in model.named_parameters() if name.startswith("linear.")]
    loss = functional.cross_entropy(model.linear(scaled, present, model.scaling.lengths()), label)
    slopes = torch.autograd.grad(loss, weights, create_graph=True)
    direction = [torch.randn(value.shape, generator=generator(1)) for value in weights]
    for _ in range(50):  # power iteration
        length = torch.cat([part.flatten() for part in direction]).norm()
        direction = [part / length for part in direction]
        along = sum((slope * part).sum() for slope, part in zip(slopes, direction, strict=True))
        direction = [part.detach() for part in torch.autograd.grad(along, weights, retain_graph=True)]
    curvature = torch.cat([part.flatten() for part in direction]).norm().item()
    assert 0.1 < curvature <= most


def test_bends_have_a_bounded_length_whatever_the_column():
    source = generator(3)
    for column in (torch.randn(500, 1, generator=source), torch.rand(500, 1, generator=source) < 0.3):
        scores = (column.float() - column.float().mean()) / column.float().std(correction=0)
        assert piecewise_linear(scores).square().sum(dim=1).mean() <= 4
    assert piecewise_linear(torch.tensor([[9.0], [-9.0]])).square().sum(dim=1).tolist() == [4.0, 4.0]


def test_a_bent_term_learns_a_threshold_that_no_line_can():
    source = generator(4)
    scaled = torch.randn(400, 1, generator=source)
    present, label = torch.ones(400, 1, dtype=torch.bool), (scaled[:, 0].abs() > 1).long()
    right = {}
    for bent in ((), (0,)):
        term = LinearTerm((1,), 2, bent)
        descent = torch.optim.SGD(term.parameters(), lr=1 / (2 + len(bent)), momentum=0.9)
        for _ in range(100):
            descent.zero_grad()
            functional.cross_entropy(term(scaled, present, [torch.tensor(1.0)]), label).backward()
            descent.step()
        called = term(scaled, present, [torch.tensor(1.0)]).argmax(dim=1)
        right[bent] = balanced_accuracy_score(label, called)
    assert right[()] < 0.6
    assert right[0,] > 0.95


@pytest.mark.slow
def test_descended_to_the_end_it_is_logistic_regression_with_indicators():
    model, scaled, present, label = rows_of()
    weights = [value for name, value in model.named_parameters() if name.startswith("linear.")]
    (step,) = {block.descent for block in model.blocks() if block.name.startswith("linear.")}
    descent = torch.optim.SGD(weights, lr=step, momentum=0.9)
    for _ in range(3000):
        descent.zero_grad()
        functional.cross_entropy(model.linear(scaled, present, model.scaling.lengths()), label).backward()
        descent.step()
    logits = model.linear(scaled, present, model.scaling.lengths()).detach()
    lengths = torch.repeat_interleave(torch.stack(model.scaling.lengths()), torch.tensor(WIDTHS))
    inputs = np.concatenate([(scaled / lengths).numpy(), (~present).numpy()], axis=1)
    wanted = LogisticRegression(C=np.inf, max_iter=5000, tol=1e-8).fit(inputs, label.numpy())
    loss = -np.log(wanted.predict_proba(inputs)[np.arange(len(label)), label]).mean()
    assert functional.cross_entropy(logits, label).item() == pytest.approx(loss, abs=0.02)


def test_what_is_missing_does_not_matter():
    term = LinearTerm((2, 2), 2)
    for value in term.parameters():
        torch.nn.init.ones_(value)
    present = torch.tensor([[True, False]])
    lengths = [torch.tensor(1.0)] * 2
    one, other = (term(torch.tensor([[1.0, 2.0, x, x]]), present, lengths) for x in (0.0, float("nan")))
    torch.testing.assert_close(one, other)
    torch.testing.assert_close(one, torch.full((1, 2), 3.0 + 0.5 + 1.0))
