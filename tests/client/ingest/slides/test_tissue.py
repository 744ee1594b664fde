"""Finding tissue and choosing tiles, on histograms and counts."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays

from client.ingest.slides.tissue import Tiling, near_mean_colour, otsu_threshold, shares_kept, spread
from mmare.errors import InputError

GLASS = (243, 242, 244)


@given(arrays(np.int64, st.integers(2, 24), elements=st.integers(0, 50)))
def test_otsu_equals_an_exhaustive_search(histogram):
    pixels = np.repeat(np.arange(len(histogram)), histogram)
    found = otsu_threshold(histogram)
    if len(np.unique(pixels)) < 2:
        assert found == 0
        return

    def within(threshold):
        classes = (pixels[pixels <= threshold], pixels[pixels > threshold])
        return sum(len(part) * part.var() for part in classes)

    possible = range(pixels.min(), pixels.max())
    least = min(within(threshold) for threshold in possible)
    assert within(found) == pytest.approx(least, rel=1e-9, abs=1e-9)


def test_otsu_takes_the_middle_of_equal_thresholds():
    assert otsu_threshold(np.bincount([3, 3, 9])) == 5
    assert otsu_threshold(np.bincount([3, 4])) == 3


def test_colour_filter_drops_tissue_far_from_the_mean_and_never_adds_glass():
    rgb = np.full((4, 5, 3), GLASS, np.uint8)
    tissue = np.zeros((4, 5), np.bool_)
    rgb[0], tissue[0] = (150, 80, 130), True
    rgb[1], tissue[1] = (160, 90, 120), True
    rgb[2, 0], tissue[2, 0] = (20, 160, 40), True  # marker ink
    rgb[3, 0] = (155, 85, 125)  # the mean's colour, but no tissue
    near = near_mean_colour(rgb, tissue, 60.0)
    expected = tissue.copy()
    expected[2, 0] = False
    np.testing.assert_array_equal(near, expected)


def test_colour_filter_leaves_out_the_distance_itself():
    rgb = np.array([[[100, 100, 100], [170, 100, 100]]], np.uint8)  # 35 from their mean
    both = np.ones((1, 2), np.bool_)
    assert not near_mean_colour(rgb, both, 35.0).any()
    assert near_mean_colour(rgb, both, 35.1).all()
    assert not near_mean_colour(rgb, ~both, 35.0).any()


@given(
    arrays(np.int64, st.tuples(st.integers(1, 25), st.integers(1, 25)), elements=st.integers(0, 3)),
    st.integers(1, 40),
)
def test_spread_chooses_few_distinct_tiles_with_tissue_and_all_where_they_fit(tissue_px, most):
    chosen = spread(tissue_px, most)
    occupied = {(int(x), int(y)) for y, x in zip(*np.nonzero(tissue_px), strict=True)}
    assert set(chosen) <= occupied
    assert len(set(chosen)) == len(chosen) <= most
    assert list(chosen) == sorted(chosen, key=lambda tile: tile[::-1])
    assert bool(chosen) == bool(occupied)
    if len(occupied) <= most:
        assert set(chosen) == occupied


def test_spread_covers_the_whole_extent_evenly():
    tissue_px = np.zeros((90, 120), np.int64)
    tissue_px[10:70, 20:110] = 1
    chosen = np.array(spread(tissue_px, 150))
    assert 100 <= len(chosen) <= 150
    for quarter in (chosen[:, 0] < 65, chosen[:, 0] >= 65, chosen[:, 1] < 40, chosen[:, 1] >= 40):
        assert abs(quarter.mean() - 0.5) < 0.1
    apart = np.abs(chosen[:, None] - chosen[None]).max(axis=2) + 1000 * np.eye(len(chosen))
    assert apart.min(axis=1).max() <= 9  # no hole: a cell is about six tiles wide


def test_spread_prefers_the_fullest_tile_of_a_cell():
    tissue_px = np.ones((20, 20), np.int64)
    tissue_px[::7, ::7] = 9
    assert all(tissue_px[y, x] == 9 for x, y in spread(tissue_px, 4))


@pytest.mark.parametrize(
    ("shares", "kept"),
    [
        pytest.param([0.9] * 12 + [0.59], [True] * 12 + [False], id="enough-pass"),
        pytest.param([0.6] * 2 + [0.3] * 10, [True] * 10 + [False] * 2, id="fill-to-ten"),
        pytest.param([0.6, 0.09, 0.1], [True, False, True], id="fillers-hold-a-tenth"),
        pytest.param([0.01, 0.04, 0.02], [False, True, False], id="fullest-of-very-little"),
        pytest.param([0.0, 0.0], [False, False], id="none"),
    ],
)
def test_tissue_rule_and_its_minimum(shares, kept):
    assert shares_kept(np.array(shares), Tiling()).tolist() == kept


@pytest.mark.parametrize(
    "wrong",
    [
        {"um_px": 0.0},
        {"um_px": float("nan")},
        {"tile_px": 0},
        {"fewest_tiles": 0},
        {"most_tiles": 5},
        {"tissue_share": 1.2},
        {"filler_share": 0.0},
        {"colour_distance": -1.0},
    ],
    ids=lambda wrong: next(iter(wrong)),
)
def test_tiling_refuses_settings_without_sense(wrong):
    with pytest.raises(InputError):
        Tiling(**wrong)


def test_fingerprint_tells_every_setting_apart():
    others = [
        {"um_px": 1.0},
        {"tile_px": 224},
        {"most_tiles": 100},
        {"fewest_tiles": 1},
        {"tissue_share": 0.5},
        {"filler_share": 0.2},
        {"colour_distance": 40.0},
    ]
    assert len({Tiling(**other).fingerprint for other in [{}, *others]}) == len(others) + 1
