"""Which site never has which modality: the pattern ``exclusive`` as a pure function of what sites have."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from mmare.errors import StudyError

__all__ = ["exclusive"]

_STREAM = 5151  # sets these draws apart from others made with the same seed
_FEWEST = 2  # sites, and modalities


def exclusive(available: NDArray[np.bool_], spare: NDArray[np.bool_], seed: int) -> NDArray[np.bool_]:
    """Let every site lack a modality that another site keeps.

    A site that lacks one by nature loses none. The losses are spread over the modalities as evenly as can be;
    which site loses which is drawn from the seed.

    Args:
        available: ``(S, M)`` bool, true where a site has a modality.
        spare: ``(S, M)`` bool, true where every patient of the site has another modality too. Only such a
            modality is taken, so that nobody has to be left out or given back what the site never has.
        seed: Same sites and seed, same losses.

    Returns:
        ``(S, M)`` bool, true where a site loses a modality; at most one per site.

    Raises:
        StudyError: If there are fewer than two sites or modalities, or there is no such choice.
    """
    n_sites = len(available)
    holders = available.sum(axis=0)  # (M,)
    if n_sites < _FEWEST or int((holders > 0).sum()) < _FEWEST:
        raise StudyError(
            f"--pattern exclusive needs at least two sites and two modalities, found {n_sites} and "
            f"{int((holders > 0).sum())}"
        )
    generator = np.random.default_rng([seed, _STREAM])
    needy = [int(site) for site in generator.permutation(n_sites) if available[site][holders > 0].all()]
    order = generator.permutation(available.shape[1])
    options = {
        site: [int(slot) for slot in np.roll(order, -turn) if spare[site, slot]]
        for turn, site in enumerate(needy)
    }
    for most in range(1, n_sites + 1):  # sites that may lose the same modality
        chosen = _match(options, np.minimum(most, holders - 1).tolist())
        if len(chosen) == len(needy):
            lost = np.zeros_like(available)
            for site, slot in chosen.items():
                lost[site, slot] = True
            return lost
    raise StudyError(
        "--pattern exclusive: there is no way for every site to go without a modality that another site "
        "keeps, since some patients have one modality only"
    )


def _match(options: dict[int, list[int]], capacity: list[int]) -> dict[int, int]:
    """A modality for as many sites as can be, each at most as often as it has capacity (Kuhn, 1955)."""
    chosen: dict[int, int] = {}

    def place(site: int, seen: set[int]) -> bool:
        for slot in options[site]:
            if slot in seen:
                continue
            seen.add(slot)
            taken = [other for other, found in chosen.items() if found == slot]
            if len(taken) < capacity[slot] or any(place(other, seen) for other in taken):
                chosen[site] = slot
                return True
        return False

    for site in options:
        place(site, set())
    return chosen
