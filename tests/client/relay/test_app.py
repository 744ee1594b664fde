import sys

import pytest
from flwr.app import ConfigRecord, Message, RecordDict

from client.relay.app import app, register_factory
from mmare.errors import SiteError
from mmare.wire.messages import (
    HEADER_KEY,
    HEADER_RECORD,
    PAYLOAD_KEY,
    PAYLOAD_RECORD,
    PAYLOAD_STYPE,
    Request,
    Task,
    encode,
)
from server.rounds.flower_fleet import GridFleet
from simulation.engine import InProcessGrid
from tests.federations import tiny_study

PRIVATE = "/data/oncology/patients.csv: TCGA-07-1234"
STUDY = tiny_study()


def raising(*_: object):
    raise FileNotFoundError(2, PRIVATE, "/data/oncology/patients.csv")


def echo(header, payload):
    return header.upper(), payload[::-1]


def grid(factory, **node: object):
    register_factory("of-a-test", factory)
    return InProcessGrid(app, [{"site-factory": "of-a-test", **node}], {"run": "config"})


def header(task=Task.TRAIN):
    return encode(Request(task, "run", STUDY.to_dict()))


def reply_of(of_grid, message):
    (identity,) = of_grid.push_messages([message])
    while not (found := of_grid.pull_messages([identity])):
        pass
    return found[0]


@pytest.mark.parametrize("task", list(Task))
def test_header_and_tensors_go_through_unchanged(task):
    fleet = GridFleet(grid(lambda _node, _run: echo), poll_s=0.0)
    (node,) = fleet.nodes(1, 1.0)
    (answer,) = fleet.ask({node: header(task)}, b"12345", 10.0)
    assert (answer.node, answer.header, answer.payload, answer.failure) == (
        node,
        header(task).upper(),
        b"54321",
        "",
    )


def test_no_tensors_are_no_payload():
    fleet = GridFleet(grid(lambda _node, _run: echo), poll_s=0.0)
    (answer,) = fleet.ask({fleet.nodes(1, 1.0)[0]: header()}, b"", 10.0)
    assert answer.payload == b""


def test_the_factory_gets_both_configurations():
    seen = []

    def factory(node, run):
        seen.append((dict(node), dict(run)))
        return echo

    fleet = GridFleet(grid(factory, socket="/run/mmare.sock"), poll_s=0.0)
    list(fleet.ask({fleet.nodes(1, 1.0)[0]: header()}, b"", 10.0))
    assert seen == [({"site-factory": "of-a-test", "socket": "/run/mmare.sock"}, {"run": "config"})]


@pytest.mark.parametrize(
    "factory",
    [
        pytest.param(raising, id="factory"),
        pytest.param(lambda _node, _run: raising, id="site"),
        pytest.param(lambda _node, _run: lambda _header, _payload: sys.exit(3), id="exit"),
        pytest.param(lambda _node, _run: lambda _header, _payload: None, id="no-answer"),
        pytest.param(lambda _node, _run: lambda _header, _payload: (1, "text"), id="wrong-answer"),
    ],
)
def test_whatever_fails_only_a_code_is_sent(factory):
    content = RecordDict({HEADER_RECORD: ConfigRecord({HEADER_KEY: header()})})
    of_grid = grid(factory)
    reply = reply_of(of_grid, Message(content, of_grid.get_node_ids()[0], "train"))
    assert reply.has_error()
    assert reply.error.reason == "S500"
    assert not reply.has_content()


def test_the_error_carries_nothing_of_what_caused_it():
    of_grid = grid(raising)
    node = of_grid._nodes[of_grid.get_node_ids()[0]]
    message = Message(RecordDict(), 2, "train")
    with pytest.raises(SiteError) as error:
        app(message, node.context)
    assert str(error.value) == "S500"
    assert error.value.__cause__ is None
    assert error.value.__context__ is None


def test_the_server_reads_a_failed_node_without_its_words():
    fleet = GridFleet(grid(raising), poll_s=0.0)
    (answer,) = fleet.ask({fleet.nodes(1, 1.0)[0]: header()}, b"", 10.0)
    assert answer.header is None
    assert answer.failure == "node failed: its relay raised an error (Flower error 2)"


def test_a_factory_that_nobody_registered_is_a_code():
    of_grid = InProcessGrid(app, [{"site-factory": "unheard"}], {})
    reply = reply_of(of_grid, Message(RecordDict(), of_grid.get_node_ids()[0], "query"))
    assert reply.error.reason == "S500"


def test_tensors_travel_as_one_flat_array():
    kept = []

    def keep(message, context):
        kept.append(message)
        return app(message, context)

    register_factory("of-a-test", lambda _node, _run: echo)
    of_grid = InProcessGrid(keep, [{"site-factory": "of-a-test"}], {})
    fleet = GridFleet(of_grid, poll_s=0.0)
    list(fleet.ask({fleet.nodes(1, 1.0)[0]: header()}, b"12345", 10.0))
    record = kept[0].content.array_records[PAYLOAD_RECORD]
    assert list(record) == [PAYLOAD_KEY]
    assert record[PAYLOAD_KEY].stype == PAYLOAD_STYPE
