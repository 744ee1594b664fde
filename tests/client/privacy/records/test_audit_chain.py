"""Whatever is taken from a log or changed in it, the log says so; whatever a kill leaves, it goes on."""

import os
import signal
import subprocess
import sys

import pytest
from hypothesis import given
from hypothesis import strategies as st

from client.privacy.records.audit_chain import Head
from client.privacy.records.audit_log import AuditLog, ChainError, Entry, Event
from tests.properties import examples

LEFT = Entry(Event.RELEASED, task="train", study="a" * 64, round=3, bytes=40)


def filled(folder, lines):
    log = AuditLog(folder / "audit.jsonl")
    for number in range(lines):
        log.append(Entry(Event.RELEASED, study="a" * 64, round=number))
    return log


def again(log):
    """As another process finds it."""
    return AuditLog(log.path)


def wrong(log, *approved):
    return again(log).examine(*approved)[1]


@pytest.fixture
def log(tmp_path):
    return filled(tmp_path, 5)


@examples(60)
@given(st.integers(1, 6), st.data())
def test_every_change_of_a_byte_and_every_removal_of_lines_is_found(tmp_path_factory, lines, data):
    log = filled(tmp_path_factory.mktemp("log"), lines)
    content = log.path.read_bytes()
    assert not wrong(log)
    if data.draw(st.booleans(), label="remove"):
        kept = content.splitlines(keepends=True)
        first = data.draw(st.integers(0, lines - 1))
        del kept[first : data.draw(st.integers(first + 1, lines))]
        changed = b"".join(kept)
    else:
        place = data.draw(st.integers(0, len(content) - 2))  # the last is a newline, which a kill may cut
        byte = data.draw(st.integers(0, 255).filter(lambda value: value != content[place]))
        changed = content[:place] + bytes([byte]) + content[place + 1 :]
    log.path.write_bytes(changed)
    assert wrong(log)
    with pytest.raises(ChainError):
        again(log).append(LEFT)
    with pytest.raises(ChainError):
        log.append(LEFT)  # one that has read it before
    assert log.path.read_bytes() == changed


@examples(40)
@given(st.integers(0, 3), st.data())
def test_a_kill_at_any_byte_leaves_a_log_that_goes_on(tmp_path_factory, lines, data):
    """A line is written before its head, in one call that a power failure may cut."""
    log = filled(tmp_path_factory.mktemp("log"), lines)
    before = log.path.read_bytes() if lines else b""
    head = log.head_path.read_bytes() if lines else None
    log.append(LEFT)
    line = log.path.read_bytes()[len(before) :]
    log.path.write_bytes(before + line[: data.draw(st.integers(0, len(line)))])
    if head is None:
        log.head_path.write_text(Head().text())
    else:
        log.head_path.write_bytes(head)
    assert not wrong(log)
    for _ in range(2):
        again(log).append(LEFT)
    assert not wrong(log)


@pytest.mark.slow
def test_a_killed_writer_leaves_a_log_that_goes_on(tmp_path):
    program = (
        "import sys; from pathlib import Path; from client.privacy.records.audit_log import *\n"
        "log = AuditLog(Path(sys.argv[1]), durable=True)\n"
        "while True: log.append(Entry(Event.RELEASED))"
    )
    path = tmp_path / "audit.jsonl"
    for turn in range(20):
        size = path.stat().st_size if path.exists() else 0
        writer = subprocess.Popen([sys.executable, "-c", program, str(path)])
        while not path.exists() or path.stat().st_size < size + 1 + 197 * turn:
            assert writer.poll() is None
        writer.send_signal(signal.SIGKILL)
        writer.wait()
        AuditLog(path).check()
    assert AuditLog(path).examine()[0].head.lines > 20


def test_a_longer_log_than_its_head_is_right(log):
    old = log.head_path.read_bytes()
    log.append(LEFT)
    log.head_path.write_bytes(old)
    assert not wrong(log)


@pytest.mark.parametrize("content", [None, b"", b"000000000003 abc\n", b"\xff" * 300])
def test_a_log_without_its_head_is_wrong(log, content):
    log.head_path.unlink()
    if content is not None:
        log.head_path.write_bytes(content)
    assert "audit.head is" in wrong(log)


def test_the_first_line_needs_a_head_too(tmp_path):
    """Else a log cut back to its first line, an approval, would be whole."""
    log = filled(tmp_path, 1)
    log.head_path.unlink()
    assert wrong(log)


def test_no_log_at_all_is_right_until_a_head_or_an_approval_names_a_line(tmp_path):
    log = AuditLog(tmp_path / "audit.jsonl")
    log.check()
    with pytest.raises(ChainError, match="an approval names line 3"):
        log.check(Head(3, "a" * 64))
    head = log.append(LEFT)
    log.path.unlink()
    with pytest.raises(ChainError, match=r"audit\.head names line 1: lines were removed"):
        again(log).append(LEFT)
    log.head_path.unlink()
    assert wrong(log, head)


def test_an_approval_names_a_line_that_must_stay(log):
    head = log.append(LEFT)
    log.append(LEFT)
    log.check(head)
    with pytest.raises(ChainError, match="line 6 of its chain is not the one that an approval names"):
        log.check(Head(6, "a" * 64))


def test_a_chain_begins_after_a_log_without_one_and_holds_its_digest(tmp_path):
    path = tmp_path / "audit.jsonl"
    old = b'{"time":"2026-01-01","event":"released","bytes":1}\n' * 3 + b'{"time":"20'
    path.write_bytes(old)
    log = AuditLog(path)
    assert not wrong(log)
    log.append(LEFT)
    log.append(LEFT)
    chain, fault = again(log).examine()
    assert (chain.before, chain.head.lines, chain.cut, fault) == (4, 2, [4], "")
    assert len(list(log.lines())) == 5
    content = path.read_bytes()
    path.write_bytes(content.replace(b'"bytes":1', b'"bytes":0', 1))
    assert "line 5 " in wrong(log)
    path.write_bytes(content + b'{"time":"2026-01-01","event":"released","bytes":1}\n')
    assert "line 7 is not part of the chain" in wrong(log)


def test_a_new_chain_is_begun_only_where_the_old_one_is_wrong(log):
    log.append(LEFT, anew=True)
    assert log.examine()[0].head.lines == 6
    lines = log.path.read_bytes().splitlines(keepends=True)
    log.path.write_bytes(b"".join(lines[:2] + lines[3:]))
    head = again(log).append(Entry(Event.APPROVED), anew=True)
    chain, fault = again(log).examine(head)
    assert (head.lines, fault) == (1, "")
    assert chain.earlier == list(log.lines())[-1]["broken"]
    assert "line 3 is number 4 of the chain" in chain.earlier
    log.append(LEFT)  # which has known the old one
    assert again(log).examine(head)[0].head.lines == 2


def test_writers_of_several_processes_make_one_chain(log):
    other = again(log)
    for _ in range(3):
        log.append(LEFT)
        other.append(LEFT)
    assert again(log).examine()[0].head.lines == 11


def test_appending_reads_no_line_again(log, monkeypatch):
    log.append(LEFT)
    reads = []
    monkeypatch.setattr(os, "dup", reads.append)
    log.append(LEFT)
    log.check()
    assert reads == []
