"""Scaling against scikit-learn on pooled rows, noise by its statistics, adapters by the formula."""

import math

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp
from sklearn.preprocessing import StandardScaler, normalize

from mmare.models.adapters import InputScaling, WidthAdapters, add_noise, moment_rows, pooled_moments
from mmare.models.numeric import piecewise_linear
from mmare.study.choices import Kind, Scaling
from mmare.study.specs import ModalitySpec
from tests.mmare.models.examples import generator

TINY = 1e-6  # torch does not normalise rows shorter than 1e-12; scikit-learn does
ROWS = hnp.arrays(
    np.float32,
    st.tuples(st.integers(1, 16), st.integers(1, 4)),
    elements=st.floats(-100, 100, width=32).map(lambda value: value if abs(value) > TINY else 0.0),
)


def modality(width, scaling):
    return ModalitySpec("ct", Kind.FEATURES, width, scaling=scaling)


def scaling_of(scaling, mean, deviation):
    module = InputScaling([modality(len(mean), scaling)])
    module.set_moments(0, mean, deviation)
    return module


def moments_over_sites(rows, site, scaling):
    """What sites send, summed: each sees its own rows only."""
    n, total, squares = 0, 0.0, 0.0
    for name in sorted(set(site)):
        own = moment_rows(torch.from_numpy(rows[site == name]), scaling)
        n += len(own)
        total += own.sum(dim=0)
        squares += own.square().sum(dim=0)
    return pooled_moments(n, total.tolist(), squares.tolist())


@st.composite
def rows_and_sites(draw):
    rows = draw(ROWS)
    return rows, np.array(draw(st.lists(st.integers(0, 3), min_size=len(rows), max_size=len(rows))))


@given(rows_and_sites())
def test_zscore_with_moments_of_any_partition_is_standard_scaler_on_pooled_rows(drawn):
    rows, site = drawn
    mean, deviation = moments_over_sites(rows, site, Scaling.ZSCORE)
    reference = StandardScaler().fit(rows.astype(np.float64))
    np.testing.assert_allclose(mean, reference.mean_, rtol=1e-6, atol=1e-5)
    np.testing.assert_allclose(deviation, np.sqrt(reference.var_), rtol=1e-5, atol=2e-5)
    varied = np.sqrt(reference.var_) > 1e-2  # scikit-learn divides constant features by 1, we by the floor
    scaled = scaling_of(Scaling.ZSCORE, mean, deviation)(
        [torch.from_numpy(rows)], torch.ones(len(rows), 1, dtype=torch.bool)
    )
    expected = reference.transform(rows.astype(np.float64))
    np.testing.assert_allclose(scaled[:, varied], expected[:, varied], rtol=1e-3, atol=2e-3)


@given(rows_and_sites())
def test_moments_of_l2_are_of_normalised_rows(drawn):
    rows, site = drawn
    mean, deviation = moments_over_sites(rows, site, Scaling.L2)
    reference = normalize(rows.astype(np.float64))
    np.testing.assert_allclose(mean, reference.mean(axis=0), atol=1e-6)
    np.testing.assert_allclose(deviation, np.maximum(reference.std(axis=0), 1e-6), atol=5e-6)


def test_moments_of_no_scaling_are_of_rows_as_they_are():
    rows = torch.tensor([[1.0, 2.0], [3.0, 6.0]])
    assert torch.equal(moment_rows(rows, Scaling.NONE), rows.double())


def test_a_constant_feature_gets_the_floor_and_not_zero():
    mean, deviation = pooled_moments(3, [6.0, 0.0], [12.0, 0.0])
    assert mean.tolist() == [2.0, 0.0]
    assert deviation.tolist() == pytest.approx([1e-6, 1e-6])


def test_a_constant_feature_does_not_blow_up_a_new_value():
    mean, deviation = pooled_moments(3, [6.0, 3.0], [12.0, 5.0])
    module = scaling_of(Scaling.ZSCORE, mean, deviation)
    scaled = module([torch.tensor([[2.5, 1.0]])], torch.tensor([[True]]))
    assert scaled[0].tolist() == pytest.approx([0.5, 0.0])
    assert module.noise_deviation()[0].item() == pytest.approx(0.0, abs=1e-6)


