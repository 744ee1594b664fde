"""Whether two levels of a slide show one picture: the same places correlate."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray
from PIL import Image

__all__ = ["cells_across", "cells_of", "compared", "one_picture"]

# Measured on two real slides and on drawn ones, levels 4, 16 and 32 times smaller (test_levels.py). Of one
# picture: 0.98 and more, compressed 0.95, half a pixel off 0.87. Mirrored, turned or shifted by a tile: 0.79
# and less (a round piece in the middle). Of another slide: 0.61.
LEAST_LIKENESS = 0.83
LEAST_CONTRAST = 3.0  # grey levels of deviation; with less there is nothing to compare but brightness
MOST_APART = 25.0  # brightness; tissue and glass differ by 50 and more
_N_COMPARED = 16  # tiles with tissue, and as many without
_MOST_CELLS = 8  # per side of a tile
_CELL_PX = 2  # at least, of the lower level: rounding moves it by up to one

_Tile = tuple[int, int]


def compared(
    tissue: Sequence[_Tile], tissue_px: NDArray[np.int64], inside: tuple[float, float]
) -> tuple[list[_Tile], list[_Tile]]:
    """Tiles (across, down) with and without tissue, evenly chosen among those that lie ``inside`` the slide.

    ``tissue_px`` ``(rows, columns)`` counts tissue per tile.
    """
    glass = [(int(across), int(down)) for down, across in np.argwhere(tissue_px == 0)]
    return _some(tissue, inside), _some(glass, inside)


def _some(tiles: Sequence[_Tile], inside: tuple[float, float]) -> list[_Tile]:
    whole = [tile for tile in tiles if tile[0] + 1 <= inside[0] and tile[1] + 1 <= inside[1]]
    picked = np.linspace(0, len(whole) - 1, min(len(whole), _N_COMPARED)).round().astype(int)
    return [whole[index] for index in picked]


def cells_across(tile_px: float) -> int:
    """Cells per side of a tile that is so wide on the lower level."""
    return int(np.clip(tile_px // _CELL_PX, 1, _MOST_CELLS))


def cells_of(
    picture: Image.Image, n_cells: int, box: tuple[float, float, float, float] | None = None
) -> NDArray[np.float64]:
    """Mean brightness ``(n, n)`` of the cells of a picture or of a part of it."""
    grey = picture.convert("L").resize((n_cells, n_cells), Image.Resampling.BOX, box)
    return np.asarray(grey, dtype=np.float64)


def one_picture(one: NDArray[np.float64], other: NDArray[np.float64], n_tissue: int) -> bool:
    """Whether the cells ``(N, n, n)`` of tiles of two levels are like each other.

    The first ``n_tissue`` tiles hold tissue. They are compared alone, too: many slides have
    tissue in the middle and glass at the edge.
    """
    return _alike(one, other) and (n_tissue == 0 or _alike(one[:n_tissue], other[:n_tissue]))


def _alike(one: NDArray[np.float64], other: NDArray[np.float64]) -> bool:
    contrasts = float(one.std()), float(other.std())
    if max(contrasts) < LEAST_CONTRAST:
        return bool(abs(float(one.mean() - other.mean())) <= MOST_APART)
    shared = float(((one - one.mean()) * (other - other.mean())).mean())
    return shared > LEAST_LIKENESS * contrasts[0] * contrasts[1]
