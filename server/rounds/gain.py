"""What a site gains by joining: two models compared on the same test rows, at the sites.

Each site counts, per class, the rows that only one of the two models predicts correctly (McNemar's table).
Counts add up, so the pooled difference and its interval need no rows.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any, Final, TypeVar

import torch

from mmare.errors import RunError
from mmare.metrics.intervals import draw_cells
from mmare.metrics.paired import N_SUMS, difference_of
from mmare.study.choices import TaskName
from mmare.wire.messages import Comparison, Request, Task, WireError, encode
from mmare.wire.tensors import layout_of, pack
from server.rounds.answer_sizes import most_header
from server.rounds.fleet import LATE

if TYPE_CHECKING:
    from collections.abc import Sequence

    from torch import Tensor

    from mmare.study.study import Study
    from server.rounds.fleet import Answer, Fleet
    from server.rounds.roll_call import Member

__all__ = ["gain_of", "gains"]

CELLS: Final = 4  # both, the first alone, the second alone, neither
RESAMPLES: Final = 2000
N = TypeVar("N", int, float)

LARGEST: Final = 2**40  # rows of a class at a site: more than people on earth


def gains(
    fleet: Fleet,
    study: Study,
    run: str,
    members: Mapping[str, Member],
    joined: Mapping[str, Tensor],
    alone: Mapping[str, Mapping[str, Tensor]],
) -> dict[str, Any]:
    """Compare the federated model with each site's own (``alone``), on that site's test rows.

    Returns:
        ``metric``; ``sites`` and ``pooled``, as `gain_of` or, of other tasks, `difference_of` returns them;
        ``left_out``: reason per site.

    Raises:
        RunError: If no site could compare.
    """
    first, layout = pack(joined).numpy().tobytes(), layout_of(joined).fingerprint
    cells: dict[str, dict[str, tuple[int, ...]]] = {}
    sums: dict[str, tuple[float, ...]] = {}
    left_out: dict[str, str] = {}
    for site in sorted(alone):
        if site not in members:
            left_out[site] = "not at the roll call"
            continue
        request = Request(Task.COMPARE, run, study.to_dict(), layout=layout)
        payload = first + pack(alone[site]).numpy().tobytes()
        left_out[site] = LATE
        for answer in fleet.ask({members[site].node: encode(request)}, payload, study.federation.deadline_s):
            try:
                found = _read(answer, site, study, most_header(study, request))
                cells[site], sums[site] = dict(found.cells), found.sums
                del left_out[site]
            except WireError as error:
                left_out[site] = str(error)
    if not any(cells.values()) and not any(sums.values()):
        raise RunError(
            f"no site could compare: {'; '.join(left_out.values()) or 'all classes are too small'}"
        )
    if study.task is not TaskName.CLASSIFICATION:
        of_pairs = study.task is TaskName.SURVIVAL
        whole = _add([each for each in sums.values() if each])
        return {
            "metric": "concordance" if of_pairs else "negative MAE",
            "sites": {site: difference_of(found, of_pairs) for site, found in sums.items()},
            "pooled": difference_of(whole, of_pairs),
            "left_out": left_out,
        }
    pooled = {
        name: _add([found[name] for found in cells.values() if name in found]) for name in study.classes
    }
    return {
        "metric": "balanced accuracy",
        "sites": {site: gain_of(found, study.classes) for site, found in cells.items()},
        "pooled": gain_of({name: value for name, value in pooled.items() if value}, study.classes),
        "left_out": left_out,
    }


def gain_of(cells: Mapping[str, Sequence[int]], classes: Sequence[str]) -> dict[str, Any]:
    """Paired difference of balanced accuracy, first minus second, with a 95 % bootstrap interval.

    Rows are drawn within each class, as in `mmare.metrics.intervals`.

    Args:
        cells: Per class, how many rows both, only the first, only the second and neither predicted correctly.
        classes: All names; if ``cells`` lacks one, every value but ``n`` is ``None``.

    Returns:
        ``n``, ``first``, ``second``, ``difference``, ``ci95``.

    Example:
        >>> found = gain_of({"ill": (5, 3, 0, 2), "well": (8, 1, 1, 0)}, ["ill", "well"])
        >>> found["n"], round(found["first"], 2), round(found["difference"], 2)
        (20, 0.85, 0.15)
    """
    n = sum(sum(cells[name]) for name in classes if name in cells)
    if any(sum(cells.get(name, ())) == 0 for name in classes):
        return {"n": n, **dict.fromkeys(("first", "second", "difference", "ci95"))}
    counts = torch.tensor([list(cells[name]) for name in classes], dtype=torch.int64)  # (K, 4)
    generator = torch.Generator().manual_seed(0)
    drawn = torch.stack([draw_cells(row, RESAMPLES, generator) for row in counts], dim=1)  # (R, K, 4)
    spread = _shares(drawn)  # (R, 2)
    first, second = _shares(counts.double().unsqueeze(0))[0].tolist()
    bounds = torch.tensor([0.025, 0.975], dtype=torch.float64)
    return {
        "n": n,
        "first": first,
        "second": second,
        "difference": first - second,
        "ci95": (spread[:, 0] - spread[:, 1]).quantile(bounds).tolist(),
    }


def _shares(counts: Tensor) -> Tensor:
    """Balanced accuracies of both models, ``(R, 2)``, from cells ``(R, K, 4)``."""
    totals = counts.sum(dim=2)  # (R, K)
    right = torch.stack(
        [counts[..., 0] + counts[..., 1], counts[..., 0] + counts[..., 2]], dim=2
    )  # (R, K, 2)
    return (right / totals.unsqueeze(2)).mean(dim=1)


def _add(parts: Sequence[Sequence[N]]) -> tuple[N, ...]:
    return tuple(sum(column) for column in zip(*parts, strict=True))


def _read(answer: Answer, site: str, study: Study, most: int) -> Comparison:
    """An answer, validated.

    Raises:
        WireError: If they are impossible.
    """
    found = answer.read(Comparison, most)
    if found.site != site:
        raise WireError(f"an answer of site {found.site!r}, expected {site!r}")
    for name, cells in found.cells.items():
        if name not in study.classes or len(cells) != CELLS or not all(0 <= n <= LARGEST for n in cells):
            raise WireError("a comparison that no rows could give")
    rows, *_ = found.sums or (0.0,)
    if (
        len(found.sums) not in {0, N_SUMS}
        or not 0 <= rows <= LARGEST
        or not all(map(math.isfinite, found.sums))
    ):
        raise WireError("a comparison that no rows could give")
    return found
