import os
import stat

import pytest

from mmare.host.files import write_whole


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