def test_rounding_that_makes_the_variance_negative_gives_the_floor():
    value = 1 / 3
    deviation = pooled_moments(3, [3 * value], [3 * value**2 * (1 - 1e-15)])[1]
    assert deviation.tolist() == pytest.approx([1e-6])


@pytest.mark.parametrize("scaling", Scaling)
def test_what_no_train_row_has_is_zero_hidden_and_at_no_distance(scaling):
    module = InputScaling([modality(2, scaling), modality(2, scaling)])
    module.set_moments(0, *pooled_moments(0, [0.0, 0.0], [0.0, 0.0]))
    module.set_moments(1, *pooled_moments([4, 0], [0.0, 0.0], [4.0, 0.0]))
    rows, present = [torch.tensor([[3.0, -4.0]] * 3)] * 2, torch.tensor([[1, 1], [1, 0], [0, 1]]).bool()
    scaled = module(rows, present)
    assert scaled[:, [0, 1, 3]].count_nonzero() == 0
    assert scaled[0, 2] > 0
    assert module.visible(present).int().tolist() == [[0, 1], [0, 0], [0, 1]]
    assert module.visible(present, someone=True).int().tolist() == [[0, 1], [1, 0], [0, 1]]
    assert module.distances(rows)[0].isnan().tolist() == [True, False]


@pytest.mark.parametrize(
    ("scaling", "expected"),
    [
        *(pytest.param(each, [[1.0, 1.5]], id=each) for each in Scaling if each.standardises),
        pytest.param(Scaling.L2, [[0.6, 0.8]], id="l2"),
        pytest.param(Scaling.NONE, [[3.0, 4.0]], id="none"),
    ],
)
def test_each_scaling_by_hand(scaling, expected):
    module = scaling_of(scaling, torch.tensor([1.0, 1.0]), torch.tensor([2.0, 2.0]))
    scaled = module([torch.tensor([[3.0, 4.0]])], torch.tensor([[True]]))
    torch.testing.assert_close(scaled, torch.tensor(expected))


def test_z_scores_are_clipped_and_nothing_else():
    modules = [InputScaling([modality(3, scaling)], clip=1.5) for scaling in Scaling]
    rows = torch.tensor([[-9.0, 4.0, torch.nan]])
    found = {}
    for scaling, module in zip(Scaling, modules, strict=True):
        module.set_moments(0, torch.ones(3), torch.full((3,), 2.0))
        found[scaling] = module([rows], torch.tensor([[True]]))[0].tolist()
    assert found[Scaling.ZSCORE] == [-1.5, 1.5, 0.0]
    assert found[Scaling.L2] == pytest.approx([-9 / 97**0.5, 4 / 97**0.5, 0.0])
    assert found[Scaling.NONE] == [-9.0, 4.0, 0.0]
    assert modules[0].distances([rows]).item() == pytest.approx((0.5 * (5**2 + 1.5**2)) ** 0.5)


def test_with_a_clip_what_training_never_saw_change_is_zero():
    mean, deviation = pooled_moments([3, 0, 3], [6.0, 0.0, 9.0], [12.0, 0.0, 35.0])
    module = InputScaling([modality(3, Scaling.ZSCORE)], clip=3.0)
    module.set_moments(0, mean, deviation)
    scaled = module([torch.tensor([[140.0, 140.0, 3.0]])], torch.tensor([[True]]))
    assert scaled.tolist() == [[0.0, 0.0, 0.0]]  # constant, blank in every row, at the mean


def test_a_negative_clip_is_refused():
    with pytest.raises(ValueError, match="clip must not be negative, found -3"):
        InputScaling([modality(2, Scaling.ZSCORE)], clip=-3)


