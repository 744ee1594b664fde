"""Whole slides: reading their tiles, and every way to be refused."""

import os
import struct
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import openslide
import pydicom
import pytest
from PIL import Image
from pydicom.uid import VLWholeSlideMicroscopyImageStorage

from client.ingest.reasons import ScanReason, ScanRefused
from client.ingest.slides import wsi
from client.ingest.slides.tissue import Tiling
from client.ingest.slides.wsi import plan_of, tiles_of
from mmare.errors import DataError, InputError
from tests.data_folder import data_folder

GLASS = (243, 242, 244)
TISSUE = (190, 120, 170)
BLOCK = 256  # of the tiled TIFF, a multiple of 16


def write_pyramid(path, levels, um_px=None):
    """A tiled, uncompressed RGB TIFF as Aperio lays it out: one directory for each level, the finest first.

    Without `um_px` it is a generic tiled TIFF, which says no resolution.
    """
    out = bytearray(b"II*\0\0\0\0\0")
    next_at = 4  # where the offset of the next directory goes
    for number, picture in enumerate(levels):
        height, width = picture.shape[:2]
        offsets = []
        for top in range(0, height, BLOCK):
            for left in range(0, width, BLOCK):
                block = np.zeros((BLOCK, BLOCK, 3), np.uint8)
                part = picture[top : top + BLOCK, left : left + BLOCK]
                block[: part.shape[0], : part.shape[1]] = part
                offsets.append(len(out))
                out += block.tobytes()
        text = "a tiled picture" if um_px is None else f"Aperio Image Library phantom|MPP = {um_px}"
        description = text.encode() + b"\0"

        n = len(offsets)
        lengths = struct.pack(f"<{n}I", *[BLOCK * BLOCK * 3] * n)
        starts = struct.pack(f"<{n}I", *offsets)
        inline = n == 1
        entries = [
            (254, 4, 1, 0 if number == 0 else 1),
            (256, 4, 1, width),
            (257, 4, 1, height),
            (258, 3, 3, append(out, struct.pack("<3H", 8, 8, 8))),
            (259, 3, 1, 1),
            (262, 3, 1, 2),
            (270, 2, len(description), append(out, description)),
            (277, 3, 1, 3),
            (284, 3, 1, 1),
            (322, 4, 1, BLOCK),
            (323, 4, 1, BLOCK),
            (324, 4, n, offsets[0] if inline else append(out, starts)),
            (325, 4, n, BLOCK * BLOCK * 3 if inline else append(out, lengths)),
        ]
        struct.pack_into("<I", out, next_at, len(out))
        out += struct.pack("<H", len(entries)) + b"".join(struct.pack("<HHII", *entry) for entry in entries)
        next_at = len(out)
        out += b"\0\0\0\0"
    path.write_bytes(out)
    return path


def append(out, content):
    at = len(out)
    out.extend(content + b"\0" * (len(content) % 2))
    return at


def canvas(width, height, *boxes: tuple[int, int, int, int], glass=GLASS):
    """Glass with boxes of tissue: (left, top, width, height) in pixels."""
    picture = np.full((height, width, 3), glass, np.uint8)
    for left, top, across, down in boxes:
        picture[top : top + down, left : left + across] = TISSUE
    return picture


