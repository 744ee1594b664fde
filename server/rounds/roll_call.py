"""Roll call: which sites take part, with which data, and which cannot and why."""

from __future__ import annotations

import math
import re
import time
from collections import Counter
from dataclasses import asdict, dataclass
from importlib.metadata import version
from types import MappingProxyType
from typing import TYPE_CHECKING, Final

from mmare.errors import Reason, SiteCode
from mmare.wire.line import line_words
from mmare.wire.messages import Request, RollCall, Split, Task, WireError, encode
from mmare.wire.versions import who_upgrades
from server.rounds.answer_sizes import most_header
from server.rounds.fleet import LATE
from server.store import events

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping, Sequence

    from mmare.study.study import Study
    from server.rounds.fleet import Answer, Fleet
    from server.store.journal import Journal

__all__ = ["Member", "RollCalls", "roll_call"]

ABSENT_S: Final = 60.0  # after which Flower accepts a killed node again
AGAIN_S: Final = 60.0  # until a node that does not take part is asked again
LATE_CALL_S: Final = 15.0  # longest delay of a round by a late site
_ID = re.compile(r"[A-Za-z0-9][A-Za-z0-9._+-]*")  # names folders; + joins the ids of pooled sites


@dataclass(frozen=True)
class Member:
    """A site that takes part: its node and its answer to the roll call."""

    node: int
    call: RollCall


class RollCalls:
    """Asks nodes what they have, at the start and again for those that arrive late.

    Logs one ``roll_call`` event per node asked.

    Args:
        encoders: Fingerprints that sites must have, of what the study starts from; of others, most decide.
        now: Monotonic time in seconds.
        round_bytes: Of a round's tensors, there and back; 0 where lines do not matter.
    """

    def __init__(
        self,
        fleet: Fleet,
        study: Study,
        run: str,
        journal: Journal,
        encoders: Mapping[str, str] = MappingProxyType({}),
        now: Callable[[], float] = time.monotonic,
        round_bytes: int = 0,
    ) -> None:
        self._fleet = fleet
        self._study = study
        self._journal = journal
        self._encoders = encoders
        request = Request(Task.DESCRIBE, run, study.to_dict())
        self._request, self._most = encode(request), most_header(study, request)
        self._now = now
        self._round_bytes = round_bytes
        self._lines: dict[int, float] = {}  # bytes per second, by node
        self._asked: dict[int, float] = {}  # nodes that do not take part, and when they were last asked
        self._online: set[int] = set()
        self.members: dict[str, Member] = {}

    def begin(self, expected: int) -> None:
        """Ask every node; refuse sites that do not match the study.

        A new run waits for the ``expected`` number of nodes until the deadline. A resumed one waits a minute,
        then continues without absent nodes if enough are online.
        """
        nodes = _present(self._fleet, self._study, self._journal, expected)
        self._online = set(nodes)
        self._ask(nodes, self._study.federation.deadline_s)

    def admit_late(self, round_number: int) -> dict[str, Member]:
        """Admit sites that were away, or could not answer, at an earlier roll call.

        Args:
            round_number: Of the next round, for the journal.

        Returns:
            New members, sorted by site id.
        """
        known = {member.node for member in self.members.values()}
        latest = self._now() - AGAIN_S
        self._online = set(self._fleet.nodes(0, 0.0))
        nodes = [node for node in sorted(self._online - known) if self._asked.get(node, -math.inf) <= latest]
        if not nodes:
            return {}
        before = dict(self.members)
        self._ask(nodes, min(self._study.federation.deadline_s, LATE_CALL_S), round_number)
        return {site: member for site, member in self.members.items() if before.get(site) != member}

    def _ask(self, nodes: Sequence[int], deadline_s: float, round_number: int = 0) -> None:
        calls: dict[int, RollCall] = {}
        failures = dict.fromkeys(nodes, WireError(LATE, Reason.LATE))
        names: dict[int, str] = {}
        requests = dict.fromkeys(nodes, self._request)
        for answer in self._fleet.ask(requests, b"", deadline_s, self._round_bytes):
            names[answer.node] = answer.name
            if answer.line is not None:
                self._lines[answer.node] = answer.line
            try:
                calls[answer.node] = _read(answer, self._most)
                del failures[answer.node]
            except WireError as error:
                failures[answer.node] = error
        ordered = sorted(calls.items(), key=lambda item: (item[1].site, item[0]))
        admitted = [member.call for member in self.members.values()]
        common = _common_encoders(admitted or [call for _, call in ordered])
        reference = {**common, **self._encoders}
        for node, call in ordered:
            self._decide(node, call, reference, round_number)
        for node, failure in sorted(failures.items()):
            site = names.get(node) or f"node {node}"
            line = self._line(node) if failure.code is SiteCode.LINE else ""
            reason = f"{failure}: {line}" if line else str(failure)
            self._journal.write(
                events.RollCall(
                    round=round_number, site=site, accepted=False, reason=reason, code=failure.code
                )
            )
        taking_part = {member.node for member in self.members.values()}
        self._asked |= dict.fromkeys((node for node in nodes if node not in taking_part), self._now())
        self.members = dict(sorted(self.members.items()))

    def _line(self, node: int) -> str:
        """What is known of a node's line, with advice where the deadline is short."""
        if node not in self._lines:
            return ""
        return line_words(self._lines[node], self._round_bytes, self._study.federation.deadline_s)

    def _decide(self, node: int, call: RollCall, reference: dict[str, str], round_number: int) -> None:
        """Admit or refuse a site."""
        error = _mismatch(call, self._study, reference)
        if call.site in self.members and self.members[call.site].node in self._online:
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
                line=self._line(node),
                counts=asdict(call.counts),
            )
        )


