import errno
import os
import stat
from pathlib import Path

import pytest

from mmare.host.files import replacing, write_whole


def mode_of(path) -> int:
    return stat.S_IMODE(path.stat().st_mode)


@pytest.mark.parametrize("umask", [0o000, 0o077], ids=oct)
def test_a_file_has_the_mode_it_was_asked_for(tmp_path, umask):
    before = os.umask(umask)
    try:
        write_whole(tmp_path / "open", b"a", 0o644)
        write_whole(tmp_path / "closed", b"b", 0o600)
    finally:
        os.umask(before)
    assert mode_of(tmp_path / "open") == 0o644
    assert mode_of(tmp_path / "closed") == 0o600


def test_a_file_is_replaced_with_mode_and_all_and_nothing_is_left_over(tmp_path):
    path = tmp_path / "secret"
    path.write_bytes(b"old, and longer")
    path.chmod(0o666)
    write_whole(path, b"new", 0o600)
    assert path.read_bytes() == b"new"
    assert mode_of(path) == 0o600
    assert [entry.name for entry in tmp_path.iterdir()] == ["secret"]


def test_who_reads_the_old_file_goes_on_reading_it(tmp_path):
    path = tmp_path / "file"
    write_whole(path, b"old")
    with path.open("rb") as reader:
        write_whole(path, b"new")
        assert reader.read() == b"old"
    assert path.read_bytes() == b"new"


def test_a_file_that_cannot_be_written_leaves_the_old_one(tmp_path):
    path = tmp_path / "file"
    write_whole(path, b"old")
    with pytest.raises(TypeError):
        write_whole(path, "text")  # not bytes: fails in the middle of writing
    assert path.read_bytes() == b"old"
    assert [entry.name for entry in tmp_path.iterdir()] == ["file"]
    (tmp_path / "folder").mkdir()
    with pytest.raises(OSError, match="directory"):
        write_whole(tmp_path / "folder", b"x")
    assert sorted(entry.name for entry in tmp_path.iterdir()) == ["file", "folder"]


def test_a_link_is_replaced_and_what_it_led_to_stays(tmp_path):
    (tmp_path / "target").write_bytes(b"theirs")
    (tmp_path / "link").symlink_to(tmp_path / "target")
    write_whole(tmp_path / "link", b"ours", 0o600)
    assert (tmp_path / "target").read_bytes() == b"theirs"
    assert not (tmp_path / "link").is_symlink()


@pytest.mark.parametrize("error", [OSError, KeyboardInterrupt], ids=lambda kind: kind.__name__)
def test_a_writer_that_is_cut_off_leaves_the_old_file_and_no_other(tmp_path, error):
    def write(path):
        with replacing(path) as partial:
            partial.write_bytes(b"half")
            raise error

    (tmp_path / "file").write_bytes(b"old")
    with pytest.raises(error):
        write(tmp_path / "file")
    assert [(entry.name, entry.read_bytes()) for entry in tmp_path.iterdir()] == [("file", b"old")]


@pytest.mark.parametrize("flush_folder", [True, False])
def test_content_is_flushed_before_the_name_and_the_name_after(tmp_path, monkeypatch, flush_folder):
    calls = []
    fsync, move = os.fsync, os.replace

    def note_fsync(number):
        calls.append(str(Path(f"/proc/self/fd/{number}").readlink()))
        fsync(number)

    monkeypatch.setattr(os, "fsync", note_fsync)
    monkeypatch.setattr(os, "replace", lambda *paths: (calls.append("replace"), move(*paths)))
    with replacing(tmp_path / "file", "file.part", flush_folder=flush_folder) as partial:
        partial.write_bytes(b"whole")
    assert calls == [str(tmp_path / "file.part"), "replace", *[str(tmp_path)] * flush_folder]


def test_a_folder_that_cannot_be_flushed_is_no_error(tmp_path, monkeypatch):
    fsync = os.fsync

    def on_a_share(number):
        if stat.S_ISDIR(os.fstat(number).st_mode):
            raise OSError(errno.EINVAL, "Invalid argument")
        fsync(number)

    monkeypatch.setattr(os, "fsync", on_a_share)
    write_whole(tmp_path / "file", b"whole")
    assert (tmp_path / "file").read_bytes() == b"whole"
