"""The sites as the round loop sees them: nodes that receive requests and may answer."""

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
    """A node's answer, or why there is none."""

    node: int
    header: str | None  # None if the node failed
    payload: bytes = b""
    failure: str = ""  # why there is no header
    code: Reason = Reason.OTHER  # of the failure
    line: float | None = None  # bytes per second to the site, where its relay was asked and knows
    name: str = ""  # the site that the node was admitted as; empty if nodes have no names

    def read(self, kind: type[Header], most: int) -> Header:
        """Decode the header, of at most ``most`` characters.

        Raises:
            WireError: The node's failure, the site's refusal, or what is wrong with the header.
        """
        if self.header is None:
            raise WireError(self.failure, self.code)
        try:
            return decode(kind, self.header, most)
        except WireError as error:
            try:
                code = decode(Refusal, self.header, most).code
            except WireError:
                raise error from None
        raise WireError(f"refused: {code.value}, {code.meaning}", code)


class Fleet(Protocol):
    """Carries messages to nodes; `server.rounds.flower_fleet` does so over a Flower Grid."""

    def nodes(self, at_least: int, deadline_s: float) -> Sequence[int]:
        """Online nodes, after waiting up to ``deadline_s`` for ``at_least`` of them."""

    def ask(
        self, requests: Mapping[int, str], payload: bytes, deadline_s: float, round_bytes: int = 0
    ) -> Iterator[Answer]:
        """Send each node its header and the common payload; yield answers as they arrive.

        Relays are told of ``round_bytes``, which a round's tensors will take there and back, and answer with
        the speed of their lines.

        Ends when all have answered or at the deadline. A node that did not answer is missing, or its answer
        has `LATE` as its failure.
        """
