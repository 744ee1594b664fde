import signal
import subprocess
import sys
import textwrap
import time
from pathlib import Path

import pytest

from mmare.host.supervised import ProcessSupervisor, Program


def program(tmp_path, script, name="nap", **more):
    return Program(name, ("sh", "-c", script), tmp_path / f"{name}.log", **more)


def wait_for(true, timeout_s=10.0):
    end = time.monotonic() + timeout_s
    while not true():
        assert time.monotonic() < end, "timed out"
        time.sleep(0.01)


def alive(pid):
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    except FileNotFoundError:
        return False


def test_a_program_that_ends_is_started_again_with_growing_pauses(tmp_path):
    with ProcessSupervisor() as processes:
        processes.keep(program(tmp_path, "echo here; exit 3", first_pause_s=0.01, longest_pause_s=0.03))
        ended = []
        while len(ended) < 4:
            ended += [change for change in processes.poll() if change.code is not None]
            time.sleep(0.005)
        assert [change.code for change in ended] == [3] * 4
        assert [change.again_s for change in ended] == [0.01, 0.02, 0.03, 0.03]
        assert processes.starts("nap") >= 4
    assert (tmp_path / "nap.log").read_text().count("here") >= 4


def test_a_healthy_program_restarts_after_a_short_pause(tmp_path):
    with ProcessSupervisor() as processes:
        processes.keep(program(tmp_path, "exit 0", first_pause_s=0.01, healthy_s=0.0))
        ended = []
        while len(ended) < 3:
            ended += [change for change in processes.poll() if change.code is not None]
        assert [change.again_s for change in ended] == [0.01] * 3


def test_stopping_ends_what_a_program_started_too(tmp_path):
    mark = tmp_path / "child"
    with ProcessSupervisor() as processes:
        deaf = f"trap '' TERM; sleep 60 & echo $! > {mark}; wait; wait"
        processes.keep(program(tmp_path, deaf, stop_s=0.2))
        processes.poll()
        wait_for(lambda: mark.exists() and mark.read_text().strip())
        assert processes.running() == {"nap": processes.pid("nap")}
    wait_for(lambda: not alive(int(mark.read_text())))


def test_a_killed_supervisor_leaves_nothing_behind(tmp_path):
    code = textwrap.dedent(
        f"""
        import time
        from pathlib import Path
        from mmare.host.supervised import ProcessSupervisor, Program
        processes = ProcessSupervisor()
        processes.keep(Program("nap", ("sleep", "60"), Path({str(tmp_path)!r}) / "nap.log"))
        processes.poll()
        print(processes.pid("nap"), flush=True)
        time.sleep(60)
        """
    )
    with subprocess.Popen([sys.executable, "-c", code], stdout=subprocess.PIPE, text=True) as keeper:
        pid = int(keeper.stdout.readline())
        assert alive(pid)
        keeper.send_signal(signal.SIGKILL)
        wait_for(lambda: not alive(pid))


def test_a_missing_program_is_an_error_with_its_name(tmp_path):
    with ProcessSupervisor() as processes:
        processes.keep(Program("gone", ("no-such-program-at-all",), tmp_path / "gone.log"))
        with pytest.raises(FileNotFoundError, match="no-such-program-at-all"):
            processes.poll()


def test_the_log_of_a_program_that_runs_for_months_is_rotated_too(tmp_path, monkeypatch):
    monkeypatch.setattr("mmare.host.supervised.MOST_LOG_BYTES", 10)
    monkeypatch.setattr("mmare.host.supervised.ROTATE_S", 0.0)
    log = tmp_path / "talk.log"
    script = "import time\nfor number in range(10**6):\n    print(number, flush=True)\n    time.sleep(0.02)"
    with ProcessSupervisor() as processes:
        processes.keep(Program("talk", (sys.executable, "-S", "-c", script), log))
        end = time.monotonic() + 20
        while not (tmp_path / "talk.log.1").exists() or not log.read_bytes():
            assert time.monotonic() < end
            processes.poll()
            time.sleep(0.01)
        pid = processes.pid("talk")
    assert pid is not None
    assert b"\0" not in log.read_bytes()  # it goes on at the beginning, not where it was


def test_a_long_log_is_rotated(tmp_path, monkeypatch):
    monkeypatch.setattr("mmare.host.supervised.MOST_LOG_BYTES", 10)
    (tmp_path / "nap.log").write_text("x" * 11)
    with ProcessSupervisor() as processes:
        processes.keep(program(tmp_path, "sleep 60"))
        processes.poll()
    assert (tmp_path / "nap.log.1").read_text() == "x" * 11
    assert (tmp_path / "nap.log").stat().st_size == 0