def halved(picture, factor):
    height, width = (length // factor for length in picture.shape[:2])
    whole = picture[: height * factor, : width * factor].reshape(height, factor, width, factor, 3)
    return whole.mean(axis=(1, 3)).round().astype(np.uint8)


def reason_of(path, **options: object):
    with pytest.raises(ScanRefused) as refused:
        tiles_of(path, **options)
    assert isinstance(refused.value, DataError)
    assert path.name not in str(refused.value)
    assert "\n" not in str(refused.value)
    return refused.value.reason


# ---- slides made in code


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
    path = write_pyramid(tmp_path / "a.svs", [canvas(2048, 2048, (0, 256, 2048, 1792))], 0.5)
    tiling = Tiling(most_tiles=20)
    first, second = tiles_of(path, tiling=tiling), tiles_of(path, tiling=tiling)
    assert (first.plan.n_with_tissue, len(first)) == (56, 20)
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


# ---- refusals


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
    slide = SimpleNamespace(properties={"openslide.mpp-x": "0.25", "openslide.mpp-y": "a quarter"})
    assert wsi._resolution(slide, 0.5) == (0.5, 0.5)


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


def test_thumbnail_that_shows_what_the_slide_does_not_hold_is_refused(tmp_path):
    thumbnail = canvas(256, 256, (0, 0, 128, 128))
    path = write_pyramid(tmp_path / "a.svs", [canvas(1024, 1024), thumbnail], 0.5)
    assert reason_of(path) is ScanReason.CONFLICTING_LEVELS
    with pytest.raises(ScanRefused, match="one picture"):
        plan_of(path)
    wide = write_pyramid(tmp_path / "b.svs", [canvas(1024, 1024), canvas(300, 256, (0, 0, 128, 128))], 0.5)
    assert reason_of(wide) is ScanReason.CONFLICTING_LEVELS


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


@pytest.mark.parametrize(
    ("content", "reason"),
    [
        pytest.param(b"", ScanReason.EMPTY_FILE, id="empty"),
        pytest.param(b"no slide at all", ScanReason.NOT_A_SLIDE, id="text"),
        pytest.param(b"II*\0\x08\0\0\0", ScanReason.NOT_A_SLIDE, id="head-of-a-tiff"),
        pytest.param(b"II*\0\x08\0\0\0\xff\xff" + b"\x7f" * 90, ScanReason.NOT_A_SLIDE, id="broken-tiff"),
    ],
)
def test_what_is_no_slide_is_refused(tmp_path, content, reason):
    path = tmp_path / "secret-name.svs"
    path.write_bytes(content)
    assert reason_of(path) is reason


def test_missing_file_folder_and_pipe_are_refused_without_waiting(tmp_path):
    os.mkfifo(tmp_path / "pipe.svs")
    for name in ("nothing.svs", "pipe.svs"):
        assert reason_of(tmp_path / name) is ScanReason.UNREADABLE_FILE
    (tmp_path / "folder.svs").mkdir()
    assert reason_of(tmp_path / "folder.svs") is ScanReason.UNREADABLE_FILE


@pytest.mark.parametrize(
    ("error", "reason"),
    [
        (PermissionError(13, "denied"), ScanReason.PERMISSION_DENIED),
        (OSError(5, "input/output error"), ScanReason.UNREADABLE_FILE),
    ],
    ids=["permission", "disk"],
)
def test_what_the_disk_does_not_give_is_refused(tmp_path, monkeypatch, error, reason):
    path = write_pyramid(tmp_path / "a.svs", [canvas(600, 600, (0, 0, 300, 300))], 0.5)

    def refuse(_path, _mode):
        raise error

    monkeypatch.setattr(Path, "open", refuse)
    assert reason_of(path) is reason


def test_slide_whose_pixels_fail_to_decode_is_refused(tmp_path):
    """The level that the plan needs is whole; the tiles lie behind the end of the file."""
    picture = canvas(1024, 1024, (0, 0, 1024, 512))
    path = write_pyramid(tmp_path / "a.svs", [picture, halved(picture, 8)], 0.5)
    content = bytearray(path.read_bytes())
    first = content.index(struct.pack("<HHI", 324, 4, 16))  # where the 16 blocks of level 0 start
    (table,) = struct.unpack_from("<I", content, first + 8)
    struct.pack_into("<16I", content, table, *[len(content) + 1000] * 16)
    path.write_bytes(content)
    with pytest.raises(ScanRefused, match="cut short"):
        plan_of(path)
    assert reason_of(path) is ScanReason.DAMAGED_PIXEL_DATA


def test_impossible_sizes_are_refused_before_memory_is_asked_for(tmp_path, monkeypatch):
    """OpenSlide would end the whole process: it cannot get two terabytes for one stored tile."""
    picture = canvas(512, 512, (0, 0, 512, 200))
    path = write_pyramid(tmp_path / "a.svs", [picture, halved(picture, 2)], 0.5)
    content = path.read_bytes()
    width = struct.pack("<HHII", 322, 4, 1, BLOCK)
    assert content.count(width) == 2
    wide = struct.pack("<HHII", 322, 4, 1, 1_979_711_744)
    (tmp_path / "b.svs").write_bytes(content.replace(width, wide, 1))
    assert reason_of(tmp_path / "b.svs") is ScanReason.DAMAGED_PIXEL_DATA
    for limit in ("LONGEST_SIDE_PX", "LARGEST_LOWEST_LEVEL_PX"):
        with monkeypatch.context() as patch:
            patch.setattr(wsi, limit, 500 if limit == "LONGEST_SIDE_PX" else 1000)
            assert reason_of(path) is ScanReason.DAMAGED_PIXEL_DATA


@pytest.mark.parametrize("part", [0.1, 0.5, 0.9, 0.999])
def test_slide_that_is_cut_short_is_refused(tmp_path, part):
    path = write_pyramid(tmp_path / "a.svs", [canvas(1024, 1024, (0, 0, 1024, 512))], 0.5)
    content = path.read_bytes()
    path.write_bytes(content[: int(len(content) * part)])
    assert reason_of(path) in (ScanReason.NOT_A_SLIDE, ScanReason.DAMAGED_PIXEL_DATA)


def test_plain_tiff_is_a_slide_of_one_level(tmp_path):
    picture = canvas(700, 600, (256, 256, 256, 256))
    Image.fromarray(picture).save(tmp_path / "a.tif")
    slide = tiles_of(tmp_path / "a.tif", fallback_um_px=0.5)
    assert slide.places == ((1, 1),)
    np.testing.assert_array_equal(slide.pixels[0], picture[256:512, 256:512])
    content = (tmp_path / "a.tif").read_bytes()
    (tmp_path / "b.tif").write_bytes(content[: len(content) // 2])
    assert reason_of(tmp_path / "b.tif", fallback_um_px=0.5) in (
        ScanReason.NOT_A_SLIDE,
        ScanReason.DAMAGED_PIXEL_DATA,
    )


def test_pictures_of_other_kinds_are_no_slides(tmp_path):
    picture = Image.fromarray(canvas(700, 600, (256, 256, 256, 256)))
    picture.save(tmp_path / "a.png")
    picture.save(tmp_path / "a.jpg")
    picture.convert("L").save(tmp_path / "grey.tif")
    picture.save(tmp_path / "stack.tif", save_all=True, append_images=[picture])
    for name in ("a.png", "a.jpg", "grey.tif", "stack.tif"):
        assert reason_of(tmp_path / name, fallback_um_px=0.5) is ScanReason.NOT_A_SLIDE


def test_oversized_plain_tiff_is_refused(tmp_path, monkeypatch):
    Image.fromarray(canvas(700, 600)).save(tmp_path / "a.tif")
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", 1000)
    assert reason_of(tmp_path / "a.tif", fallback_um_px=0.5) is ScanReason.NOT_A_SLIDE


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


def test_folder_with_files_is_no_slide(tmp_path):
    (tmp_path / "exam-7").mkdir()
    (tmp_path / "exam-7" / "1.dcm").write_bytes(b"a file")
    assert reason_of(tmp_path / "exam-7") is ScanReason.NOT_A_SLIDE


def test_label_of_a_dicom_slide_is_named_as_such(tmp_path):
    label = pydicom.Dataset()
    label.SOPClassUID = VLWholeSlideMicroscopyImageStorage
    label.SOPInstanceUID = label.SeriesInstanceUID = "1.2.3"
    label.ImageType = ["ORIGINAL", "PRIMARY", "LABEL", "NONE"]
    label.ensure_file_meta()
    label.file_meta.TransferSyntaxUID = pydicom.uid.ExplicitVRLittleEndian
    label.save_as(tmp_path / "a.dcm", enforce_file_format=True)
    assert reason_of(tmp_path / "a.dcm") is ScanReason.NOT_A_SLIDE
    with pytest.raises(ScanRefused, match="label, overview or thumbnail"):
        plan_of(tmp_path / "a.dcm")


# ---- real slides


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


@pytest.mark.data
def test_real_damaged_slide_is_refused():
    assert reason_of(data_folder("wsi") / "broken.svs") is ScanReason.NOT_A_SLIDE
