"""Secure sums at the coordinator: masked vectors are added as they come, and only their sum is opened.

Sites that do not answer are left out and the others asked again for a smaller group; the value that a site
masks stays the same. A sum is opened with the shares of a majority of the first group.
"""

from __future__ import annotations

import hashlib
from dataclasses import dataclass, replace
from itertools import chain, combinations, islice
from typing import TYPE_CHECKING, Final

import torch

from mmare.errors import Ending, Reason, RunError
from mmare.tasks.registry import task_of
from mmare.wire.masking import MaskError, from_fixed, join_shares, majority, unmask
from mmare.wire.messages import Masked, Request, Task, Unmasked, WireError, encode
from mmare.wire.sums import attribution_of, calibration_of, evaluation_of, sum_layout
from server.rounds.answer_sizes import BASE
from server.rounds.round_metrics import SplitStates
from server.store import events

if TYPE_CHECKING:
    from collections.abc import Mapping

    from torch import Tensor

    from mmare.models.base import MultimodalModel
    from mmare.study.study import Study
    from mmare.wire.messages import Split
    from server.rounds.fleet import Answer
    from server.rounds.requests import Inquiry
    from server.rounds.roll_call import RollCalls
    from server.store.journal import Journal

__all__ = ["SecureSums", "Summed"]

_MOST_TRIES: Final = 500  # of majorities, where a site sent a wrong share
_WORD_BYTES: Final = 8
_SHARE: Final = 512  # characters of a sealed share and its recipient's id


@dataclass(frozen=True)
class Summed:
    """The sum over sites of one kind of answer."""

    sites: tuple[str, ...]
    values: Mapping[str, Tensor]  # as `mmare.wire.sums` names them
    train_seconds: float  # of all sites
    bytes_up: int
    bytes_down: int

    @property
    def samples(self) -> int:
        """Draws of training samples; 0 if none were asked for."""
        return round(self.values["samples"].item()) if "samples" in self.values else 0

    @property
    def train_loss(self) -> float | None:
        """Mean over the draws of all sites."""
        return self.values["loss"].item() / self.samples if self.samples else None

    def states(self, split: Split, study: Study) -> SplitStates:
        """The pooled metric states of a split; there are none of single sites.

        Raises:
            RunError: If the sum is no metric state: a site sent rubbish.
        """
        try:
            found = evaluation_of(self.values, split, study)
        except WireError as error:
            raise RunError(f"a secure sum over {', '.join(self.sites)} is impossible: {error}") from None
        pooled = found.pop("", task_of(study).empty())
        patterns = {name: {"": state} for name, state in found.items()}
        attribution = attribution_of(self.values, split)
        grid = calibration_of(self.values, split)
        return SplitStates({}, patterns, {}, pooled, grid, {} if attribution is None else {"": attribution})


