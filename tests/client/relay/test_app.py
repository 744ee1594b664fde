import sys
import time

import pytest
from flwr.app import ConfigRecord, Message, RecordDict

from client.relay.app import app, register_factory
from client.relay.line import Line, line_status, read_line, write_line
from client.relay.patched.__main__ import FOLDER_VARIABLE
from mmare.errors import SiteCode, SiteError
from mmare.wire.messages import (
    HEADER_KEY,
    HEADER_RECORD,
    PAYLOAD_KEY,
    PAYLOAD_RECORD,
    PAYLOAD_STYPE,
    Refusal,
    Request,
    Task,
    decode,
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


@pytest.mark.parametrize(("bytes_per_s", "fits"), [(1e6, True), (1e4, False)], ids=["quick", "slow"])
def test_a_line_that_cannot_carry_the_model_in_time_is_told_on_both_sides(
    tmp_path, monkeypatch, bytes_per_s, fits
):
    """12 MB there and back: 12 s on the one line, 20 min on the other; the study waits for 30 s."""
    monkeypatch.setenv(FOLDER_VARIABLE, str(tmp_path))
    study = tiny_study().to_dict()
    asked = encode(Request(Task.DESCRIBE, "run", study))
    fleet = GridFleet(grid(lambda _node, _run: echo), poll_s=0.0)
    node = fleet.nodes(1, 1.0)[0]

    def answer(round_bytes):
        (found,) = fleet.ask({node: asked}, b"", 10.0, round_bytes)
        return found

    assert (answer(12_000_000).line, line_status(tmp_path)) == (None, "")  # before it was measured
    write_line(tmp_path, Line(bytes_per_s, time.time()))
    assert answer(0).line is None  # in a round nobody asks
    found = answer(12_000_000)
    assert found.line == bytes_per_s
    if fits:
        assert found.header == asked.upper()
        assert line_status(tmp_path) == "line: 8 Mbit/s to the coordinator"
    else:
        assert decode(Refusal, found.header).code is SiteCode.LINE
        assert "1200 s for the 12.0 MB of a round, expected less than federation.deadline_s of 30 s" in (
            line_status(tmp_path)
        )
        assert "cannot take part in tiny until" in line_status(tmp_path)
        answer(1000)  # a smaller model, or a longer deadline
        assert line_status(tmp_path) == "line: 0.08 Mbit/s to the coordinator"


@pytest.mark.parametrize(
    "text", ["", "[]", "{", '{"bytes_per_s": 0, "measured": 9e9}', '{"bytes_per_s": "x"}']
)
def test_a_damaged_or_old_measurement_is_none(tmp_path, text):
    (tmp_path / "line.json").write_text(text)
    assert read_line(tmp_path) is None
    write_line(tmp_path, Line(1e6, time.time() - 2 * 86_400))
    assert read_line(tmp_path) is None
