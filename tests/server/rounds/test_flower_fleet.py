"""`server.rounds.flower_fleet` over a grid that does what Flower's does when something is wrong."""

import time
from types import SimpleNamespace

import pytest
from flwr.app import ConfigRecord, Error, Metadata, RecordDict
from flwr.app.message import make_message
from flwr.supercore.task_identity import TaskIdentity

from mmare.wire.messages import HEADER_KEY, HEADER_RECORD, Request, Task, encode
from server.rounds import flower_fleet as grid_fleet
from server.rounds.flower_fleet import TTL_MARGIN_S, GridFleet
from tests.federations import tiny_study

HEADER = encode(Request(Task.DESCRIBE, "run", tiny_study().to_dict()))
NODES = {11: "ash", 12: "birch", 13: "cedar"}
SUPERLINK = 1


@pytest.fixture(autouse=True)
def settled(monkeypatch):
    monkeypatch.setattr(grid_fleet, "SETTLED_S", 0.05)


class Grid:
    """Answers of each node, by node; what is not there is never answered."""

    def __init__(self, answers, refused=(), pull_s=0.0, broken_pushes=0):
        TaskIdentity.run_id, TaskIdentity.task_id, TaskIdentity.node_id = 1, 1, SUPERLINK
        self._answers = answers
        self._refused = refused
        self._pull_s = pull_s
        self.online = set(NODES)
        self.sent = {}
        self.pulls = []
        self.pushes, self._broken_pushes = 0, broken_pushes

    def get_nodes(self):
        return [SimpleNamespace(node_id=node, name=NODES[node]) for node in sorted(self.online)]

    def push_messages(self, messages):
        self.pushes += 1
        if self.pushes <= self._broken_pushes:
            raise OSError("the push session may have been replaced")
        self.sent = {f"m{message.metadata.dst_node_id}": message for message in messages}
        return [
            "" if message.metadata.dst_node_id in self._refused else key for key, message in self.sent.items()
        ]

    def pull_messages(self, ids):
        assert isinstance(ids, set)
        self.pulls.append(ids)
        time.sleep(self._pull_s)
        return [reply for key in sorted(ids) for reply in self._answers.get(int(key[1:]), lambda _: [])(key)]


def metadata(key, node):
    return Metadata(
        run_id=1,
        message_id="reply",
        src_node_id=node,
        dst_node_id=SUPERLINK,
        reply_to_message_id=key,
        group_id="",
        created_at=time.time(),
        ttl=10.0,
        message_type="query",
    )


def answer(node, text="header"):
    content = RecordDict({HEADER_RECORD: ConfigRecord({HEADER_KEY: text})})
    return lambda key: [make_message(metadata(key, node), content=content)]


def error(node, code):
    return lambda key: [make_message(metadata(key, node), error=Error(code=code, reason="secret"))]


def asked(grid, deadline_s=5.0):
    fleet = GridFleet(grid, poll_s=0.01)
    nodes = fleet.nodes(3, 5.0)
    return {
        found.node: (found.name, found.header, found.failure)
        for found in fleet.ask(dict.fromkeys(nodes, HEADER), b"", deadline_s)
    }


def test_answers_carry_the_name_that_the_node_was_admitted_under():
    found = asked(Grid({node: answer(node, name) for node, name in NODES.items()}))
    assert found == {node: (name, name, "") for node, name in NODES.items()}


def test_an_error_from_flower_is_attributed_to_its_node():
    """Flower's own error messages have SuperLink as their source."""
    found = asked(Grid({11: error(SUPERLINK, 1), 12: answer(12), 13: error(13, 2)}))
    assert found[11] == ("ash", None, "node failed: its relay cannot load the app (Flower error 1)")
    assert found[12] == ("birch", "header", "")
    assert found[13] == ("cedar", None, "node failed: its relay raised an error (Flower error 2)")


