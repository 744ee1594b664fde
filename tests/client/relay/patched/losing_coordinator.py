"""Flower's own SuperNode connection, with our changes, to a coordinator whose answers get lost.

``python -m tests.client.relay.patched.losing_coordinator FOLDER pull|push ANSWER…`` requests a message or
sends part of a reply, and prints as JSON the result and the other requests to the coordinator. Each
answer is a status, the name of an httpx error, or one of `ANSWERS`.
"""

import json
import sys
import time
from pathlib import Path

import httpx
from cryptography.hazmat.primitives.asymmetric import ec
from flwr.proto.fleet_pb2 import ActivateNodeResponse, DeactivateNodeResponse, PullMessagesResponse
from flwr.proto.heartbeat_pb2 import SendNodeHeartbeatResponse
from flwr.proto.message_pb2 import Message, ObjectTree, PushObjectResponse
from flwr.supercore.inflatable.inflatable_utils import ObjectPushError

from client.relay.patch_points import SUPERNODE, named, replace
from client.relay.patched import supernode as node

ANSWERS = {
    "none": PullMessagesResponse(),
    "one": PullMessagesResponse(messages_list=[Message()], message_object_trees=[ObjectTree()]),
    "stored": PushObjectResponse(stored=True),
    "refused": PushObjectResponse(stored=False),
}
OTHERS = {
    "activate-node": ActivateNodeResponse(node_id=7),
    "deactivate-node": DeactivateNodeResponse(),
    "send-node-heartbeat": SendNodeHeartbeatResponse(success=True),
}

FIRST_HEARTBEAT_S = 10.0


class Coordinator(httpx.BaseTransport):
    """Gives the answers in order."""

    def __init__(self, answers: list[str]) -> None:
        self.answers = answers
        self.asked: list[str] = []

    def handle_request(self, request: httpx.Request) -> httpx.Response:
        question = request.url.path.rsplit("/", 1)[1]
        if question in OTHERS:
            self.asked.append(question)
            return httpx.Response(200, content=OTHERS[question].SerializeToString())
        answer = self.answers.pop(0)
        if answer.isdigit():
            return httpx.Response(int(answer))
        if answer in ANSWERS:
            return httpx.Response(200, content=ANSWERS[answer].SerializeToString())
        raise getattr(httpx, answer)("lost")


def main(folder: str, what: str, *answers: str) -> None:
    coordinator = Coordinator(list(answers))
    stock = httpx.Client
    httpx.Client = lambda **options: stock(transport=coordinator, **{**options, "verify": True})
    replace("flwr.supernode.fleet_http_connection", "message_from_proto", lambda _message: "message")
    node.LEAVE_S = 0.01
    node.warm_up(Path(folder))
    key = ec.generate_private_key(ec.SECP384R1())
    connect = named(SUPERNODE, "http_request_response")
    with connect("host:1", False, None, (key, key.public_key())) as (_, receive, *_others, push, _confirm):
        end = time.monotonic() + FIRST_HEARTBEAT_S
        while "send-node-heartbeat" not in coordinator.asked and time.monotonic() < end:
            time.sleep(0.01)  # another thread sends the first one
        coordinator.asked.clear()
        try:
            came = push(1, "session", "object", b"") if what == "push" else receive() and "message"
        except ObjectPushError:
            came = "refused"
        sys.stdout.write(json.dumps([came, coordinator.asked]) + "\n")
        sys.stdout.flush()


if __name__ == "__main__":
    main(*sys.argv[1:])