class SecureSums:
    """Asks for masked answers and opens their sum.

    Args:
        model: Tells the layout of the answers.
    """

    def __init__(
        self,
        inquiry: Inquiry,
        calls: RollCalls,
        study: Study,
        model: MultimodalModel,
        journal: Journal,
    ) -> None:
        self._inquiry = inquiry
        self._calls = calls
        self._study = study
        self._model = model
        self._journal = journal

    def collect(
        self, requests: Mapping[str, Request], payload: bytes, round_number: int, phase: str = ""
    ) -> Summed:
        """Sum the answers to requests that ask every site for the same kind of numbers.

        Raises:
            RunError: If too few sites answer, or a share is wrong; running again asks for the same.
        """
        roster = {site: self._calls.members[site].call.public_key for site in sorted(requests)}
        fewest = max(majority(len(roster)), self._study.federation.min_sites)
        layout = sum_layout(self._model, self._study, next(iter(requests.values())))
        length = layout.length
        self._require(len(roster), fewest, "can take part in")
        up = down = 0
        while True:
            asked = {site: replace(requests[site], roster=roster) for site in roster}
            masked, total, size = self._masked(asked, payload, round_number, length)
            up += size
            down += sum(len(encode(request)) + len(payload) for request in asked.values())
            if set(masked) == set(roster):
                break
            roster = {site: key for site, key in roster.items() if site in masked}
            self._require(len(roster), fewest, "sent their part of")
        seeds = self._seeds(masked, next(iter(asked.values())), fewest)
        for site, part in masked.items() if round_number else ():
            self._journal.write(
                events.SiteUpdate(
                    round=round_number,
                    phase=phase,
                    site=site,
                    seconds=sum(part.seconds.values()),
                    bytes_up=length * _WORD_BYTES,
                    bytes_down=len(payload),
                    summed=requests[site].train,
                )
            )
        return Summed(
            tuple(masked),
            layout.unpack(from_fixed(unmask(total, seeds))),
            sum(part.seconds.get("train", 0.0) for part in masked.values()),
            up,
            down,
        )

    def _masked(
        self, requests: Mapping[str, Request], payload: bytes, round_number: int, length: int
    ) -> tuple[dict[str, Masked], Tensor, int]:
        """The answers by site, the sum of their vectors, and the bytes that came."""
        found: dict[str, Masked] = {}
        total = torch.zeros(length, dtype=torch.int64)
        size = 0

        def accept(site: str, answer: Answer) -> None:
            nonlocal size
            part = answer.read(Masked, _most_header(len(requests)))
            if (part.site, part.round) != (site, requests[site].round):
                raise WireError(f"an answer of site {part.site!r} to round {part.round}")
            if set(part.shares) != set(requests) or len(answer.payload) != length * _WORD_BYTES:
                raise WireError(
                    "a masked vector of another length, or without a share for each site", Reason.LAYOUT
                )
            total.add_(torch.frombuffer(bytearray(answer.payload), dtype=torch.int64))
            size += len((answer.header or "").encode()) + len(answer.payload)
            found[site] = part

        self._inquiry.ask(requests, payload, round_number, accept)
        return dict(sorted(found.items())), total, size

    def _seeds(self, masked: Mapping[str, Masked], asked: Request, fewest: int) -> dict[str, bytes]:
        """The seeds of the sites' own masks, opened with the shares of a majority."""
        opened: dict[str, Unmasked] = {}
        wanted = Request(
            Task.UNMASK, asked.run, asked.study, round=asked.round, sum=asked.sum, roster=asked.roster
        )
        requests = {
            site: replace(wanted, shares={sender: part.shares[site] for sender, part in masked.items()})
            for site in masked
        }

        def accept(site: str, answer: Answer) -> None:
            shares = answer.read(Unmasked, _most_header(len(requests)))
            if shares.site != site or set(shares.shares) != set(masked):
                raise WireError("shares of other sites than those of the sum")
            opened[site] = shares

        self._inquiry.ask(requests, b"", asked.round, accept)
        self._require(len(opened), fewest, "helped to open")
        return {
            sender: _seed(sender, part, opened, sorted(masked), fewest) for sender, part in masked.items()
        }

    def _require(self, found: int, wanted: int, what: str) -> None:
        if found < wanted:
            raise RunError(
                f"{found} sites {what} a secure sum, expected at least {wanted}; nothing was opened, and "
                "running again asks for the same; the journal names the others and why",
                Ending.QUORUM,
            )


def _most_header(sites: int) -> int:
    """Characters of the longest header of a site's part: a share per site."""
    return BASE + sites * _SHARE


def _seed(sender: str, part: Masked, opened: Mapping[str, Unmasked], sites: list[str], fewest: int) -> bytes:
    """The seed that fits its digest; some shares may be wrong.

    Raises:
        RunError: If no majority of shares fits.
    """
    groups = chain([tuple(sorted(opened))], combinations(sorted(opened), fewest))  # more than enough is fine
    for group in islice(groups, _MOST_TRIES):
        try:
            shares = {site: bytes.fromhex(opened[site].shares[sender]) for site in group}
            seed = join_shares(shares, sites)
        except (ValueError, MaskError):
            continue
        if hashlib.sha256(seed).hexdigest() == part.seed_digest:
            return seed
    raise RunError(f"the shares of site {sender}'s mask do not fit it: a site sent a wrong share")