def test_a_zero_row_stays_zero_under_l2():
    module = scaling_of(Scaling.L2, torch.zeros(2), torch.ones(2))
    assert module([torch.zeros(1, 2)], torch.tensor([[True]])).tolist() == [[0.0, 0.0]]


@pytest.mark.parametrize("filler", [math.nan, math.inf, -math.inf, 1e38], ids=str)
@pytest.mark.parametrize("scaling", Scaling)
def test_absent_rows_are_zero_whatever_they_hold(scaling, filler):
    module = InputScaling([modality(2, scaling), modality(3, scaling)])
    present = torch.tensor([[True, False], [False, True]])
    embedding = [torch.full((2, 2), filler), torch.full((2, 3), filler)]
    embedding[0][0], embedding[1][1] = 2.0, 5.0
    scaled = module(embedding, present)
    assert scaled.shape == (2, 5)
    assert scaled[0, 2:].tolist() == [0.0, 0.0, 0.0]
    assert scaled[1, :2].tolist() == [0.0, 0.0]
    assert bool((scaled[0, :2] > 0).all())
    assert bool((scaled[1, 2:] > 0).all())


@pytest.mark.parametrize(
    ("scaling", "expected"),
    [
        (Scaling.ZSCORE, [[0, 1], [1, 0]]),  # at the mean
        (Scaling.L2, [[0, 1], [1, 0]]),  # of the length of the others
        (Scaling.NONE, [[0, 5], [4, 0]]),
    ],
)
def test_a_blank_cell_is_zero_after_scaling(scaling, expected):
    module = InputScaling([ModalitySpec("ct", Kind.FEATURES, 2, scaling=scaling)])
    module.set_moments(0, torch.tensor([2.0, 3.0]), torch.tensor([2.0, 2.0]))
    rows = torch.tensor([[torch.nan, 5.0], [4.0, torch.nan]])
    scaled = module((rows,), torch.ones(2, 1, dtype=torch.bool))
    assert scaled.tolist() == expected


def test_blank_cells_have_no_part_in_a_distance():
    module = InputScaling([ModalitySpec("ct", Kind.FEATURES, 2, scaling=Scaling.ZSCORE)])
    module.set_moments(0, torch.tensor([2.0, 3.0]), torch.tensor([2.0, 2.0]))
    assert module.distances((torch.tensor([[torch.nan, 7.0]]),)).tolist() == [[2.0]]


def test_what_is_not_finite_after_scaling_is_not_taken_for_blank():
    module = InputScaling([ModalitySpec("ct", Kind.FEATURES, 2, scaling=Scaling.L2)])
    scaled = module((torch.full((1, 2), torch.inf),), torch.ones(1, 1, dtype=torch.bool))
    assert not scaled.isfinite().any()


def test_moments_are_saved_with_the_model_and_are_not_trained():
    module = InputScaling([modality(2, Scaling.ZSCORE), modality(1, Scaling.L2)])
    module.set_moments(0, torch.tensor([1.0, 2.0]), torch.tensor([3.0, 4.0]))
    assert list(module.parameters()) == []
    state = module.state_dict()
    assert state["mean_0"].tolist() == [1.0, 2.0]
    assert state["deviation_0"].tolist() == [3.0, 4.0]
    assert state["deviation_1"].tolist() == [1.0]


def test_noise_deviation_is_a_tenth_of_each_scaled_feature():
    module = InputScaling([modality(2, scaling) for scaling in Scaling])
    for slot in range(len(Scaling)):
        module.set_moments(slot, torch.zeros(2), torch.tensor([2.0, 0.5]))
    by_scaling = dict(zip(Scaling, module.noise_deviation().split(2), strict=True))
    torch.testing.assert_close(by_scaling[Scaling.ZSCORE], torch.tensor([0.1, 0.1]))
    torch.testing.assert_close(by_scaling[Scaling.L2], torch.tensor([0.2, 0.05]))
    torch.testing.assert_close(by_scaling[Scaling.NONE], torch.tensor([0.2, 0.05]))


