"""Counts over the audit log agree with the log itself, however it grows, breaks or is replaced."""

import json

import pytest
from hypothesis import given
from hypothesis import strategies as st

from client.privacy.records.audit_log import AuditLog, Entry, Event
from client.telemetry.audit_tally import AuditTally
from mmare.errors import SiteCode
from mmare.wire.messages import Task
from tests.properties import examples

ENTRIES = st.builds(
    Entry,
    event=st.sampled_from(Event),
    task=st.sampled_from(sorted(Task)),
    study=st.sampled_from(["", "a", "b"]),
    bytes=st.integers(0, 10**9),
    code=st.sampled_from(sorted(SiteCode)),
)


@examples(30)
@given(st.lists(st.lists(ENTRIES, max_size=4), max_size=4))
def test_read_on_piece_by_piece_it_counts_what_the_log_counts(tmp_path_factory, pieces):
    log = AuditLog(tmp_path_factory.mktemp("log") / "audit.jsonl")
    tally = AuditTally(log.path)
    for piece in pieces:
        for entry in piece:
            log.append(entry)
        tally.read_on({"a": ""})
        told = log.tallies()
        assert tally.released.total() == sum(each.released for each in told.values())
        assert tally.refused.total() == sum(each.refused for each in told.values())
        assert tally.bytes == sum(each.bytes for each in told.values())
        assert tally.used["a"] == log.released("a")
        assert set(tally.used) <= {"a"}
        assert tally.size == (log.path.stat().st_size if log.path.exists() else 0)


@pytest.fixture
def log(tmp_path):
    return AuditLog(tmp_path / "audit.jsonl")


def write(log, times, study="a"):
    with log.path.open("a") as file:
        for time in times:
            file.write(
                json.dumps({"time": time, "event": "released", "task": "train", "study": study}) + "\n"
            )


def test_answers_are_counted_from_the_approval_on(log):
    tally = AuditTally(log.path)
    write(log, ["2026-01-01", "2026-01-02", "2026-01-03"])
    tally.read_on({"a": "2026-01-02"})
    assert tally.used == {"a": 2}
    write(log, ["2026-01-04"])
    tally.read_on({"a": "2026-01-02"})
    assert tally.used == {"a": 3}
    tally.read_on({"a": "2026-01-04"})  # approved again
    assert tally.used == {"a": 1}
    assert tally.released == {"train": 4}


def test_a_line_that_is_being_written_waits_for_its_end(log):
    tally = AuditTally(log.path)
    write(log, ["2026-01-01"])
    whole = log.path.read_bytes()
    log.path.write_bytes(whole + whole[:20])
    tally.read_on()
    assert tally.released.total() == 1
    with log.path.open("ab") as file:
        file.write(whole[20:])
    tally.read_on()
    assert tally.released.total() == 2


def test_a_damaged_line_is_passed_over(log):
    write(log, ["2026-01-01"])
    with log.path.open("ab") as file:
        file.write(b'half a li\n[]\n"text"\n{"event": "released"}\n\xff\xfe\n' + b"[" * 100_000 + b"\n")
    write(log, ["2026-01-02"])
    tally = AuditTally(log.path)
    tally.read_on()
    assert tally.released.total() == 2


@pytest.mark.parametrize("how", ["replaced", "shortened", "deleted"])
def test_another_log_is_counted_from_its_beginning(log, how):
    tally = AuditTally(log.path)
    write(log, ["2026-01-01"] * 5)
    tally.read_on()
    if how == "shortened":
        log.path.write_bytes(b"")
    else:
        log.path.rename(log.path.with_suffix(".1"))
    if how != "deleted":
        write(log, ["2026-02-01"])
    tally.read_on()
    assert tally.released.total() == (0 if how == "deleted" else 1)


def test_words_that_the_log_should_not_hold_are_other(log):
    lines = [
        {"time": "x", "event": "released", "task": "/home/PAT-1", "bytes": "many"},
        {"time": "x", "event": "refused", "code": ["S101"]},
        {"time": "x", "event": "released", "task": "train", "bytes": True, "study": {}},
    ]
    log.path.write_text("".join(json.dumps(line) + "\n" for line in lines))
    tally = AuditTally(log.path)
    tally.read_on()
    assert (tally.released, tally.refused, tally.bytes) == ({"other": 1, "train": 1}, {"other": 1}, 0)
