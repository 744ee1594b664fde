"""How a slide is tiled and which tiles are chosen: pure functions of pixels and counts (thesis 5.2.4).

`client.ingest.slides.wsi` reads the slides and lists the differences from the thesis.
"""

from __future__ import annotations

from dataclasses import astuple, dataclass

import numpy as np
from numpy.typing import NDArray

from mmare.errors import InputError

__all__ = [
    "PLAUSIBLE_UM_PX",
    "Tiling",
    "near_mean_colour",
    "otsu_threshold",
    "shares_kept",
    "spread",
    "tissue_per_tile",
]

PLAUSIBLE_UM_PX = (0.05, 10.0)  # beyond: a printer's resolution or an empty field, not a microscope's


@dataclass(frozen=True)
class Tiling:
    """How a slide is tiled: the same at all sites of a study.

    Raises:
        InputError: If a value is out of range.

    Example:
        >>> Tiling().fingerprint
        'wsi-tiles/1(0.5,256,150,10,0.6,0.1,35.0)'
    """

    um_px: float = 0.50  # resolution of the tiles, microns per pixel
    tile_px: int = 256  # side of a tile
    most_tiles: int = 150  # read per slide, before the tissue rule
    fewest_tiles: int = 10  # filled up with tiles below `tissue_share`
    tissue_share: float = 0.60  # tissue that a tile must hold
    filler_share: float = 0.10  # tissue that a filler must hold
    colour_distance: float = 35.0  # thumbnail pixels this far from the tissue's mean colour are left out

    def __post_init__(self) -> None:
        if not PLAUSIBLE_UM_PX[0] <= self.um_px <= PLAUSIBLE_UM_PX[1]:
            raise InputError(f"tiles have {self.um_px} microns per pixel, expected {PLAUSIBLE_UM_PX}")
        if self.tile_px < 1 or not 1 <= self.fewest_tiles <= self.most_tiles:
            raise InputError("expected tile_px >= 1 and 1 <= fewest_tiles <= most_tiles")
        if not 0 < self.filler_share <= self.tissue_share <= 1 or not self.colour_distance > 0:
            raise InputError("expected 0 < filler_share <= tissue_share <= 1 and colour_distance > 0")

    @property
    def needs_mask(self) -> bool:
        """Tiles are chosen by their colour."""
        return False

    @property
    def fingerprint(self) -> str:
        """Version and parameters: equal if the tiling is."""
        return f"wsi-tiles/1({','.join(map(str, astuple(self)))})"


def otsu_threshold(histogram: NDArray[np.int64]) -> int:
    """Highest grey value of the darker class of a histogram ``(G,)``; 0 if it has fewer than two values.

    Otsu, "A threshold selection method from gray-level histograms", IEEE Trans. SMC 9 (1979), eq. 18: the
    largest between-class variance. All thresholds in an empty stretch between two peaks are equally good; the
    middle is taken, as the threshold is also used on finer levels, whose pixels vary more.

    Example:
        >>> otsu_threshold(np.bincount([10, 11, 12, 200, 201, 202]))
        105
    """
    counts = histogram.astype(np.float64)
    n_below = counts.cumsum()
    sum_below = (counts * np.arange(len(counts))).cumsum()
    n_above = n_below[-1] - n_below
    between = np.zeros(len(counts))  # up to a constant factor
    two = (n_below > 0) & (n_above > 0)
    between[two] = (sum_below[-1] * n_below - sum_below * n_below[-1])[two] ** 2 / (n_below * n_above)[two]
    if not two.any():
        return 0
    lowest = int(between.argmax())
    n_empty = int(np.flatnonzero(counts[lowest + 1 :])[0])  # empty values above it
    return lowest + n_empty // 2


def near_mean_colour(rgb: NDArray[np.uint8], tissue: NDArray[np.bool_], distance: float) -> NDArray[np.bool_]:
    """Tissue pixels ``(H, W)`` closer to their mean colour in ``(H, W, 3)`` than a Euclidean RGB distance."""
    near = np.zeros_like(tissue)
    if tissue.any():
        colours = rgb[tissue].astype(np.float32)  # (n, 3)
        offset = colours - colours.mean(axis=0, dtype=np.float64).astype(np.float32)
        near[tissue] = np.einsum("nc,nc->n", offset, offset) < distance**2
    return near


def spread(tissue_px: NDArray[np.int64], most: int) -> tuple[tuple[int, int], ...]:
    """Choose at most ``most`` tiles evenly over the tissue: one per occupied cell of a coarser square grid.

    The grid covers the extent of the tissue, with the smallest cells of which at most ``most`` are occupied.
    Of several tiles in a cell, the one with most tissue is taken, then the uppermost, then the leftmost.
    ``tissue_px`` ``(rows, columns)`` counts tissue per tile; returns indices (across, down), row by row.

    Example:
        >>> spread(np.array([[0, 4, 9], [1, 0, 0]]), most=2)
        ((1, 0), (2, 0))
    """
    down, across = np.nonzero(tissue_px)
    if not len(down):
        return ()
    row, column = down - down.min(), across - across.min()
    longest = int(max(row.max(), column.max())) + 1
    n_cells = longest
    while True:  # at n_cells = 1 all tiles share one cell
        cell = (row * n_cells // longest) * n_cells + column * n_cells // longest
        if np.count_nonzero(np.bincount(cell)) <= most:
            break
        n_cells -= 1
    best_first = np.lexsort((across, down, -tissue_px[down, across], cell))
    _, first = np.unique(cell[best_first], return_index=True)
    chosen = sorted((int(down[i]), int(across[i])) for i in best_first[first])
    return tuple((x, y) for y, x in chosen)


def shares_kept(shares: NDArray[np.float64], tiling: Tiling) -> NDArray[np.bool_]:
    """Which tiles hold enough tissue, given their shares ``(N,)``; the fullest fill up to a minimum.

    Example:
        >>> shares_kept(np.array([0.7, 0.3, 0.05]), Tiling())
        array([ True,  True, False])
        >>> shares_kept(np.array([0.02, 0.05, 0.0]), Tiling())
        array([False,  True, False])
    """
    fullest_first = np.argsort(-shares, kind="stable")
    n_full = int((shares >= tiling.tissue_share).sum())
    n_fillers = min(tiling.fewest_tiles, int((shares >= tiling.filler_share).sum()))
    kept = np.zeros(len(shares), np.bool_)
    kept[fullest_first[: max(n_full, n_fillers, 1)]] = True
    return kept & (shares > 0)


def tissue_per_tile(
    tissue: NDArray[np.bool_], tiles_per_pixel: tuple[float, float], shape: tuple[int, int]
) -> NDArray[np.int64]:
    """Count, per tile of the slide, the tissue pixels of a thumbnail ``(H, W)`` whose centre lies in it.

    One pixel spans ``tiles_per_pixel`` tiles across and down; ``shape`` is rows and columns of tiles.
    """
    y, x = np.nonzero(tissue)
    across = ((x + 0.5) * tiles_per_pixel[0]).astype(np.int64)
    down = ((y + 0.5) * tiles_per_pixel[1]).astype(np.int64)
    across, down = np.minimum(across, shape[1] - 1), np.minimum(down, shape[0] - 1)  # level sizes are rounded
    flat = down * shape[1] + across
    return np.bincount(flat, minlength=shape[0] * shape[1]).reshape(shape)
