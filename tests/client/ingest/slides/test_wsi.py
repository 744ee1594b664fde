"""Whole slides: which tiles are read, and how."""

from types import SimpleNamespace

import numpy as np
import openslide
import pytest
from PIL import Image

from client.ingest.reasons import ScanReason
from client.ingest.slides import wsi
from client.ingest.slides.tissue import Tiling
from client.ingest.slides.wsi import plan_of, tiles_of
from tests.client.ingest.slides.pyramids import GLASS, canvas, halved, reason_of, write_pyramid
from tests.data_folder import data_folder


def test_native_level_is_read_as_it_is(tmp_path):
    fine = canvas(2048, 1536, (512, 512, 1024, 512))
    noise = np.random.default_rng(3).integers(-20, 20, (512, 1024, 1))
    fine[512:1024, 512:1536] = fine[512:1024, 512:1536] + noise
    level_1 = halved(fine, 2)
    path = write_pyramid(tmp_path / "a.svs", [fine, level_1, halved(fine, 8)], 0.2525)
    slide = tiles_of(path)
    assert (slide.plan.level, slide.plan.region_px) == (1, (256, 256))
    assert slide.plan.um_px == pytest.approx((0.505, 0.505))
    assert slide.places == ((1, 1), (2, 1))
    for tile, (x, y) in zip(slide, slide.places, strict=True):
        assert tile.dtype == np.uint8
        np.testing.assert_array_equal(tile, level_1[y * 256 : y * 256 + 256, x * 256 : x * 256 + 256])
    np.testing.assert_array_equal(slide.tissue, [1.0, 1.0])
    assert len(slide) == 2


def test_finer_level_is_downsampled_where_the_target_is_missing(tmp_path):
    fine = canvas(2048, 1536, (512, 512, 1024, 512))
    ramp = np.linspace(-30, 30, 1024).astype(np.int64)[None, :, None]
    fine[512:1024, 512:1536] = fine[512:1024, 512:1536] + ramp
    path = write_pyramid(tmp_path / "a.svs", [fine, halved(fine, 4)], 0.25)  # 0.25 and 1.0: no 0.5
    slide = tiles_of(path)
    assert (slide.plan.level, slide.plan.region_px) == (0, (512, 512))
    assert slide.places == ((1, 1), (2, 1))
    expected = halved(fine, 2)[256:512, 256:768].astype(
        np.int64
    )  # another filter: the middle of a smooth ramp
    found = np.concatenate(list(slide), axis=1).astype(np.int64)
    assert np.abs(found - expected)[:, 8:-8].max() <= 1


def test_step_follows_a_resolution_that_is_no_whole_multiple(tmp_path):
    fine = canvas(1200, 1200, (0, 0, 1200, 300))
    path = write_pyramid(tmp_path / "a.svs", [fine], 0.4)
    plan = plan_of(path)
    assert (plan.level, plan.region_px, plan.step_px) == (0, (320, 320), (320.0, 320.0))
    assert [tile for tile in plan.tiles if tile[1] == 0] == [(0, 0), (1, 0), (2, 0), (3, 0)]


def test_what_lies_over_the_edge_counts_as_glass(tmp_path):
    picture = canvas(600, 512, (256, 0, 344, 512))
    slide = tiles_of(write_pyramid(tmp_path / "a.svs", [picture], 0.5))
    assert slide.places == ((1, 0), (2, 0), (1, 1), (2, 1))
    np.testing.assert_allclose(slide.tissue, [1, 88 / 256, 1, 88 / 256])
    assert (slide.pixels[1, :, 88:] == 255).all()


def test_marker_ink_is_not_chosen_where_there_is_tissue(tmp_path):
    picture = canvas(1024, 1024, (0, 0, 1024, 512))
    picture[768:, 768:] = (20, 140, 60)
    plan = plan_of(write_pyramid(tmp_path / "a.svs", [picture], 0.5))
    assert set(plan.tiles) == {(x, y) for x in range(4) for y in range(2)}


def test_at_most_the_given_number_is_read_and_twice_the_same(tmp_path):
    path = write_pyramid(tmp_path / "a.svs", [canvas(1024, 1024, (0, 256, 1024, 768))], 0.5)
    tiling = Tiling(most_tiles=6, fewest_tiles=1)
    first, second = tiles_of(path, tiling=tiling), tiles_of(path, tiling=tiling)
    assert (first.plan.n_with_tissue, len(first)) == (12, 6)
    assert first.plan == second.plan == plan_of(path, tiling=tiling)
    np.testing.assert_array_equal(first.pixels, second.pixels)


def test_large_lowest_level_is_averaged_down_in_strips(tmp_path, monkeypatch):
    picture = canvas(1000, 900, (256, 256, 512, 300))
    path = write_pyramid(tmp_path / "a.svs", [picture], 0.5)
    whole = plan_of(path)
    monkeypatch.setattr(wsi, "LARGEST_THUMBNAIL_PX", 250 * 225)
    monkeypatch.setattr(wsi, "_STRIP_PX", 1000 * 100)
    reduced = plan_of(path)
    assert reduced.tiles == whole.tiles
    assert reduced.threshold == whole.threshold


