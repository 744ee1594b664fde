import json
import subprocess
import sys

import pytest

from server.store.journal import Journal, read_journal


def write(path, events, tail=b""):
    path.write_bytes(b"".join(json.dumps(event).encode() + b"\n" for event in events) + tail)
    return path


@pytest.mark.parametrize(
    "tail",
    [
        pytest.param(b'{"event": "round_sta', id="cut"),
        pytest.param('{"event": "roll_call", "site": "é'.encode()[:-1], id="cut-inside-a-letter"),
        pytest.param(b"[1]\n{}\n", id="no-event"),
    ],
)
def test_what_is_not_an_event_is_skipped(tmp_path, tail):
    path = write(tmp_path / "rounds.jsonl", [{"event": "run_started"}], tail)
    assert read_journal(path) == [{"event": "run_started"}]


def test_a_line_is_never_glued_to_one_that_was_cut(tmp_path):
    path = write(tmp_path / "rounds.jsonl", [{"event": "run_started"}], b'{"event": "agg')
    Journal(path, "run").write("resumed", round=0, resumed_from=0)
    assert [event["event"] for event in read_journal(path)] == ["run_started", "resumed"]
    assert [json.loads(line)["event"] for line in path.read_text().splitlines()] == ["run_started", "resumed"]


def test_a_line_that_does_not_fit_on_the_disk_leaves_nothing_of_itself(tmp_path):
    script = f"""
import pathlib, resource, signal
from server.store.journal import Journal
signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
resource.setrlimit(resource.RLIMIT_FSIZE, (200, 200))
journal = Journal(pathlib.Path({str(tmp_path)!r}) / "rounds.jsonl", "run")
journal.write("scaling", n=3)
try:
    journal.write("round_started", text="x" * 300)
except OSError:
    journal.write("run_failed")
"""
    subprocess.run([sys.executable, "-c", script], check=True, timeout=60)
    lines = (tmp_path / "rounds.jsonl").read_text().splitlines()
    assert [json.loads(line)["event"] for line in lines] == ["scaling", "run_failed"]


@pytest.mark.parametrize(("resumed_from", "kept"), [(2, [1, 2, 3]), (0, [3])])
def test_resume_supersedes_later_rounds(tmp_path, resumed_from, kept):
    rounds = [{"event": "round_started", "round": number} for number in (1, 2, 3, 4)]
    resumed = {"event": "resumed", "round": resumed_from, "resumed_from": resumed_from}
    path = write(tmp_path / "rounds.jsonl", [{"event": "roll_call"}, *rounds, resumed, rounds[2]])
    events = read_journal(path)
    assert [event["round"] for event in events if event["event"] == "round_started"] == kept
    assert events[0] == {"event": "roll_call"}


def test_line_separators_inside_a_text_do_not_cut_a_line(tmp_path):
    path = tmp_path / "rounds.jsonl"
    path.write_text(
        json.dumps({"event": "roll_call", "site": "a\u2028b"}, ensure_ascii=False) + "\n", encoding="utf-8"
    )
    assert read_journal(path)[0]["site"] == "a\u2028b"


def test_listeners_hear_what_is_written(tmp_path):
    heard = []
    Journal(tmp_path / "rounds.jsonl", "run", (heard.append,)).write("scaling", n=3)
    assert heard == read_journal(tmp_path / "rounds.jsonl")
    assert heard[0]["run"] == "run"
    assert heard[0]["n"] == 3