@pytest.mark.parametrize(
    ("code", "why"), [(3, "the message was lost on the way"), (4, "its reply was lost on the way")]
)
def test_a_node_whose_message_superlink_has_lost_is_asked_once_more(code, why):
    grid = Grid({11: answer(11), 12: answer(12)})
    grid._answers[13] = lambda key: [*(error(SUPERLINK, code) if grid.pushes == 1 else answer(13))(key)]
    assert asked(grid)[13] == ("cedar", "header", "")
    assert grid.pushes == 2
    grid = Grid({11: answer(11), 12: answer(12), 13: error(SUPERLINK, code)})
    assert asked(grid)[13] == ("cedar", None, f"node failed: {why} (Flower error {code})")
    assert grid.pushes == 2


class Leaving(Grid):
    """Node 13 goes offline once it has been asked, and is online again at some look for nodes."""

    def __init__(self, back_at_look):
        super().__init__({11: answer(11), 12: answer(12), 13: self.thirteen})
        self._back_at_look = back_at_look
        self.looks = 0

    def thirteen(self, key):
        if self.pushes == 1:
            self.online.discard(13)
        return (answer(13) if 13 in self.online else error(SUPERLINK, 5))(key)

    def get_nodes(self):
        if 13 not in self.online:
            self.looks += 1
            if self.looks >= self._back_at_look:
                self.online.add(13)
        return super().get_nodes()


def test_a_node_that_went_away_is_asked_again_once_it_is_back(monkeypatch):
    monkeypatch.setattr(grid_fleet, "ONLINE_POLL_S", 0.02)
    grid = Leaving(back_at_look=3)
    assert asked(grid)[13] == ("cedar", "header", "")
    assert (grid.pushes, grid.looks) == (2, 3)


def test_a_node_that_stays_away_is_given_up_and_not_waited_for_again(monkeypatch):
    monkeypatch.setattr(grid_fleet, "ONLINE_POLL_S", 0.02)
    monkeypatch.setattr(grid_fleet, "RETURN_S", 0.3)
    grid = Leaving(back_at_look=10**9)
    fleet = GridFleet(grid, poll_s=0.01)
    nodes = fleet.nodes(3, 5.0)
    took = []
    for _ in range(2):
        began = time.monotonic()
        found = {each.node: each for each in fleet.ask(dict.fromkeys(nodes, HEADER), b"", 5.0)}
        took.append(time.monotonic() - began)
        assert (found[13].name, found[13].failure) == (
            "cedar",
            "node failed: it went offline (Flower error 5)",
        )
        assert [found[node].header for node in (11, 12)] == ["header"] * 2
    assert took[1] < 0.3 <= took[0] < 3.0


def test_a_node_that_is_away_at_the_deadline_has_failed(monkeypatch):
    monkeypatch.setattr(grid_fleet, "ONLINE_POLL_S", 0.02)
    found = asked(Leaving(back_at_look=10**9), deadline_s=0.3)
    assert found[13] == ("cedar", None, "node failed: it went offline (Flower error 5)")


def test_a_node_that_returns_but_is_no_longer_admitted_has_failed(monkeypatch):
    monkeypatch.setattr(grid_fleet, "ONLINE_POLL_S", 0.02)
    grid = Leaving(back_at_look=2)
    push = grid.push_messages

    def refuse_later(messages):
        grid._refused = (13,) if grid.pushes else ()
        return push(messages)

    grid.push_messages = refuse_later
    assert asked(grid)[13] == ("cedar", None, "node failed (no longer admitted)")


def test_what_superlink_did_not_take_whole_is_pushed_once_more():
    found = asked(Grid({node: answer(node) for node in NODES}, broken_pushes=1))
    assert [header for _, header, _ in found.values()] == ["header"] * 3
    with pytest.raises(OSError, match="replaced"):
        asked(Grid({}, broken_pushes=2))


def test_a_second_answer_to_a_message_is_passed_over():
    twice = lambda key: [*answer(11, "first")(key), *answer(11, "second")(key)]  # noqa: E731 - shortest
    grid = Grid({11: twice, 12: answer(12), 13: answer(13)})
    fleet = GridFleet(grid, poll_s=0.01)
    found = list(fleet.ask(dict.fromkeys(fleet.nodes(3, 5.0), HEADER), b"", 5.0))
    assert [(each.node, each.header) for each in found] == [(11, "first"), (12, "header"), (13, "header")]