def test_areas_never_scanned_are_neither_tissue_nor_glass():
    rgb = canvas(100, 100, (0, 0, 10, 10))
    scanned = np.ones((100, 100), np.bool_)
    scanned[:, 50:] = False
    rgb[:, 50:] = 0
    tissue, threshold = wsi._tissue(rgb, scanned, 35.0)
    assert tissue.sum() == 100
    assert not tissue[:, 50:].any()
    assert threshold < min(GLASS)


def test_two_stains_with_nothing_between_them_are_both_tissue():
    rgb = canvas(100, 100)
    rgb[:20], rgb[20:40] = (60, 40, 120), (220, 120, 160)
    tissue, _ = wsi._tissue(rgb, np.ones((100, 100), np.bool_), 35.0)
    assert tissue[:40].all()
    assert not tissue[40:].any()


def test_axes_may_differ_a_little_and_the_step_follows_each():
    properties = {"openslide.mpp-x": "0.25", "openslide.mpp-y": "0.26"}
    slide = openslide.ImageSlide(Image.fromarray(canvas(1200, 1200, (0, 0, 600, 600))))
    named = SimpleNamespace(
        properties=properties,
        level_count=1,
        level_downsamples=(1.0,),
        level_dimensions=((1200, 1200),),
        read_region=slide.read_region,
    )
    plan = wsi._plan(named, Tiling(), None)
    assert plan.region_px == (512, 492)
    assert plan.step_px == pytest.approx((512.0, 492.3077), abs=1e-4)


def test_coarse_slide_is_refused_and_never_upsampled(tmp_path):
    path = write_pyramid(tmp_path / "a.svs", [canvas(1024, 768, (0, 0, 768, 512))], 1.0)
    assert reason_of(path) is ScanReason.TOO_COARSE
    assert tiles_of(path, tiling=Tiling(um_px=1.0)).plan.region_px == (256, 256)


@pytest.mark.parametrize(
    "glass", [pytest.param((255, 255, 255), id="white"), pytest.param((238, 236, 240), id="bare")]
)
def test_slide_without_tissue_is_refused(tmp_path, glass):
    picture = canvas(1024, 768, glass=glass)
    noise = np.random.default_rng(1).normal(0, 3, picture.shape)
    picture = np.clip(picture + noise, 0, 255).astype(np.uint8)
    assert reason_of(write_pyramid(tmp_path / "a.svs", [picture], 0.5)) is ScanReason.NO_TISSUE
    flat = canvas(1024, 768, glass=glass)
    assert reason_of(write_pyramid(tmp_path / "b.svs", [flat], 0.5)) is ScanReason.NO_TISSUE


def test_fluorescence_is_refused(tmp_path):
    picture = canvas(1024, 768, glass=(5, 5, 8))
    picture[:300, :300] = (40, 110, 60)
    assert reason_of(write_pyramid(tmp_path / "a.svs", [picture], 0.5)) is ScanReason.DARK_BACKGROUND


def test_slide_below_one_tile_is_refused(tmp_path):
    picture = canvas(400, 300, (0, 0, 200, 200))
    assert reason_of(write_pyramid(tmp_path / "a.svs", [picture], 0.25)) is ScanReason.TOO_SMALL


@pytest.mark.slow
@pytest.mark.data
def test_real_slide_gives_tiles_of_tissue():
    path = data_folder("wsi") / "cmu-1-small-region.svs"
    slide = tiles_of(path)
    assert (slide.plan.level, slide.plan.region_px, slide.plan.um_px) == (0, (256, 256), (0.499, 0.499))
    assert len(slide) == 23
    assert slide.tissue.min() >= 0.6
    with openslide.OpenSlide(path) as reference:
        for tile, (x, y) in zip(slide, slide.places, strict=True):
            region = np.asarray(reference.read_region((x * 256, y * 256), 0, (256, 256)))
            np.testing.assert_array_equal(tile, region[..., :3])
            assert (region[..., :3].mean(axis=2) < 215).mean() > 0.55  # by eye: not glass


@pytest.mark.slow
@pytest.mark.data
def test_real_slide_at_twice_the_size_of_a_pixel_is_downsampled():
    slide = tiles_of(data_folder("wsi") / "cmu-1-small-region.svs", tiling=Tiling(um_px=0.998))
    assert slide.plan.region_px == (512, 512)
    assert slide.pixels.shape[1:] == (256, 256, 3)
    assert len(slide) >= 6


@pytest.mark.data
def test_real_almost_white_slide_keeps_the_one_tile_with_the_tissue():
    path = data_folder("wsi") / "kidney-48-5.tif"
    assert reason_of(path) is ScanReason.NO_RESOLUTION
    slide = tiles_of(path, fallback_um_px=0.5)
    assert slide.places == ((1, 2),)
    assert 0.02 < slide.tissue[0] < 0.1
