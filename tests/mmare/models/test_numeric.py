"""The piecewise-linear encoding against interpolation by numpy."""

import numpy as np
import pytest
import torch
from scipy.stats import norm

from mmare.models.numeric import BINS, is_numeric, piecewise_linear
from mmare.study.choices import Kind, Scaling
from mmare.study.specs import ModalitySpec
from tests.mmare.models.examples import generator

EDGES = np.array([-3.0, *norm.ppf(np.arange(1, 8) / 8), 3.0])


def test_each_bin_is_crossed_from_the_mean_outwards():
    scaled = 2 * torch.randn(50, 3, generator=generator())
    found = piecewise_linear(scaled).reshape(50, 3, BINS)
    for place in range(BINS):
        crossed = np.interp(scaled, EDGES[place : place + 2], [0.0, 1.0])
        start = np.interp(0.0, EDGES[place : place + 2], [0.0, 1.0])
        np.testing.assert_allclose(found[:, :, place], crossed - start, atol=1e-3)


def test_the_parts_add_up_to_the_clipped_score():
    scaled = 3 * torch.randn(40, 2, generator=generator(1))
    parts = piecewise_linear(scaled).reshape(40, 2, BINS)
    widths = torch.from_numpy(np.diff(EDGES)).float()
    torch.testing.assert_close((parts * widths).sum(dim=2), scaled.clamp(-3, 3), atol=2e-3, rtol=0)


def test_a_layer_on_top_bends_where_a_linear_one_cannot():
    scaled = torch.linspace(-2.5, 2.5, 200)[:, None]
    wanted = scaled.abs()
    residuals = []
    for inputs in (scaled, piecewise_linear(scaled)):
        rows = torch.cat([inputs, torch.ones(200, 1)], dim=1)
        residuals.append(float((rows @ torch.linalg.lstsq(rows, wanted).solution - wanted).abs().max()))
    assert residuals[0] > 1
    assert residuals[1] < 1e-3


@pytest.mark.parametrize(
    ("kind", "scaling", "width", "expected"),
    [
        pytest.param(Kind.FEATURES, Scaling.ZSCORE, 128, True, id="table"),
        pytest.param(Kind.FEATURES, Scaling.ZSCORE, 129, False, id="wide"),
        pytest.param(Kind.FEATURES, Scaling.L2, 4, False, id="l2"),
        pytest.param(Kind.FEATURES, Scaling.NONE, 4, False, id="none"),
        pytest.param(Kind.TEXT, Scaling.ZSCORE, 4, False, id="text"),
        pytest.param(Kind.VOLUME, Scaling.ZSCORE, 4, False, id="scan"),
    ],
)
def test_only_narrow_tables_with_pooled_moments_are_numeric(kind, scaling, width, expected):
    assert is_numeric(ModalitySpec("m", kind, width, scaling=scaling)) is expected
