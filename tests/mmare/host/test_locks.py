import stat
import subprocess
import sys
import threading

import pytest

from mmare.errors import InputError, RunError
from mmare.host.locks import is_held, locked

BUSY = RunError("another one is at it")


@pytest.mark.parametrize("kind", ["file", "folder"])
def test_one_holds_it_and_who_comes_second_is_told_so(tmp_path, kind):
    path = tmp_path if kind == "folder" else tmp_path / "lock"
    with locked(path, BUSY), pytest.raises(RunError, match="another one is at it"), locked(path, BUSY, 0):
        pass
    with locked(path, BUSY, 0):
        pass


def test_without_a_sentence_it_waits(tmp_path):
    order = []

    def second():
        with locked(tmp_path / "lock"):
            order.append("second")

    thread = threading.Thread(target=second)
    with locked(tmp_path / "lock"):
        thread.start()
        thread.join(0.1)
        order.append("first")
    thread.join(10)
    assert order == ["first", "second"]


def test_looking_whether_it_is_held_keeps_nobody_from_it(tmp_path):
    lock, done = tmp_path / "lock", threading.Event()
    lock.touch()

    def look():
        while not done.is_set():
            is_held(lock)

    thread = threading.Thread(target=look)
    thread.start()
    try:
        for _ in range(100):
            with locked(lock, BUSY):
                assert is_held(lock)
    finally:
        done.set()
        thread.join()
    assert not is_held(lock)
    assert not is_held(tmp_path / "missing")


def test_what_was_written_in_it_stays_and_a_new_one_has_its_mode(tmp_path):
    (tmp_path / "old").write_text("37")
    with locked(tmp_path / "old"), locked(tmp_path / "new", mode=0o600):
        assert (tmp_path / "old").read_text() == "37"
        assert stat.S_IMODE((tmp_path / "new").stat().st_mode) == 0o600


def test_a_link_or_a_missing_folder_is_a_sentence(tmp_path):
    (tmp_path / "link").symlink_to(tmp_path / "elsewhere")
    for path in (tmp_path / "link", tmp_path / "missing" / "lock"):
        with pytest.raises(InputError, match=rf"{path}: cannot be locked \("), locked(path):
            pass
    assert not (tmp_path / "elsewhere").exists()


@pytest.mark.system
def test_it_ends_with_its_holder_however_that_ends(tmp_path):
    lock = tmp_path / "lock"
    code = f"""
from pathlib import Path
from mmare.host.locks import locked
with locked(Path({str(lock)!r})):
    print("held", flush=True)
    input()
"""
    with subprocess.Popen(
        [sys.executable, "-c", code], stdin=subprocess.PIPE, stdout=subprocess.PIPE
    ) as holder:
        assert holder.stdout.readline() == b"held\n"
        assert is_held(lock)
        holder.kill()
        holder.wait()
        with locked(lock, BUSY, 0):
            pass
