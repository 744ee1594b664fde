"""Geometry as mathematics: order, gaps, drift, LPS and RAS."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays
from scipy.spatial.transform import Rotation

from client.ingest.dicom.geometry import (
    check_gaps,
    even_grid,
    is_even,
    is_upright,
    same_place,
    stack_affine,
    stack_slices,
    unit_axes,
)
from client.ingest.dicom.header import Frame
from client.ingest.dicom.reader import read_frames
from client.ingest.dicom.resample import to_even_gaps, upright
from client.ingest.dicom.series import find_parts
from client.ingest.reasons import ScanReason, ScanRefused
from client.ingest.volume import LPS_TO_RAS, RAS_TO_LPS, Volume, lps_to_ras, ras_to_lps
from mmare.errors import DataError
from tests.client.ingest.phantoms import AXIAL, picture, save, stack, values

small = st.floats(-500, 500)


@given(arrays(np.float64, (4, 4), elements=small))
def test_lps_and_ras_are_each_others_inverse(affine):
    np.testing.assert_array_equal(ras_to_lps(lps_to_ras(affine)), affine)
    np.testing.assert_array_equal(LPS_TO_RAS @ RAS_TO_LPS, np.eye(4))


@given(st.tuples(small, small, small))
def test_left_and_back_become_right_and_front_negated(point):
    moved = lps_to_ras(np.eye(4)) @ [*point, 1.0]
    np.testing.assert_array_equal(moved[:3], [-point[0], -point[1], point[2]])


rotations = st.integers(0, 2**32 - 1).map(
    lambda seed: Rotation.random(rng=np.random.default_rng(seed)).as_matrix()
)


@given(rotations, st.permutations(range(7)), st.floats(0.3, 8))
def test_order_does_not_depend_on_the_order_given(rotation, order, gap_mm):
    orientation = tuple(rotation[:2].ravel())
    positions = np.array([3.0, -50.0, 20.0]) + np.arange(7)[:, None] * gap_mm * rotation[2]
    ordered = stack_slices(positions[list(order)], orientation)
    assert [order[place] for place in ordered.order] == list(range(7))
    assert is_upright(ordered)
    assert is_even(ordered.along_mm)
    assert ordered.mean_gap_mm == pytest.approx(gap_mm)
    affine = stack_affine(ordered.axes, ordered.origin_mm, (0.5, 0.7), ordered.mean_gap_mm)
    for place in range(7):  # the affine leads back to every position
        np.testing.assert_allclose(ras_to_lps(affine) @ [0, 0, place, 1], [*positions[place], 1], atol=1e-6)


@given(rotations)
def test_axes_are_orthonormal_though_cosines_are_rounded(rotation):
    axes = unit_axes(np.round(rotation[:2].ravel(), 3))
    np.testing.assert_allclose(axes @ axes.T, np.eye(3), atol=1e-12)
    assert np.linalg.det(axes) == pytest.approx(1.0)


@given(st.lists(st.integers(0, 5), min_size=1, max_size=12), st.randoms())
def test_places_do_not_depend_on_the_order(heights, random):
    positions = np.array([[0.0, 0.0, 2.0 * height] for height in heights])
    shuffled = list(range(len(heights)))
    random.shuffle(shuffled)
    places = same_place(positions, AXIAL)
    np.testing.assert_array_equal(same_place(positions[shuffled], AXIAL), places[shuffled])
    assert len(set(places.tolist())) == len(set(heights))


@pytest.mark.parametrize(
    ("gaps", "thickness", "reason"),
    [
        pytest.param([2, 2, 2, 4, 2], None, ScanReason.MISSING_SLICES, id="one"),
        pytest.param([2, 2, 2, 6.05, 2], None, ScanReason.MISSING_SLICES, id="two-rounded"),
        pytest.param([2, 2, 2, 4, 4, 4], None, ScanReason.MISSING_SLICES, id="every-other"),
        pytest.param([2, 2, 2, 4, 4, 4], [2, 2, 2, 4, 4, 4, 4], None, id="thicker"),
        pytest.param([2.5, 2.5, 5, 2.5], [5] * 5, ScanReason.MISSING_SLICES, id="overlapping-thick"),
        pytest.param([2, 2, 3, 3], None, None, id="half-more"),
        pytest.param([2, 2, 2, 5.1], None, ScanReason.GAP_TOO_WIDE, id="wide"),
        pytest.param([2, 0.7, 2, 2], None, None, id="narrow"),
    ],
)
def test_gaps(gaps, thickness, reason):
    along = np.concatenate([[0.0], np.cumsum(gaps)])
    if reason is None:
        check_gaps(along, thickness or [None] * len(along))
        return
    with pytest.raises(ScanRefused) as refused:
        check_gaps(along, thickness or [None] * len(along))
    assert refused.value.reason is reason


@given(st.lists(st.floats(0.5, 9), min_size=2, max_size=20))
def test_even_grid_reaches_from_first_to_last(gaps):
    along = np.concatenate([[0.0], np.cumsum(gaps)])
    grid = even_grid(along)
    assert (grid[0], grid[-1]) == (0.0, along[-1])
    assert len(along) <= len(grid) <= 2 * len(along)
    narrowest = min(np.diff(along))
    assert grid[1] <= narrowest * 1.001 or len(grid) == 2 * len(along)


@given(st.lists(st.floats(0.5, 9), min_size=2, max_size=10), small, st.floats(-20, 20))
def test_interpolation_keeps_what_is_linear(gaps, level, slope):
    along = np.concatenate([[0.0], np.cumsum(gaps)])
    grid = even_grid(along)
    slices = (level + slope * along).astype(np.float32)[:, None, None] * np.ones((1, 2, 3), np.float32)
    expected = (level + slope * grid)[:, None, None] * np.ones((1, 2, 3))
    np.testing.assert_allclose(to_even_gaps(slices, along, grid), expected, atol=1e-2)


@pytest.mark.parametrize(("axis", "sign"), [(1, 1), (1, -1), (2, 1), (2, -1)])
def test_whole_pixel_drift_is_a_copy(axis, sign):
    slices = values(3).astype(np.int16)
    moved, added = upright(slices, sign * np.array([0.0, 1.4, 2.8]), 0.7, axis, -9)
    assert moved.shape[axis] == slices.shape[axis] + 4
    assert added == (0 if sign > 0 else 4)
    for index in range(3):
        first = added + sign * 2 * index
        np.testing.assert_array_equal(
            np.take(moved[index], range(first, first + slices.shape[axis]), axis - 1), slices[index]
        )
    assert (moved == -9).sum() == moved.size - slices.size


@pytest.mark.parametrize(
    ("drift", "expected"), [(0.25, [10, 10, -2000, -2000, -2000]), (0.75, [10, 10, 10, -2000, -2000])]
)
def test_drift_next_to_padding_takes_the_nearer_row(drift, expected):
    slices = np.array([[[10], [10], [-2000], [-2000]]] * 2, np.int16)
    moved, _ = upright(slices, np.array([0.0, drift]), 1.0, 1, -2000)
    assert moved[1].ravel().tolist() == expected


def test_drift_without_padding_fills_with_the_darkest():
    slices = np.array([[[7], [9]]] * 2, np.int16)
    moved, _ = upright(slices, np.array([0.0, 2.0]), 1.0, 1, None)
    assert moved[:, :, 0].tolist() == [[7, 9, 7, 7], [7, 7, 7, 9]]


def test_parts_do_not_depend_on_the_order_of_files(tmp_path):
    save(stack(values(4), EchoTime=2, each=lambda _: {"salt": 1}), tmp_path / "a")
    save(stack(values(4, seed=1), EchoTime=5, each=lambda _: {"salt": 2}), tmp_path / "b")
    frames: list[Frame] = [frame for path in sorted(tmp_path.rglob("*.dcm")) for frame in read_frames(path)]

    def fingerprints(frames):
        return [frame.file.sop_uid.encode() for frame in frames]

    first = find_parts(frames, fingerprints)
    for seed in range(5):
        shuffled = [frames[index] for index in np.random.default_rng(seed).permutation(len(frames))]
        assert find_parts(shuffled, fingerprints) == first


def test_patient_is_not_shown_by_repr(tmp_path):
    save([picture(values(1)[0])], tmp_path)
    (frame,) = read_frames(tmp_path / "000.dcm")
    assert "P-1" not in repr(frame)


@pytest.mark.parametrize(
    ("voxels", "affine"),
    [
        pytest.param(np.zeros((2, 2), np.int16), np.eye(4), id="two-axes"),
        pytest.param(np.zeros((2, 0, 2), np.int16), np.eye(4), id="empty"),
        pytest.param(np.zeros((2, 2, 2), np.float64), np.eye(4), id="double"),
        pytest.param(np.zeros((2, 2, 2), np.int16), np.eye(3), id="small-affine"),
        pytest.param(np.zeros((2, 2, 2), np.int16), np.eye(4, dtype=np.float32), id="single-affine"),
        pytest.param(np.zeros((2, 2, 2), np.int16), np.full((4, 4), np.nan), id="nan"),
        pytest.param(np.zeros((2, 2, 2), np.int16), np.ones((4, 4)), id="last-row"),
        pytest.param(np.zeros((2, 2, 2), np.int16), np.diag([1.0, 1.0, 0.0, 1.0]), id="flat"),
    ],
)
def test_a_volume_is_checked_when_made(voxels, affine):
    with pytest.raises(DataError):
        Volume(voxels, affine)
