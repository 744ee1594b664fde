"""Requests to sites: answers are validated and their tensors spooled to disk as they arrive."""

from __future__ import annotations

from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING

import torch

from mmare.errors import Reason, SiteCode
from mmare.host.files import own
from mmare.wire.messages import Layout, Request, Update, WireError, encode
from mmare.wire.tensors import unpack
from server.rounds.answer_sizes import most_header
from server.rounds.fleet import LATE
from server.rounds.round_metrics import collect_states, trained_state
from server.store import events

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping
    from pathlib import Path

    from torch import Tensor

    from mmare.study.study import Study
    from mmare.wire.messages import Split
    from server.rounds.fleet import Answer, Fleet
    from server.rounds.roll_call import RollCalls
    from server.rounds.round_metrics import SplitStates
    from server.rounds.update_checks import Upload
    from server.store.journal import Journal

__all__ = ["Inquiry", "Reply", "read_spooled"]

MOST_SECONDS = 1e9  # 30 years: sums of reported times stay finite


@dataclass(frozen=True)
class Reply:
    """A validated answer."""

    update: Update
    spooled: Path | None  # file of its tensors, if any
    size: int  # of header and tensors in bytes
    states: Mapping[Split, SplitStates] = field(default_factory=dict)  # of its evaluations


class Inquiry:
    """Sends requests to the members of a run; logs late and invalid answers and leaves them out.

    Args:
        calls: Know the members.
        spool: Folder for tensors, one file per node, overwritten each round.
        upload: What sites may return.
    """

    def __init__(
        self,
        fleet: Fleet,
        study: Study,
        calls: RollCalls,
        journal: Journal,
        spool: Path,
        upload: Upload,
    ) -> None:
        self._fleet = fleet
        self._study = study
        self._calls = calls
        self._journal = journal
        self._spool = spool
        self._upload = upload
        self._phase = ""
        self.without_state: set[str] = set()  # sites that lost their optimiser state

    def begin_test(self) -> None:
        """Mark all later journal events as part of the test."""
        self._phase = "test"

    def ask(
        self,
        requests: Mapping[str, Request],
        payload: bytes,
        round_number: int,
        accept: Callable[[str, Answer], None],
    ) -> None:
        """Send requests and pass each answer to ``accept``, which raises `WireError` to reject it.

        Args:
            requests: By site id.
            payload: Tensors, the same for all.
            round_number: For the journal; 0 before the rounds.
        """
        headers = {site: encode(request) for site, request in requests.items()}
        self._ask(headers, payload, round_number, accept)

    def _ask(
        self,
        headers: Mapping[str, str],
        payload: bytes,
        round_number: int,
        accept: Callable[[str, Answer], None],
    ) -> None:
        self.without_state.clear()
        nodes = {self._calls.members[site].node: site for site in headers}
        waiting = set(headers)
        asked = {node: headers[site] for node, site in nodes.items()}
        for answer in self._fleet.ask(asked, payload, self._study.federation.deadline_s):
            site = nodes[answer.node]
            waiting.discard(site)
            try:
                accept(site, answer)
            except WireError as error:
                if error.code is SiteCode.STATE:
                    self.without_state.add(site)
                self._leave_out(round_number, site, str(error), error.code)
        for site in sorted(waiting):
            self._leave_out(round_number, site, LATE, Reason.LATE)

    def _leave_out(self, round_number: int, site: str, reason: str, code: Reason | SiteCode) -> None:
        self._journal.write(
            events.SiteLeftOut(round=round_number, phase=self._phase, site=site, reason=reason, code=code)
        )

    def updates(
        self, requests: Mapping[str, Request], payload: bytes, round_number: int
    ) -> tuple[dict[str, Reply], int]:
        """Ask for evaluation and training.

        Returns:
            Valid replies, sorted by site id, and the bytes sent in total.
        """
        replies: dict[str, Reply] = {}
        headers = {site: encode(request) for site, request in requests.items()}

        def accept(site: str, answer: Answer) -> None:
            reply = self._check(site, requests[site], answer)
            replies[site] = reply
            self._journal.write(
                events.SiteUpdate(
                    round=round_number,
                    phase=self._phase,
                    site=site,
                    samples=reply.update.samples,
                    seconds=sum(reply.update.seconds.values()),
                    bytes_up=reply.size,
                    bytes_down=len(headers[site]) + len(payload),
                    norm=reply.update.norm,
                    train_loss=reply.update.train_loss,
                )
            )

        self._ask(headers, payload, round_number, accept)
        down = sum(len(header) + len(payload) for header in headers.values())
        return dict(sorted(replies.items())), down

    def _check(self, site: str, request: Request, answer: Answer) -> Reply:
        """Validate an answer against its request, and spool its tensors.

        Raises:
            WireError: If they do not match.
        """
        update = answer.read(Update, most_header(self._study, request, self._upload.trained(request)))
        size = len((answer.header or "").encode()) + len(answer.payload)
        if update.site != site or update.round != request.round:
            raise WireError(
                f"an answer of site {update.site!r} to round {update.round}, "
                f"expected {site!r} and {request.round}"
            )
        if tuple(evaluation.split for evaluation in update.evaluations) != request.splits:
            raise WireError("evaluations of other splits than requested", Reason.METRICS)
        if not all(0 <= seconds <= MOST_SECONDS for seconds in update.seconds.values()):
            raise WireError(f"seconds outside 0 to {MOST_SECONDS:g}")
        states = {split: collect_states({site: update}, split, self._study) for split in request.splits}
        wanted = request.gap and request.train
        if (update.trained is not None) != wanted:
            raise WireError(
                f"{'no' if wanted else 'an unrequested'} evaluation of the trained model", Reason.METRICS
            )
        if update.trained is not None:
            trained_state(update, self._study)
        if not request.train:
            return Reply(update, None, size, states)
        draws = self._calls.members[site].call.samples * self._study.training.local_epochs
        if update.samples != draws:
            raise WireError(
                f"{update.samples} samples, expected {draws} by the rows of the roll call", Reason.SAMPLES
            )
        layout = self._upload.check(update, request.round)
        if len(answer.payload) != layout.size:
            raise WireError(f"{len(answer.payload)} bytes of tensors, expected {layout.size}", Reason.LAYOUT)
        path = self._spool / f"{answer.node}.bin"
        _write_over(path, answer.payload)
        norm = self._upload.check_step(read_spooled(path, layout))
        return Reply(replace(update, norm=norm), path, size, states)


def _write_over(path: Path, payload: bytes) -> None:
    """Write a file in place if the previous round's has the same size, which reuses its cached pages."""
    same_size = path.exists() and path.stat().st_size == len(payload)
    with open(path, "r+b" if same_size else "wb", opener=own) as file:
        file.write(payload)


def read_spooled(path: Path, layout: Layout) -> dict[str, Tensor]:
    """Tensors of a spooled update, memory-mapped."""
    if layout.size == 0:
        return {}
    return unpack(torch.from_file(str(path), size=layout.size, dtype=torch.uint8), layout)
