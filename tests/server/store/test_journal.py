import json
import subprocess
import sys

from server.store.events import Resumed, RollCall, Scaling
from server.store.journal import Journal
from server.store.journal_tail import JournalTail
from tests.server.journals import read_journal


def test_a_line_is_never_glued_to_one_that_was_cut(tmp_path):
    path = tmp_path / "rounds.jsonl"
    path.write_bytes(b'{"event": "run_started"}\n{"event": "agg')
    Journal(path, "run").write(Resumed())
    assert [json.loads(line)["event"] for line in path.read_text().splitlines()] == ["run_started", "resumed"]


def test_a_line_that_does_not_fit_on_the_disk_leaves_nothing_of_itself(tmp_path):
    script = f"""
import pathlib, resource, signal
from server.store.events import RoundStarted, RunFailed, Scaling
from server.store.journal import Journal
signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
resource.setrlimit(resource.RLIMIT_FSIZE, (250, 250))
journal = Journal(pathlib.Path({str(tmp_path)!r}) / "rounds.jsonl", "run")
journal.write(Scaling(modality="ct", n=3))
try:
    journal.write(RunFailed(reason="x" * 300))
except OSError:
    journal.write(RoundStarted(round=1))
"""
    subprocess.run([sys.executable, "-c", script], check=True, timeout=60)
    lines = (tmp_path / "rounds.jsonl").read_text().splitlines()
    assert [json.loads(line)["event"] for line in lines] == ["scaling", "round_started"]


def test_line_separators_inside_a_text_do_not_cut_a_line(tmp_path):
    path = tmp_path / "rounds.jsonl"
    path.write_text('{"event": "roll_call", "site": "a\u2028b"}\n', encoding="utf-8")
    assert [entry["site"] for entry in JournalTail(path).read()] == ["a\u2028b"]


def test_listeners_hear_what_is_written(tmp_path):
    heard = []
    journal = Journal(tmp_path / "rounds.jsonl", "run", (heard.append,))
    journal.write(Scaling(modality="ct", n=3))
    journal.write(RollCall(site="ash", notes=("untrained",)))
    assert json.loads(json.dumps(heard)) == read_journal(tmp_path / "rounds.jsonl")
    assert (heard[0]["run"], heard[0]["n"]) == ("run", 3)
