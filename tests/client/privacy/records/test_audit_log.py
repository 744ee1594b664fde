import hashlib
import json
import os
import stat
import threading

import pytest

from client.privacy.records.audit_log import AuditLog, Entry, Event, Tally

LEFT = Entry(Event.RELEASED, task="train", study="a" * 64, run="run-1", round=3, what=("update",), bytes=40)


@pytest.fixture
def log(tmp_path):
    return AuditLog(tmp_path / "deep" / "audit.jsonl")


def test_a_line_has_all_fields_that_are_not_empty(log):
    log.append(LEFT)
    log.append(Entry(Event.REFUSED, code="S101"))
    first, second = log.lines()
    assert first.pop("time") <= second.pop("time")
    assert first == {
        "n": 1,
        "prev": hashlib.sha256().hexdigest(),
        "event": "released",
        "task": "train",
        "study": "a" * 64,
        "run": "run-1",
        "round": 3,
        "what": ["update"],
        "bytes": 40,
    }
    prev = hashlib.sha256(log.path.read_bytes().splitlines()[0]).hexdigest()
    assert second == {"n": 2, "prev": prev, "event": "refused", "code": "S101", "round": 0, "bytes": 0}


def test_the_log_is_readable_by_its_owner_only(log):
    log.append(LEFT)
    assert stat.S_IMODE(log.path.stat().st_mode) == 0o600


def test_lines_are_only_appended(log):
    log.append(LEFT)
    before = log.path.read_bytes()
    AuditLog(log.path, durable=True).append(LEFT)
    assert log.path.read_bytes().startswith(before)
    assert len(list(log.lines())) == 2


def test_a_line_cut_short_leaves_the_others_intact(log, caplog):
    log.append(LEFT)
    with log.path.open("ab") as file:
        file.write(b'{"time":"2026-01-01","event":"rel')
    again = AuditLog(log.path)
    again.append(LEFT)
    assert [line["event"] for line in again.lines()] == ["released", "released"]
    assert "line 2 is damaged" in caplog.text


@pytest.mark.parametrize(
    "content", ["[]", "3", '{"event": "opened", "time": "x"}', '{"event": "released"}', "\xff"]
)
def test_an_invalid_line_is_skipped(log, content):
    log.append(LEFT)
    with log.path.open("ab") as file:
        file.write(content.encode("latin-1") + b"\n")
    assert len(list(log.lines())) == 1


def test_lines_of_concurrent_writers_do_not_mix(log):
    logs = [AuditLog(log.path) for _ in range(4)]

    def write(each):
        for _ in range(50):
            each.append(LEFT)

    threads = [threading.Thread(target=write, args=(each,)) for each in logs]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert [json.loads(line)["run"] for line in log.path.read_bytes().splitlines()] == ["run-1"] * 200


def test_a_full_disk_is_an_error_and_the_next_line_is_intact(log, monkeypatch):
    log.append(LEFT)
    write = os.write
    monkeypatch.setattr(os, "write", lambda file, content: write(file, content[:20]))
    with pytest.raises(OSError, match="20 of"):
        log.append(LEFT)
    monkeypatch.undo()
    log.append(LEFT)
    assert len(list(log.lines())) == 2


def test_releases_are_counted_by_study_since_a_time(log):
    log.append(LEFT)
    log.append(Entry(Event.RELEASED, study="b" * 64, bytes=2))
    log.append(Entry(Event.REFUSED, study="a" * 64, code="S301"))
    log.append(Entry(Event.REFUSED, code="S101"))
    last = list(log.lines())[-1]["time"]
    assert log.released("a" * 64) == 1
    assert log.released("a" * 64, since="9999") == 0
    assert log.tallies() == {
        "a" * 64: Tally(released=1, refused=1, bytes=40),
        "b" * 64: Tally(released=1, bytes=2),
        "": Tally(refused=1),
    }
    assert "a" * 64 not in log.tallies({"a" * 64: last + "1"})


def test_no_log_has_no_lines(log):
    assert list(log.lines()) == []
    assert log.tallies() == {}


def test_many_entries_are_one_chain(log):
    log.append(Entry(Event.APPROVED))
    first, second = ({"presence": "10"}, {"presence": "01"})
    head = log.append(Entry(Event.PREDICTED, prediction=first), Entry(Event.PREDICTED, prediction=second))
    assert head.lines == 3
    assert log.examine()[1] == ""
    assert [line.get("prediction") for line in log.lines()] == [None, first, second]