def test_an_answer_in_another_node_s_name_is_none():
    found = asked(Grid({11: answer(12), 12: answer(12), 13: answer(13)}))
    assert found[11] == ("ash", None, "an answer from another node")


def test_late_nodes_are_reported_by_name_after_the_deadline():
    began = time.monotonic()
    found = asked(Grid({11: answer(11), 13: answer(13)}), deadline_s=0.3)
    assert found[12] == ("birch", None, "no answer before the deadline")
    assert 0.3 <= time.monotonic() - began - grid_fleet.SETTLED_S < 3.0


def test_a_node_that_is_no_longer_admitted_is_not_waited_for():
    found = asked(Grid({11: answer(11), 12: answer(12)}, refused=(13,)))
    assert found[13] == ("cedar", None, "node failed (no longer admitted)")


def test_a_message_is_not_given_to_a_node_long_after_its_deadline():
    grid = Grid({node: answer(node) for node in NODES})
    asked(grid, deadline_s=7.0)
    assert {message.metadata.ttl for message in grid.sent.values()} == {7.0 + TTL_MARGIN_S}


def test_after_a_look_that_was_held_up_beyond_the_deadline_others_are_still_taken(monkeypatch):
    """While Flower waits for the tensors of a site that died in the middle, the others' answers come in."""
    monkeypatch.setattr(grid_fleet, "BLOCKED_S", 0.2)
    grid = Grid({12: answer(12)}, pull_s=0.4)
    grid._answers[11] = lambda key: answer(11)(key) if len(grid.pulls) > 1 else []
    found = asked(grid, deadline_s=0.3)
    assert (found[11][1], found[12][1]) == ("header", "header")
    assert found[13][2] == "no answer before the deadline"
    assert len(grid.pulls) == 2  # once, however long a look takes


# Tensors on their way


@pytest.fixture
def module(monkeypatch):
    calls = []

    def pull_objects(
        object_ids, pull_object_fn, max_time=7200, max_tries_per_object=500, initial_backoff=1, backoff_cap=10
    ):
        assert pull_object_fn == "function"
        calls.append((object_ids, max_time, max_tries_per_object, initial_backoff, backoff_cap))
        return {}

    found = SimpleNamespace(pull_objects=pull_objects, calls=calls)
    monkeypatch.setattr(grid_fleet, "import_module", lambda _: found)
    return found


def test_tensors_on_their_way_are_looked_for_often_and_until_the_deadline(module):
    tensors = grid_fleet._TensorPolling()
    tensors.shorten()
    tensors.shorten()  # once is enough
    tensors.end = time.monotonic() + 5.0
    module.pull_objects(object_ids=["a"], pull_object_fn="function")
    tensors.end = time.monotonic() - 100.0
    module.pull_objects(["b"], "function")
    (first, left, *rest), (second, late, *_) = module.calls
    assert (first, second) == (["a"], ["b"])
    assert 4.5 < left <= 5.0
    assert late == grid_fleet.GRACE_S
    assert rest == [None, 0.05, 1.0]


@pytest.mark.parametrize(
    "other",
    [
        pytest.param(SimpleNamespace(), id="no such function"),
        pytest.param(SimpleNamespace(pull_objects=lambda object_ids: object_ids), id="other parameters"),
        pytest.param(SimpleNamespace(pull_objects="text"), id="no function"),
    ],
)
def test_a_flower_that_is_not_known_is_left_as_it_is_with_a_warning(monkeypatch, caplog, other):
    before = dict(vars(other))
    monkeypatch.setattr(grid_fleet, "import_module", lambda _: other)
    monkeypatch.setattr(grid_fleet.LOG, "handlers", [caplog.handler])
    grid_fleet._TensorPolling().shorten()
    assert vars(other) == before
    assert "rounds take longer" in caplog.text


def test_this_flower_is_known():
    from flwr.superlink.grid import http_grid

    tensors = grid_fleet._TensorPolling()
    stock = http_grid.pull_objects
    try:
        tensors.shorten()
        assert http_grid.pull_objects == tensors._pull
    finally:
        http_grid.pull_objects = stock
