"""Roll call: who is there, with what, and who cannot take part and why."""

from __future__ import annotations

import math
import re
import time
from collections import Counter
from dataclasses import asdict, dataclass
from importlib.metadata import version
from typing import TYPE_CHECKING, Final

from mmare.errors import Reason
from mmare.wire.messages import Request, RollCall, Task, WireError, encode
from server.rounds.fleet import LATE
from server.store import events

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from mmare.study.study import Study
    from server.rounds.fleet import Answer, Fleet
    from server.store.journal import Journal

__all__ = ["Member", "RollCalls", "roll_call"]

ABSENT_S: Final = 60.0  # Flower takes back a node that was killed after so long
AGAIN_S: Final = 60.0  # until a node that does not take part is asked again
LATE_CALL_S: Final = 15.0  # that a round is held up at most by one who comes late
_ID = re.compile(r"[A-Za-z0-9][A-Za-z0-9._+-]*")  # it names folders; one that pools others joins theirs by +


@dataclass(frozen=True)
class Member:
    """A site that takes part: its node and what it said of itself."""

    node: int
    call: RollCall


class RollCalls:
    """Asks nodes what they have, at the start and whenever one comes that was away then.

    Args:
        fleet: The nodes.
        study: Of the run.
        run: Name of the run.
        journal: Gets one ``roll_call`` event per node that is asked.
        now: Monotonic time in seconds.
    """

    def __init__(
        self,
        fleet: Fleet,
        study: Study,
        run: str,
        journal: Journal,
        now: Callable[[], float] = time.monotonic,
    ) -> None:
        self._fleet = fleet
        self._study = study
        self._journal = journal
        self._request = encode(Request(Task.DESCRIBE, run, study.to_dict()))
        self._now = now
        self._asked: dict[int, float] = {}  # nodes that do not take part, and when they were asked last
        self._there: set[int] = set()
        self.members: dict[str, Member] = {}

    def begin(self, expected: int) -> None:
        """Ask every node; refuse what does not match, by site and reason.

        A run that begins waits for all who are expected until the deadline; one that is taken up waits a
        minute for who is away, then goes on with those who are there, if they are enough.

        Args:
            expected: Nodes to wait for.
        """
        nodes = _present(self._fleet, self._study, self._journal, expected)
        self._there = set(nodes)
        self._ask(nodes, self._study.federation.deadline_s)

    def look(self, round_number: int) -> dict[str, Member]:
        """Let in who was away, or could not answer, when the others were asked.

        Args:
            round_number: The one about to begin, for the journal.

        Returns:
            Those who are new, by site id in order.
        """
        known = {member.node for member in self.members.values()}
        soon = self._now() - AGAIN_S
        self._there = set(self._fleet.nodes(0, 0.0))
        nodes = [node for node in sorted(self._there - known) if self._asked.get(node, -math.inf) <= soon]
        if not nodes:
            return {}
        before = dict(self.members)
        self._ask(nodes, min(self._study.federation.deadline_s, LATE_CALL_S), round_number)
        return {site: member for site, member in self.members.items() if before.get(site) != member}

    def _ask(self, nodes: Sequence[int], deadline_s: float, round_number: int = 0) -> None:
        calls: dict[int, RollCall] = {}
        failures = dict.fromkeys(nodes, WireError(LATE, Reason.LATE))
        names: dict[int, str] = {}
        for answer in self._fleet.ask(dict.fromkeys(nodes, self._request), b"", deadline_s):
            names[answer.node] = answer.name
            try:
                calls[answer.node] = _read(answer)
                del failures[answer.node]
            except WireError as error:
                failures[answer.node] = error
        ordered = sorted(calls.items(), key=lambda item: (item[1].site, item[0]))
        inside = [member.call for member in self.members.values()]
        reference = _common_encoders(inside or [call for _, call in ordered])
        for node, call in ordered:
            self._hear(node, call, reference, round_number)
        for node, failure in sorted(failures.items()):
            site = names.get(node) or f"node {node}"
            self._journal.write(
                events.RollCall(
                    round=round_number, site=site, accepted=False, reason=str(failure), code=failure.code
                )
            )
        taking_part = {member.node for member in self.members.values()}
        self._asked |= dict.fromkeys((node for node in nodes if node not in taking_part), self._now())
        self.members = dict(sorted(self.members.items()))

    def _hear(self, node: int, call: RollCall, reference: dict[str, str], round_number: int) -> None:
        error = _mismatch(call, self._study, reference)
        if call.site in self.members and self.members[call.site].node in self._there:
            error = WireError("another node has the same site id", Reason.DUPLICATE)
        if error is None:
            self.members[call.site] = Member(node, call)
        self._journal.write(
            events.RollCall(
                round=round_number,
                site=call.site,
                accepted=error is None,
                reason=None if error is None else str(error),
                code=None if error is None else error.code,
                samples=call.samples,
                encoders=call.encoders,
                software=call.software,
                notes=call.notes,
                counts=asdict(call.counts),
            )
        )


def roll_call(fleet: Fleet, study: Study, run: str, journal: Journal, expected: int) -> dict[str, Member]:
    """Those who take part of the nodes that are there, by site id in order; as `RollCalls.begin`."""
    calls = RollCalls(fleet, study, run, journal)
    calls.begin(expected)
    return calls.members


def _present(fleet: Fleet, study: Study, journal: Journal, expected: int) -> Sequence[int]:
    """Nodes that are there."""
    deadline_s = study.federation.deadline_s
    end = time.monotonic() + deadline_s
    nodes = fleet.nodes(expected, min(deadline_s, ABSENT_S) if journal.taken_up else deadline_s)
    enough = min(expected, study.federation.min_sites)
    if len(nodes) < enough and time.monotonic() < end:
        nodes = fleet.nodes(enough, end - time.monotonic())
    return nodes


def _read(answer: Answer) -> RollCall:
    """What a site says of itself.

    Raises:
        WireError: If it is no roll call, the site's id is none, or not the one that its node was admitted as.
    """
    call = answer.read(RollCall)
    if not _ID.fullmatch(call.site):
        raise WireError("a site id of other signs than letters, digits, dot, dash, underscore and plus")
    if answer.name and call.site != answer.name:
        raise WireError(f"answers as the site {call.site!r}, but its key was admitted for {answer.name!r}")
    return call


def _common_encoders(calls: list[RollCall]) -> dict[str, str]:
    """Per modality the fingerprint that most sites have; of equals the one of the first site id."""
    marks: dict[str, Counter[str]] = {}
    for call in calls:
        for modality, mark in call.encoders.items():
            marks.setdefault(modality, Counter())[mark] += 1
    return {modality: counter.most_common(1)[0][0] for modality, counter in marks.items()}


def _mismatch(call: RollCall, study: Study, encoders: dict[str, str]) -> WireError | None:
    """Why a site cannot take part, or nothing."""
    own = version("federated-mmare")
    if call.study_hash != study.hash:
        return WireError(f"study hash {call.study_hash[:12]}, expected {study.hash[:12]}", Reason.STUDY_HASH)
    if call.software != own:
        return WireError(f"software version {call.software}, expected {own}", Reason.SOFTWARE)
    for modality, mark in call.encoders.items():
        if mark != encoders.get(modality, mark):
            return WireError(
                f"encoder of {modality} is {mark}, expected {encoders[modality]}", Reason.ENCODER
            )
    return None
