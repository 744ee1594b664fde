"""Client of the site worker's socket. Imports neither torch nor a data reader."""

from __future__ import annotations

import json
import logging
from typing import TYPE_CHECKING, Any, Final

import grpc

from client.worker_pb.site_worker_pb2 import Question, StatusQuestion
from client.worker_pb.site_worker_pb2_grpc import SiteWorkerStub
from mmare.errors import SiteCode
from mmare.wire.limits import MOST_HEADER, MOST_PAYLOAD, MOST_REQUEST
from mmare.wire.messages import Refusal, encode

if TYPE_CHECKING:
    from pathlib import Path

    from client.worker_pb.site_worker_pb2 import StatusAnswer

__all__ = [
    "CHANNEL_OPTIONS",
    "LONGEST_PATH",
    "MOST_BYTES",
    "WorkerLink",
    "address_of",
    "deadline_s",
    "is_too_long",
]

LOG = logging.getLogger(__name__)

MOST_BYTES: Final = (
    MOST_HEADER + MOST_PAYLOAD
)  # per message; gRPC's default of 4 MiB is less than most models
LONGEST_PATH: Final = 107  # bytes; the kernel's limit for a Unix socket
CHANNEL_OPTIONS: Final = (
    ("grpc.max_receive_message_length", MOST_BYTES),
    ("grpc.max_send_message_length", MOST_BYTES),
    ("grpc.enable_http_proxy", 0),  # a proxy is for outbound connections, not for this machine
)
STATUS_S: Final = 5.0  # answered even during a message
NO_DEADLINE_S: Final = 600.0  # if a message has no valid deadline


class WorkerLink:
    """Sends messages to the worker behind a socket; a failure of either becomes a refusal with a code.

    Each message uses a new channel, so that a restarted worker is found at once.
    """

    def __init__(self, socket: Path) -> None:
        self._address = address_of(socket)

    def __call__(self, header: str, payload: bytes) -> tuple[str, bytes]:
        """The worker's answer, or a refusal with a code; what is too long is not passed on."""
        if is_too_long(header, payload):
            return encode(Refusal(SiteCode.MESSAGE)), b""
        try:
            with grpc.insecure_channel(self._address, options=CHANNEL_OPTIONS) as channel:
                question = Question(header=header, payload=payload)
                answer = _stub(channel).Ask(question, timeout=deadline_s(header))
        except grpc.RpcError as error:
            late = error.code() is grpc.StatusCode.DEADLINE_EXCEEDED
            LOG.error("the site worker does not answer: %s", error.code())  # noqa: TRY400 - no traceback of gRPC
            return encode(Refusal(SiteCode.LATE if late else SiteCode.WORKER)), b""
        return answer.header, answer.payload

    def status(self) -> StatusAnswer | None:
        """The worker's status, None if none is running."""
        try:
            with grpc.insecure_channel(self._address, options=CHANNEL_OPTIONS) as channel:
                status: StatusAnswer = _stub(channel).Status(StatusQuestion(), timeout=STATUS_S)
        except grpc.RpcError:
            return None
        return status


def _stub(channel: grpc.Channel) -> Any:  # noqa: ANN401 - generated code has no types
    return SiteWorkerStub(channel)  # type: ignore[no-untyped-call] # as above


def address_of(socket: Path) -> str:
    """The gRPC address of a socket."""
    return f"unix:{socket.absolute()}"


def is_too_long(header: str, payload: bytes) -> bool:
    """Whether a message is longer than any that is passed on; then that is logged."""
    found = len(header) > MOST_REQUEST or len(payload) > MOST_PAYLOAD
    if found:
        LOG.error("a message of %s characters and %s bytes is too long", len(header), len(payload))
    return found


def deadline_s(header: str) -> float:
    """The study's deadline, until which the server waits; waiting longer would block the next message.

    Example:
        >>> deadline_s('{"body": {"study": {"federation": {"deadline_s": 20}}}}')
        20.0
        >>> deadline_s("not a message")
        600.0
    """
    try:
        found = float(json.loads(header)["body"]["study"]["federation"]["deadline_s"])
    except (ValueError, KeyError, TypeError, RecursionError):
        return NO_DEADLINE_S
    return found if 0 < found < float("inf") else NO_DEADLINE_S
