"""Read a whole slide into the tiles that an encoder takes (thesis 5.2.4).

Tissue is found on the lowest level of the pyramid (Otsu, then a colour filter) and mapped to a grid of tiles
at 0.50 µm per pixel; at most 150 tiles are chosen evenly over the tissue, and those with too little of it are
dropped. Nothing is random and nothing is ever upsampled.

Where the thesis leaves the choice open or we differ:

- A slide coarser than the target is refused (``too-coarse``): its features would look like the others' but
  mean another magnification. A study with such slides sets a coarser target for all.
- The 60 % rule counts a tile's pixels at or below the thumbnail's Otsu threshold, without the colour filter:
  nuclei and stroma lie more than 35 apart, so at full resolution hardly any tile would pass.
- The guaranteed minimum: if fewer than ten tiles pass, the fullest fill up to ten as long as they hold a
  tenth of tissue; the single fullest is kept in any case.
- If no tissue pixel is near the mean colour (two stains, nothing between them), all of them count.
- Of the tiles in one cell of the sampling grid, the one with most tissue on the thumbnail is taken.
- A lowest level of another shape than the level read, or that does not correlate with it, is another
  picture: refused (`client.ingest.slides.levels`).
- Areas beyond the slide's edge or never scanned are white and count as glass.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import openslide
from numpy.typing import NDArray
from PIL import Image

from client.ingest.reasons import ScanReason, ScanRefused
from client.ingest.slides.levels import cells_across, cells_of, compared, one_picture
from client.ingest.slides.opening import opened
from client.ingest.slides.resolution import NATIVE_TOLERANCE, resolution
from client.ingest.slides.tissue import (
    Tiling,
    near_mean_colour,
    otsu_threshold,
    shares_kept,
    spread,
    tissue_per_tile,
)

__all__ = ["SlideTiles", "TilePlan", "plan_of", "tiles_of"]

LEAST_CONTRAST = 20  # grey levels between tissue and glass; noise of bare glass stays below 10
DARKEST_GLASS = 128  # grey; darker backgrounds are fluorescence or a failed scan
LARGEST_THUMBNAIL_PX = 4096 * 4096  # larger lowest levels are averaged down while read
_STRIP_PX = 2048 * 2048
_UNPADDED = frozenset({"aperio", "generic-tiff"})  # other formats pad their levels or name them
_ROUNDED_PX = 4.0  # a level is rounded each time it is halved
_GREYS = 256
_WHITE = (255, 255, 255)


@dataclass(frozen=True)
class TilePlan:
    """Which tiles of a slide to read, and how."""

    level: int  # of the pyramid, 0 is the finest
    um_px: tuple[float, float]  # of that level, across and down
    region_px: tuple[int, int]  # width and height to read per tile; larger than the tile if downsampled
    step_px: tuple[float, float]  # between tiles in pixels of level 0, across and down
    tiles: tuple[tuple[int, int], ...]  # indices (across, down), row by row
    n_with_tissue: int  # tiles with tissue, before at most 150 were chosen
    threshold: int  # highest grey value of tissue


@dataclass(frozen=True, eq=False)
class SlideTiles:
    """The tiles of one slide; iterating gives their pixels one by one."""

    plan: TilePlan
    pixels: NDArray[np.uint8]  # (N, S, S, 3) RGB, S the side of a tile, N at least 1
    places: tuple[tuple[int, int], ...]  # (N,) indices (across, down), row by row
    tissue: NDArray[np.float64]  # (N,) share of tissue

    def __len__(self) -> int:
        return len(self.places)

    def __iter__(self) -> Iterator[NDArray[np.uint8]]:
        return iter(self.pixels)


def plan_of(path: Path, *, tiling: Tiling | None = None, fallback_um_px: float | None = None) -> TilePlan:
    """Choose the tiles of a slide (see `opened`) without reading them.

    ``fallback_um_px`` applies to a slide that does not state the microns per pixel of level 0.

    Raises:
        ScanRefused: With the reason; the message holds no path.
    """
    with opened(path) as slide:
        return _plan(slide, tiling or Tiling(), fallback_um_px)


def tiles_of(path: Path, *, tiling: Tiling | None = None, fallback_um_px: float | None = None) -> SlideTiles:
    """Read the tiles of a slide, at most 150 (29 MB); arguments as in `plan_of`.

    Raises:
        ScanRefused: With the reason; the message holds no path.
    """
    tiling = tiling or Tiling()
    with opened(path) as slide:
        plan = _plan(slide, tiling, fallback_um_px)
        side = (tiling.tile_px, tiling.tile_px)
        read = [_read_tile(slide, plan, tile, side) for tile in plan.tiles]
    pixels = np.stack([np.asarray(picture) for picture in read])  # (N, S, S, 3)
    grey = np.stack([np.asarray(picture.convert("L")) for picture in read])  # (N, S, S)
    shares = (grey <= plan.threshold).mean(axis=(1, 2))
    kept = shares_kept(shares, tiling)
    if not kept.any():
        raise ScanRefused(ScanReason.NO_TISSUE)
    places = tuple(tile for tile, keep in zip(plan.tiles, kept, strict=True) if keep)
    return SlideTiles(plan, pixels[kept], places, shares[kept])


def _plan(slide: openslide.AbstractSlide, tiling: Tiling, fallback_um_px: float | None) -> TilePlan:
    um_px = resolution(slide.properties, fallback_um_px)
    level, native = _level(slide, um_px, tiling.um_px)
    factor = slide.level_downsamples[level]
    level_um_px = (um_px[0] * factor, um_px[1] * factor)
    side = tiling.tile_px
    # An axis at the target, the other finer: a pixel is kept or averaged, never invented.
    across, down = (side if native else max(side, side * tiling.um_px / axis) for axis in level_um_px)
    region_px = (round(across), round(down))
    step_px = (across * factor, down * factor)
    width, height = slide.level_dimensions[level]
    if width < region_px[0] or height < region_px[1]:
        raise ScanRefused(ScanReason.TOO_SMALL, f"It has {width} x {height} pixels at that level.")
    shape = (math.ceil(height / down), math.ceil(width / across))  # (rows, columns)

    rgb, scanned, scale = _thumbnail(slide)
    tissue, threshold = _tissue(rgb, scanned, tiling.colour_distance)
    tissue_px = tissue_per_tile(tissue, (scale / step_px[0], scale / step_px[1]), shape)
    tiles = spread(tissue_px, tiling.most_tiles)
    plan = TilePlan(
        level, level_um_px, region_px, step_px, tiles, int(np.count_nonzero(tissue_px)), threshold
    )
    if level != slide.level_count - 1:
        _check_one_picture(slide, plan, tissue_px, rgb, scale)
    return plan


def _check_one_picture(
    slide: openslide.AbstractSlide,
    plan: TilePlan,
    tissue_px: NDArray[np.int64],
    rgb: NDArray[np.uint8],
    scale: float,
) -> None:
    """Compare tiles with the level ``(H, W, 3)`` on which the tissue was found."""
    (width, height), lowest = slide.level_dimensions[0], slide.level_dimensions[-1]
    vendor = slide.properties.get(openslide.PROPERTY_NAME_VENDOR)
    skew = abs(lowest[0] * height / width - lowest[1])  # of the height, in pixels
    if vendor in _UNPADDED and skew > _ROUNDED_PX * max(1, height / width):
        raise ScanRefused(ScanReason.CONFLICTING_LEVELS, "Their shapes differ.")
    across, down = (step / scale for step in plan.step_px)  # of a tile, on the level of the tissue
    seen = Image.fromarray(rgb).convert("L")
    n_cells = cells_across(min(across, down))
    tissue, glass = compared(plan.tiles, tissue_px, (seen.width / across, seen.height / down))
    tiles = [*tissue, *glass]
    boxes = [(x * across, y * down, (x + 1) * across, (y + 1) * down) for x, y in tiles]
    one = [cells_of(seen, n_cells, box) for box in boxes]
    other = [cells_of(_read_tile(slide, plan, tile, plan.region_px), n_cells) for tile in tiles]
    if tiles and not one_picture(np.stack(one), np.stack(other), len(tissue)):
        raise ScanRefused(ScanReason.CONFLICTING_LEVELS)


def _level(slide: openslide.AbstractSlide, um_px: tuple[float, float], target: float) -> tuple[int, bool]:
    """The level to read, and whether it is at the target resolution; else the coarsest finer one."""
    coarsest = max(um_px)
    factors = slide.level_downsamples

    def miss(level: int) -> float:
        return max(abs(axis * factors[level] / target - 1) for axis in um_px)

    best = min(range(len(factors)), key=miss)
    if miss(best) <= NATIVE_TOLERANCE:
        return best, True
    most = target * (1 + NATIVE_TOLERANCE)  # one axis may fit while the other is finer
    finer = [level for level, factor in enumerate(factors) if coarsest * factor <= most]
    if not finer:
        raise ScanRefused(ScanReason.TOO_COARSE, f"It has {coarsest:.3g} microns per pixel.")
    return max(finer, key=lambda level: factors[level]), False


def _flat(region: Image.Image) -> Image.Image:
    """RGB of an RGBA region; areas never scanned become white."""
    picture = Image.new("RGB", region.size, _WHITE)
    picture.paste(region, mask=region)
    return picture


def _thumbnail(slide: openslide.AbstractSlide) -> tuple[NDArray[np.uint8], NDArray[np.bool_], float]:
    """The lowest level: ``(H, W, 3)`` RGB, ``(H, W)`` scanned, and level 0 pixels per pixel of it."""
    level = slide.level_count - 1
    width, height = slide.level_dimensions[level]
    factor = slide.level_downsamples[level]
    reduce = math.ceil(math.sqrt(width * height / LARGEST_THUMBNAIL_PX))
    rows = height if reduce == 1 else reduce * max(1, _STRIP_PX // (width * reduce))
    pictures, masks = [], []
    for top in range(0, height, rows):
        strip = (width, min(rows, height - top))
        region = slide.read_region((0, round(top * factor)), level, strip).convert("RGBA")
        pictures.append(np.asarray(_flat(region).reduce(reduce)))
        masks.append(np.asarray(region.getchannel("A").reduce(reduce)) > 0)
    return np.concatenate(pictures), np.concatenate(masks), factor * reduce


def _tissue(
    rgb: NDArray[np.uint8], scanned: NDArray[np.bool_], colour_distance: float
) -> tuple[NDArray[np.bool_], int]:
    """Tissue ``(H, W)`` after Otsu and the colour filter, and Otsu's threshold."""
    grey = np.asarray(Image.fromarray(rgb).convert("L"))  # (H, W)
    threshold = otsu_threshold(np.bincount(grey[scanned], minlength=_GREYS))
    dark = (grey <= threshold) & scanned
    bright = (grey > threshold) & scanned
    if not dark.any() or not bright.any():
        raise ScanRefused(ScanReason.NO_TISSUE)
    glass = float(grey[bright].mean())
    if glass - float(grey[dark].mean()) < LEAST_CONTRAST:
        raise ScanRefused(ScanReason.NO_TISSUE)
    if glass < DARKEST_GLASS:
        raise ScanRefused(ScanReason.DARK_BACKGROUND)
    near = near_mean_colour(rgb, dark, colour_distance)
    return (near if near.any() else dark), threshold


def _read_tile(
    slide: openslide.AbstractSlide, plan: TilePlan, tile: tuple[int, int], size: tuple[int, int]
) -> Image.Image:
    corner = (int(tile[0] * plan.step_px[0]), int(tile[1] * plan.step_px[1]))  # of level 0
    picture = _flat(slide.read_region(corner, plan.level, plan.region_px).convert("RGBA"))
    if plan.region_px == size:
        return picture
    return picture.resize(size, Image.Resampling.LANCZOS)
