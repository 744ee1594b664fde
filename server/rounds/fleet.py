"""The sites as the round loop sees them: nodes that are asked and may answer."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Final, Protocol, TypeVar

from mmare.errors import Reason
from mmare.wire.messages import Refusal, WireError, decode

__all__ = ["LATE", "Answer", "Fleet"]

LATE: Final = "no answer before the deadline"

Header = TypeVar("Header")


@dataclass(frozen=True)
class Answer:
    """What came back from a node.

    Args:
        node: Its number.
        header: Of the site's message; nothing where the node failed.
        payload: Flat run of bytes; may be empty.
        failure: Why there is no header.
        code: The same for programs.
        name: Under which the coordinator admitted the node; empty where nodes have no names.
    """

    node: int
    header: str | None
    payload: bytes = b""
    failure: str = ""
    code: Reason = Reason.OTHER
    name: str = ""

    def read(self, kind: type[Header]) -> Header:
        """The header.

        Raises:
            WireError: Why it is not of this kind: what happened to the node, the site's code, or what is
                wrong with it.
        """
        if self.header is None:
            raise WireError(self.failure, self.code)
        try:
            return decode(kind, self.header)
        except WireError as error:
            try:
                code = decode(Refusal, self.header).code
            except WireError:
                raise error from None
        raise WireError(f"refused: {code.value}", code)


class Fleet(Protocol):
    """Whoever carries messages to nodes; `server.rounds.flower_fleet` does it over a Flower Grid."""

    def nodes(self, at_least: int, deadline_s: float) -> Sequence[int]:
        """Nodes that are there, after waiting for ``at_least`` of them for at most ``deadline_s``."""

    def ask(self, requests: Mapping[int, str], payload: bytes, deadline_s: float) -> Iterator[Answer]:
        """Send a header per node, the same payload to all, and give the answers as they come.

        Ends when all have answered or the deadline has passed; who did not answer is not in it, or in it with
        `LATE` as its failure.
        """