@pytest.mark.parametrize("probability", [0.1, 0.3, 0.9])
def test_noise_reaches_its_share_of_rows_and_the_whole_row(probability):
    rows = torch.full((4000, 5), 2.0)
    moved = add_noise(rows, torch.ones(5), probability, generator()) != rows
    assert torch.equal(moved.any(dim=1), moved.all(dim=1))
    share = moved.any(dim=1).double().mean().item()
    assert share == pytest.approx(probability, abs=4 * math.sqrt(probability * (1 - probability) / 4000))


def test_noise_has_each_features_deviation():
    deviation = torch.tensor([0.0, 0.1, 3.0])
    noise = add_noise(torch.zeros(20_000, 3), deviation, 1.0, generator())
    torch.testing.assert_close(noise.std(dim=0), deviation, rtol=0.03, atol=0.0)
    torch.testing.assert_close(noise.mean(dim=0), torch.zeros(3), rtol=0.0, atol=0.08)
    assert noise[:, 1:].T.corrcoef()[0, 1].abs() < 0.03


def test_noise_of_probability_zero_changes_nothing():
    rows = torch.randn(64, 3, generator=generator())
    assert torch.equal(add_noise(rows, torch.ones(3), 0.0, generator()), rows)


def test_noise_draws_only_from_its_generator():
    rows, before = torch.zeros(8, 3), torch.random.get_rng_state()
    one, same, other = (add_noise(rows, torch.ones(3), 0.5, generator(seed)) for seed in (1, 1, 2))
    assert torch.equal(one, same)
    assert not torch.equal(one, other)
    assert torch.equal(before, torch.random.get_rng_state())
    assert torch.equal(rows, torch.zeros(8, 3))


def test_adapters_are_linear_and_relu_only_where_the_width_differs():
    adapters = WidthAdapters([3, 4, 2], 4)
    assert sorted(adapters.adapters) == ["0", "2"]
    scaled = torch.randn(5, 9, generator=generator())
    adapted = adapters(scaled)
    assert adapted.shape == (5, 3, 4)
    assert torch.equal(adapted[:, 1], scaled[:, 3:7])
    for slot, columns in ((0, slice(0, 3)), (2, slice(7, 9))):
        weight, bias = adapters.adapters[str(slot)].weight, adapters.adapters[str(slot)].bias
        expected = (scaled[:, columns] @ weight.T + bias).clamp_min(0)
        torch.testing.assert_close(adapted[:, slot], expected)


def test_bent_adapters_start_as_linear_ones_and_read_the_piecewise_linear_encoding():
    adapters = WidthAdapters([4, 2], 4, bent=[0])
    assert list(adapters.bends) == ["0"]
    scaled = torch.randn(5, 6, generator=generator())
    linear = adapters.adapters["0"](scaled[:, :4])
    assert torch.equal(adapters(scaled)[:, 0], linear.clamp_min(0))
    bend = torch.nn.init.normal_(adapters.bends["0"].weight, generator=generator())
    expected = (linear + piecewise_linear(scaled[:, :4]) @ bend.T).clamp_min(0)
    torch.testing.assert_close(adapters(scaled)[:, 0], expected)


@pytest.mark.parametrize("width", [0, -3])
def test_a_width_below_one_is_refused(width):
    with pytest.raises(ValueError, match=f"width must be positive, found {width}"):
        WidthAdapters([3], width)


@pytest.mark.parametrize("scaling", list(Scaling))
def test_the_mean_square_distance_of_the_train_rows_is_one(scaling):
    rows = torch.randn(200, 6, generator=generator()) * 3 + 2
    rows[:, 2] = rows[:, 2].exp()
    moments = moment_rows(rows, scaling)
    module = scaling_of(scaling, moments.mean(dim=0), moments.std(dim=0, correction=0))
    assert float(module.distances([rows]).square().mean()) == pytest.approx(1, rel=1e-5)
    if scaling is not Scaling.L2:  # which forgets how long a vector is
        assert float(module.distances([rows[:1] + 1000])) > 100
