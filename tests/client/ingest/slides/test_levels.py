"""Levels of one picture, and levels that are not."""

import io

import numpy as np
import pytest
from PIL import Image

from client.ingest.reasons import ScanReason, ScanRefused
from client.ingest.slides.opening import opened
from client.ingest.slides.wsi import plan_of
from tests.client.ingest.slides.pyramids import canvas, drawn, reason_of, shrunk, write_pyramid
from tests.data_folder import data_folder


def test_thumbnail_that_shows_what_the_slide_does_not_hold_is_refused(tmp_path):
    thumbnail = canvas(256, 256, (0, 0, 128, 128))
    path = write_pyramid(tmp_path / "a.svs", [canvas(1024, 1024), thumbnail], 0.5)
    assert reason_of(path) is ScanReason.CONFLICTING_LEVELS
    with pytest.raises(ScanRefused, match="one picture"):
        plan_of(path)
    wide = write_pyramid(tmp_path / "b.svs", [canvas(1024, 1024), canvas(300, 256, (0, 0, 128, 128))], 0.5)
    assert reason_of(wide) is ScanReason.CONFLICTING_LEVELS


def jpeg(picture):
    stream = io.BytesIO()
    Image.fromarray(picture).save(stream, "JPEG", quality=30)
    return np.asarray(Image.open(stream))


def as_bright(picture, other):
    """With the mean and the contrast of another picture."""
    scaled = (picture - picture.mean()) / picture.std() * other.std() + other.mean()
    return scaled.clip(0, 255).astype(np.uint8)


SAME = {
    "whole": shrunk,
    "compressed": lambda fine, factor: jpeg(shrunk(fine, factor)),
    "darker": lambda fine, factor: (255 * (shrunk(fine, factor) / 255) ** 1.3).astype(np.uint8),
    "half-a-pixel-off": lambda fine, factor: shrunk(
        fine, factor, (0.5 * factor, 0.5 * factor, fine.shape[1], fine.shape[0])
    ),
}
ANOTHER = {
    "mirrored": lambda fine, factor: shrunk(fine, factor)[:, ::-1],
    "upside-down": lambda fine, factor: shrunk(fine, factor)[::-1],
    "turned": lambda fine, factor: shrunk(fine, factor)[::-1, ::-1],
    "a-tile-to-the-right": lambda fine, factor: np.roll(shrunk(fine, factor), 256 // factor, axis=1),
    "two-tiles-down": lambda fine, factor: np.roll(shrunk(fine, factor), 512 // factor, axis=0),
    "another-slide-as-bright": lambda fine, factor: as_bright(
        shrunk(drawn(99, fine.shape[1], fine.shape[0]), factor), shrunk(fine, factor)
    ),
}


@pytest.mark.slow
@pytest.mark.parametrize("factor", [4, 32])
@pytest.mark.parametrize("lower", SAME.values(), ids=SAME)
def test_levels_of_one_picture_are_taken(tmp_path, factor, lower):
    fine = drawn(1)
    assert plan_of(write_pyramid(tmp_path / "a.svs", [fine, lower(fine, factor)], 0.5)).level == 0


@pytest.mark.parametrize("factor", [4, 32])
@pytest.mark.parametrize("lower", ANOTHER.values(), ids=ANOTHER)
def test_levels_of_two_pictures_are_refused(tmp_path, factor, lower):
    fine = drawn(1)
    path = write_pyramid(tmp_path / "a.svs", [fine, lower(fine, factor)], 0.5)
    assert reason_of(path) is ScanReason.CONFLICTING_LEVELS


@pytest.mark.parametrize("factor", [4, 32])
def test_a_blank_level_is_refused(tmp_path, factor):
    fine = drawn(1)
    blank = write_pyramid(tmp_path / "a.svs", [np.full_like(fine, 243), shrunk(fine, factor)], 0.5)
    assert reason_of(blank) is ScanReason.CONFLICTING_LEVELS
    lowest = write_pyramid(tmp_path / "b.svs", [fine, np.full_like(shrunk(fine, factor), 243)], 0.5)
    assert reason_of(lowest) is ScanReason.NO_TISSUE


@pytest.mark.slow
@pytest.mark.data
@pytest.mark.parametrize("factor", [4, 16, 32])
@pytest.mark.parametrize("lower", SAME.values(), ids=SAME)
@pytest.mark.parametrize("name", ["kidney-48-5.tif", "cmu-1-small-region.svs"])
def test_a_real_slide_with_lower_levels_is_taken(tmp_path, name, factor, lower):
    fine = real(name)
    assert plan_of(write_pyramid(tmp_path / "a.svs", [fine, lower(fine, factor)], 0.5)).level == 0


@pytest.mark.slow
@pytest.mark.data
@pytest.mark.parametrize("factor", [4, 16])
@pytest.mark.parametrize("lower", ANOTHER.values(), ids=ANOTHER)
@pytest.mark.parametrize("name", ["kidney-48-5.tif", "cmu-1-small-region.svs"])
def test_a_real_slide_with_the_levels_of_another_is_refused(tmp_path, name, factor, lower):
    fine = real(name)
    if name == "kidney-48-5.tif" and lower is ANOTHER["another-slide-as-bright"]:
        pytest.skip("as bright as this slide, any other has no tissue")
    path = write_pyramid(tmp_path / "a.svs", [fine, np.ascontiguousarray(lower(fine, factor))], 0.5)
    assert reason_of(path) is ScanReason.CONFLICTING_LEVELS


def real(name):
    with opened(data_folder("wsi") / name) as slide:
        return np.asarray(slide.read_region((0, 0), 0, slide.dimensions).convert("RGB"))
