"""How a slide is cut, and which of its tiles are chosen: pure functions of pixels and counts (thesis 5.2.4).

`client.ingest.slides.wsi` reads the slides and says where the choice differs from the thesis's.
"""

from __future__ import annotations

from dataclasses import dataclass

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

PLAUSIBLE_UM_PX = (0.05, 10.0)  # beyond: a printer's dots per inch or an empty field, no microscope


@dataclass(frozen=True)
class Tiling:
    """How a slide is cut: the same at all sites of a study.

    Args:
        um_px: Resolution of the tiles, in microns per pixel.
        tile_px: Side of a tile.
        most_tiles: Tiles that are read of a slide, before the tissue rule.
        fewest_tiles: Up to this many are kept below `tissue_share`.
        tissue_share: Tissue that a tile must hold.
        filler_share: Tissue that a tile below `tissue_share` must hold to fill up.
        colour_distance: Tissue pixels of the thumbnail this far from their mean colour are left out.

    Raises:
        InputError: If a value makes no sense.

    Example:
        >>> Tiling().fingerprint
        'wsi-tiles/1(0.5,256,150,10,0.6,0.1,35.0)'
    """

    um_px: float = 0.50
    tile_px: int = 256
    most_tiles: int = 150
    fewest_tiles: int = 10
    tissue_share: float = 0.60
    filler_share: float = 0.10
    colour_distance: float = 35.0

    def __post_init__(self) -> None:
        if not PLAUSIBLE_UM_PX[0] <= self.um_px <= PLAUSIBLE_UM_PX[1]:
            raise InputError(f"tiles have {PLAUSIBLE_UM_PX} microns per pixel, found {self.um_px}")
        if self.tile_px < 1 or not 1 <= self.fewest_tiles <= self.most_tiles:
            raise InputError("tiles have a side of at least 1 pixel, and 1 <= fewest_tiles <= most_tiles")
        if not 0 < self.filler_share <= self.tissue_share <= 1 or not self.colour_distance > 0:
            raise InputError("shares lie in 0 < filler <= tissue <= 1, and a colour distance is above 0")

    @property
    def fingerprint(self) -> str:
        """The preprocessing version that cached features and other sites are compared by."""
        values = (
            self.um_px,
            self.tile_px,
            self.most_tiles,
            self.fewest_tiles,
            self.tissue_share,
            self.filler_share,
            self.colour_distance,
        )
        return f"wsi-tiles/1({','.join(map(str, values))})"


def otsu_threshold(histogram: NDArray[np.int64]) -> int:
    """The grey value that parts a histogram into its two most distinct classes.

    Otsu, "A threshold selection method from gray-level histograms", IEEE Trans. SMC 9 (1979), eq. 18: the
    between-class variance is largest. Along an empty stretch between two peaks all thresholds are equal; the
    middle is taken, because it is used on finer levels too, whose pixels vary more.

    Args:
        histogram: ``(G,)`` number of pixels of each grey value.

    Returns:
        The highest grey value of the darker class; 0 if there are fewer than two values.

    Example:
        >>> otsu_threshold(np.bincount([10, 11, 12, 200, 201, 202]))
        105
    """
    counts = histogram.astype(np.float64)
    n_below = counts.cumsum()
    sum_below = (counts * np.arange(len(counts))).cumsum()
    n_above = n_below[-1] - n_below
    between = np.zeros(len(counts))  # times a constant
    two = (n_below > 0) & (n_above > 0)
    between[two] = (sum_below[-1] * n_below - sum_below * n_below[-1])[two] ** 2 / (n_below * n_above)[two]
    if not two.any():
        return 0
    lowest = int(between.argmax())
    n_empty = int(np.flatnonzero(counts[lowest + 1 :])[0])  # values above it that no pixel has
    return lowest + n_empty // 2


def near_mean_colour(rgb: NDArray[np.uint8], tissue: NDArray[np.bool_], distance: float) -> NDArray[np.bool_]:
    """The tissue pixels whose colour is near the mean colour of them all.

    Args:
        rgb: ``(H, W, 3)``.
        tissue: ``(H, W)``.
        distance: Euclidean, in RGB; pixels at it or beyond are left out.

    Returns:
        ``(H, W)``, True within `tissue` only.
    """
    near = np.zeros_like(tissue)
    if tissue.any():
        colours = rgb[tissue].astype(np.float32)  # (n, 3)
        offset = colours - colours.mean(axis=0, dtype=np.float64).astype(np.float32)
        near[tissue] = np.einsum("nc,nc->n", offset, offset) < distance**2
    return near


def spread(tissue_px: NDArray[np.int64], most: int) -> tuple[tuple[int, int], ...]:
    """Choose tiles evenly over the tissue: one for each occupied cell of a coarser square grid.

    The grid lies over the extent of the tissue; its cells are the smallest that occupy at most `most`. Of
    several tiles in a cell, the one with most tissue, then the uppermost, then the leftmost.

    Args:
        tissue_px: ``(rows, columns)`` tissue pixels in each tile of the slide.
        most: Tiles to choose at most.

    Returns:
        Indices (across, down), row by row.

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
    """Which tiles hold enough tissue; the fullest fill up to a minimum where any tissue exists.

    Args:
        shares: ``(N,)`` share of tissue in each tile.
        tiling: The rule.

    Returns:
        ``(N,)``.

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
    """Count the tissue pixels of a thumbnail whose centre lies in each tile of the slide.

    Args:
        tissue: ``(H, W)`` of the thumbnail.
        tiles_per_pixel: Tiles, or a fraction of one, that a pixel of it spans across and down.
        shape: Rows and columns of tiles.

    Returns:
        ``shape``.
    """
    y, x = np.nonzero(tissue)
    across = ((x + 0.5) * tiles_per_pixel[0]).astype(np.int64)
    down = ((y + 0.5) * tiles_per_pixel[1]).astype(np.int64)
    across, down = np.minimum(across, shape[1] - 1), np.minimum(down, shape[0] - 1)  # of a rounded level
    flat = down * shape[1] + across
    return np.bincount(flat, minlength=shape[0] * shape[1]).reshape(shape)