def roll_call(fleet: Fleet, study: Study, run: str, journal: Journal, expected: int) -> dict[str, Member]:
    """Members of one roll call, sorted by site id; see `RollCalls.begin`."""
    calls = RollCalls(fleet, study, run, journal)
    calls.begin(expected)
    return calls.members


def _present(fleet: Fleet, study: Study, journal: Journal, expected: int) -> Sequence[int]:
    """Online nodes, after waiting."""
    deadline_s = study.federation.deadline_s
    end = time.monotonic() + deadline_s
    nodes = fleet.nodes(expected, min(deadline_s, ABSENT_S) if journal.existed else deadline_s)
    enough = min(expected, study.federation.min_sites)
    if len(nodes) < enough and time.monotonic() < end:
        nodes = fleet.nodes(enough, end - time.monotonic())
    return nodes


def _read(answer: Answer, most: int) -> RollCall:
    """A site's answer to the roll call.

    Raises:
        WireError: If it is another message, has more than ``most`` characters, or its site id is invalid or
            not the one its node was admitted as.
    """
    call = answer.read(RollCall, most)
    if not _ID.fullmatch(call.site):
        raise WireError(
            "a site id with other characters than letters, digits, dot, dash, underscore and plus"
        )
    if answer.name and call.site != answer.name:
        raise WireError(f"answers as the site {call.site!r}, but its key was admitted for {answer.name!r}")
    return call


def _common_encoders(calls: list[RollCall]) -> dict[str, str]:
    """Per modality, the most frequent fingerprint; ties go to the first site id."""
    marks: dict[str, Counter[str]] = {}
    for call in calls:
        for modality, mark in call.encoders.items():
            marks.setdefault(modality, Counter())[mark] += 1
    return {modality: counter.most_common(1)[0][0] for modality, counter in marks.items()}


def _mismatch(call: RollCall, study: Study, encoders: dict[str, str]) -> WireError | None:
    """Why a site cannot take part, if so."""
    own = version("federated-mmare")
    if call.study_hash != study.hash:
        return WireError(f"study hash {call.study_hash[:12]}, expected {study.hash[:12]}", Reason.STUDY_HASH)
    if who := who_upgrades(call.software, own):
        return WireError(f"software version {call.software}, expected {own}: {who}", Reason.SOFTWARE)
    contradiction = _contradiction(call, study)
    if contradiction:
        return WireError(contradiction, Reason.SAMPLES)
    for modality, mark in call.encoders.items():
        if mark != encoders.get(modality, mark):
            return WireError(
                f"encoder of {modality} is {mark}, expected {encoders[modality]}", Reason.ENCODER
            )
    return None


def _contradiction(call: RollCall, study: Study) -> str:
    """Why a site's train rows, which it weighs by, do not fit its counts; empty if they do."""
    if study.privacy.dp is not None and not study.privacy.secure_sum:  # they tell rounded rows only
        return "" if call.samples >= 0 and not call.counts.splits else "counts, which the study hides"
    if study.privacy.secure_sum:  # sites tell no counts
        fine = call.samples in (0, 1) and not call.counts.splits and bool(call.public_key)
        return "" if fine else "counts, or no key, where sums are secure"
    sizes = call.counts.splits.get(Split.TRAIN, {})
    if set(sizes) != set(study.classes):
        return f"train rows of the classes {', '.join(sorted(sizes)) or 'none'}, expected those of the study"
    for what, groups in (("classes", sizes), ("patterns", call.counts.patterns.get(Split.TRAIN, {}))):
        told = sum(size for size in groups.values() if size is not None)
        withheld = sum(size is None for size in groups.values())
        complete = what == "classes" and not withheld
        if call.samples != told if complete else call.samples < told:
            least = "exactly" if complete else "at least"
            return f"{call.samples} train rows, expected {least} the {told} of its {what}"
        if any(size is not None and size < 0 for size in groups.values()):
            return f"a negative number of train rows in one of its {what}"
    return ""
