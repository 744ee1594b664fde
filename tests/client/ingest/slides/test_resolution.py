"""Microns per pixel as files state them."""

import pytest
from PIL import Image

from client.ingest.reasons import ScanReason
from client.ingest.slides.resolution import resolution
from client.ingest.slides.wsi import plan_of, tiles_of
from mmare.errors import InputError
from tests.client.ingest.slides.pyramids import canvas, reason_of, write_pyramid


def test_resolution_is_asked_for_where_the_slide_says_none(tmp_path):
    path = write_pyramid(tmp_path / "a.tif", [canvas(1024, 768, (0, 0, 768, 512))])
    assert reason_of(path) is ScanReason.NO_RESOLUTION
    assert tiles_of(path, fallback_um_px=0.5).places == ((0, 0), (1, 0), (2, 0), (0, 1), (1, 1), (2, 1))
    with pytest.raises(InputError, match="microns per pixel"):
        tiles_of(path, fallback_um_px=float("nan"))


@pytest.mark.parametrize("stated", ["0", "-0.5", "nan", "352.8", "unknown"])
def test_resolution_without_sense_counts_as_missing_and_a_good_one_is_kept(tmp_path, stated):
    picture = canvas(1024, 768, (0, 0, 768, 512))
    path = write_pyramid(tmp_path / "a.svs", [picture], stated)
    assert reason_of(path) is ScanReason.NO_RESOLUTION
    assert plan_of(path, fallback_um_px=0.5).um_px == (0.5, 0.5)
    good = write_pyramid(tmp_path / "b.svs", [picture], 0.49)
    assert plan_of(good, fallback_um_px=0.25).um_px == (0.49, 0.49)


def test_resolution_that_is_no_number_counts_as_missing():
    assert resolution({"openslide.mpp-x": "0.25", "openslide.mpp-y": "a quarter"}, 0.5) == (0.5, 0.5)


@pytest.mark.parametrize(
    ("unit", "per_unit", "um_px"),
    [(2, 25_400 / 0.25, 0.25), (3, 10_000 / 0.25, 0.25), (1, 4.0, 0.5), (2, 72.0, 0.5), (3, 0, 0.5)],
    ids=["inch", "cm", "none", "printer", "zero"],
)
def test_plain_tiff_states_its_own_resolution(tmp_path, unit, per_unit, um_px):
    picture = Image.fromarray(canvas(700, 600, (0, 0, 512, 512)))
    picture.save(tmp_path / "a.tif", tiffinfo={282: per_unit, 283: per_unit, 296: unit})
    assert plan_of(tmp_path / "a.tif", fallback_um_px=0.5).um_px == pytest.approx((um_px, um_px))


def test_axis_at_the_target_is_kept_where_the_other_is_finer(tmp_path):
    picture = Image.fromarray(canvas(700, 1200, (0, 0, 512, 1024)))
    tags = {282: 10_000 / 0.5, 283: 10_000 / 0.25, 296: 3}
    picture.save(tmp_path / "a.tif", tiffinfo=tags)
    slide = tiles_of(tmp_path / "a.tif")
    assert slide.plan.region_px == (256, 512)
    assert slide.places == ((0, 0), (1, 0), (0, 1), (1, 1))
    picture.save(tmp_path / "b.tif", tiffinfo=tags | {282: 10_000 / 0.6})
    assert reason_of(tmp_path / "b.tif") is ScanReason.TOO_COARSE


OME = '<?xml version="1.0"?><OME><Image><Pixels PhysicalSizeX="{}" PhysicalSizeY="{}" {} SizeX="9"/>'


@pytest.mark.parametrize("tiled", [True, False])
@pytest.mark.parametrize(
    ("description", "per_unit", "unit", "um_px"),
    [
        pytest.param("ImageJ=1.53t\nunit=micron\n", 4, 1, 0.25, id="imagej"),
        pytest.param("ImageJ=1.53t\nunit=\\u00B5m\n", 4, 1, 0.25, id="imagej-escaped"),
        pytest.param("ImageJ=1.53t\nunit=mm\n", 4000, 1, 0.25, id="imagej-mm"),
        pytest.param("ImageJ=1.53t\nunit=nm\n", 0.004, 1, 0.25, id="imagej-nm"),
        pytest.param("ImageJ=1.53t\nimages=1\n", 40_000, 3, 0.25, id="imagej-centimetres-in-the-tags"),
        pytest.param("ImageJ=1.53t\nunit=mm\n", 4000, 2, 0.25, id="imagej-unit-wins-over-inch"),
        pytest.param("ImageJ=1.53t\nunit=pixel\n", 1, 1, None, id="imagej-pixels"),
        pytest.param("ImageJ=1.53t\nunit=furlong\n", 1, 1, None, id="imagej-unknown-unit"),
        pytest.param(OME.format(0.25, 0.25, ""), None, 1, 0.25, id="ome-microns-are-the-default"),
        pytest.param(
            OME.format(250, 250, 'PhysicalSizeXUnit="nm" PhysicalSizeYUnit="nm"'), None, 1, 0.25, id="ome-nm"
        ),
        pytest.param(OME.format(0.25, 0.25, ""), 72, 2, 0.25, id="ome-and-a-printer"),
        pytest.param(OME.format(0.25, 0.25, ""), 40_100, 3, 0.25, id="ome-and-the-same-tags"),
        pytest.param(OME.format(0.25, 0.25, ""), 20_000, 3, ValueError, id="ome-and-other-tags"),
        pytest.param(
            OME.format(1, 1, 'PhysicalSizeXUnit="pixel" PhysicalSizeYUnit="pixel"'),
            None,
            1,
            None,
            id="ome-pixels",
        ),
        pytest.param("a picture", 40_000, 3, 0.25, id="tags"),
        pytest.param("a picture", 4, 1, None, id="no-unit"),
    ],
)
def test_a_description_states_the_resolution(tmp_path, tiled, description, per_unit, unit, um_px):
    """What the file states wins over the site's setting; None: it states nothing."""
    picture, path = canvas(700, 600, (0, 0, 512, 512)), tmp_path / "a.tif"
    if tiled:
        write_pyramid(path, [picture], None, description, (per_unit, per_unit) if per_unit else (), unit)
    else:
        sizes = {282: float(per_unit), 283: float(per_unit)} if per_unit else {}
        Image.fromarray(picture).save(path, tiffinfo={270: description, 296: unit} | sizes)
    if um_px is ValueError:
        assert reason_of(path, fallback_um_px=0.5) is ScanReason.NO_RESOLUTION
        return
    if um_px is None:
        assert reason_of(path) is ScanReason.NO_RESOLUTION
        um_px = 0.5
    assert plan_of(path, fallback_um_px=0.5).um_px == pytest.approx((um_px, um_px), rel=0.01)


def test_pixels_of_a_tiled_slide_that_are_not_square(tmp_path):
    picture = canvas(700, 1200, (0, 0, 512, 1024))
    slide = tiles_of(write_pyramid(tmp_path / "a.tif", [picture], per_unit=(20_000, 40_000), unit=3))
    assert (slide.plan.um_px, slide.plan.region_px) == ((0.5, 0.25), (256, 512))
    assert slide.places == ((0, 0), (1, 0), (0, 1), (1, 1))
