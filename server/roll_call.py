"""Roll call: who is there, with what, and who cannot take part and why."""

from __future__ import annotations

import re
from collections import Counter
from dataclasses import asdict, dataclass
from importlib.metadata import version
from typing import TYPE_CHECKING

from mmare.exchange import Refusal, Request, RollCall, Task, WireError, decode, encode

if TYPE_CHECKING:
    from mmare.study import Study
    from server.fleet import Answer, Fleet
    from server.journal import Journal

__all__ = ["Member", "explain", "roll_call"]

_ID = re.compile(r"[A-Za-z0-9][A-Za-z0-9._+-]*")  # it names folders; one that pools others joins theirs by +


@dataclass(frozen=True)
class Member:
    """A site that takes part: its node and what it said of itself."""

    node: int
    call: RollCall


def explain(answer: Answer, error: WireError) -> str:
    """Why an answer is not a result: what happened to the node, the site's code, or else ``error``."""
    if answer.header is None:
        return answer.failure
    try:
        return f"refused: {decode(Refusal, answer.header).code.value}"
    except WireError:
        return str(error)


def roll_call(fleet: Fleet, study: Study, run: str, journal: Journal, expected: int) -> dict[str, Member]:
    """Ask every node what it has; refuse what does not match, by site and reason.

    Args:
        fleet: The nodes.
        study: Of the run.
        run: Name of the run.
        journal: Gets one ``roll_call`` event per node.
        expected: Nodes to wait for.

    Returns:
        Those who take part, by site id in order.
    """
    deadline_s = study.federation.deadline_s
    nodes = fleet.nodes(expected, deadline_s)
    request = encode(Request(Task.DESCRIBE, run, study.to_dict()))
    calls: dict[int, RollCall] = {}
    failures = dict.fromkeys(nodes, "no answer before the deadline")
    for answer in fleet.ask(dict.fromkeys(nodes, request), b"", deadline_s):
        try:
            calls[answer.node] = _read(answer)
            del failures[answer.node]
        except WireError as error:
            failures[answer.node] = explain(answer, error)
    members: dict[str, Member] = {}
    ordered = sorted(calls.items(), key=lambda item: (item[1].site, item[0]))
    reference = _common_encoders([call for _, call in ordered])
    for node, call in ordered:
        reason = _mismatch(call, study, reference)
        if call.site in members:
            reason = "another node has the same site id"
        if reason is None:
            members[call.site] = Member(node, call)
        journal.write(
            "roll_call",
            site=call.site,
            accepted=reason is None,
            reason=reason,
            samples=call.samples,
            encoders=dict(call.encoders),
            software=call.software,
            notes=list(call.notes),
            counts=asdict(call.counts),
        )
    for node, reason in sorted(failures.items()):
        journal.write("roll_call", site=f"node {node}", accepted=False, reason=reason)
    return members


def _read(answer: Answer) -> RollCall:
    """What a site says of itself.

    Raises:
        WireError: If it is no roll call, or the site's id is none.
    """
    call = decode(RollCall, answer.header or "")
    if not _ID.fullmatch(call.site):
        raise WireError("a site id of other signs than letters, digits, dot, dash, underscore and plus")
    return call


def _common_encoders(calls: list[RollCall]) -> dict[str, str]:
    """Per modality the fingerprint that most sites have; of equals the one of the first site id."""
    marks: dict[str, Counter[str]] = {}
    for call in calls:
        for modality, mark in call.encoders.items():
            marks.setdefault(modality, Counter())[mark] += 1
    return {modality: counter.most_common(1)[0][0] for modality, counter in marks.items()}


def _mismatch(call: RollCall, study: Study, encoders: dict[str, str]) -> str | None:
    """Why a site cannot take part, or nothing."""
    own = version("federated-mmare")
    if call.study_hash != study.hash:
        return f"study hash {call.study_hash[:12]}, expected {study.hash[:12]}"
    if call.software != own:
        return f"software version {call.software}, expected {own}"
    for modality, mark in call.encoders.items():
        if mark != encoders[modality]:
            return f"encoder of {modality} is {mark}, expected {encoders[modality]}"
    return None
