import json

import pytest
from hypothesis import given
from hypothesis import strategies as st

from server.store import journal_tail
from server.store.journal_tail import JournalTail


def line(number):
    return json.dumps({"event": "round_started", "round": number}).encode() + b"\n"


def rounds(tail, most=2**20):
    found = [event["round"] for event in tail.read(most)]
    while tail.backlog:
        found += [event["round"] for event in tail.read(most)]
    return found


@given(st.lists(st.integers(1, 60), max_size=30), st.integers(1, 100))
def test_each_line_is_read_once_however_it_is_cut(tmp_path_factory, cuts, most):
    path = tmp_path_factory.mktemp("tail") / "rounds.jsonl"
    content, tail, found = b"".join(map(line, range(10))), JournalTail(path), []
    for size in (*cuts, len(content)):
        with path.open("ab") as file:
            file.write(content[:size])
        content = content[size:]
        found += rounds(tail, most)
    assert found == list(range(10))
    assert tail.skipped == 0


def test_a_line_that_a_crash_cut_is_skipped(tmp_path):
    path = tmp_path / "rounds.jsonl"
    path.write_bytes(line(1) + line(2)[:-9])
    tail = JournalTail(path)
    assert rounds(tail) == [1]
    with path.open("ab") as file:
        file.write(b"\n" + line(3))
    assert rounds(tail) == [3]
    assert tail.skipped == 1


@pytest.mark.parametrize(
    "rubbish", [b"[1]\n", b"{}\n", b'{"event": 3}\n', b"\xff\xfe\n", b"[" * 100_000 + b"\n"]
)
def test_what_is_no_event_is_skipped(tmp_path, rubbish):
    path = tmp_path / "rounds.jsonl"
    path.write_bytes(rubbish + line(1))
    tail = JournalTail(path)
    assert rounds(tail) == [1]
    assert tail.skipped == 1


def test_a_line_that_never_ends_is_not_kept(tmp_path, monkeypatch):
    monkeypatch.setattr(journal_tail, "LONGEST", 100)
    path = tmp_path / "rounds.jsonl"
    path.write_bytes(line(1) + b"x" * 950 + b"\n" + line(2))
    tail = JournalTail(path)
    assert rounds(tail, most=50) == [1, 2]
    assert tail.skipped >= 1


@pytest.mark.parametrize("first", [b'{"event": "other"}\n' * 9, b""], ids=["shorter", "longer"])
def test_a_file_that_was_replaced_is_read_from_its_start(tmp_path, first):
    path = tmp_path / "rounds.jsonl"
    path.write_bytes((first or b"") + line(1))
    tail = JournalTail(path)
    list(tail.read())
    path.unlink()
    assert list(tail.read()) == []
    path.write_bytes(line(7) + line(8))
    assert rounds(tail) == [7, 8]
    assert tail.epoch == 1
