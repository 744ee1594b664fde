"""What was written last is given from memory as long as the file is as it was written."""

from concurrent.futures import Future

import pytest
import torch

from client.training.kept.recent_files import RecentFiles, stamp_of


@pytest.fixture
def written(tmp_path):
    path = tmp_path / "a.safetensors"
    path.write_bytes(b"12345678")
    done = Future()
    done.set_result(stamp_of(path))
    return path, done


TENSORS = {"w": torch.ones(2)}


def test_it_is_given_until_the_file_is_replaced_or_deleted(written):
    path, done = written
    recent = RecentFiles(100)
    recent.put(path, TENSORS, done)
    assert recent.get(path)["w"] is TENSORS["w"]
    path.write_bytes(b"87654321+")
    assert recent.get(path) is None
    done = Future()
    done.set_result(stamp_of(path))
    recent.put(path, TENSORS, done)
    path.unlink()
    assert recent.get(path) is None


def test_it_is_given_while_it_is_being_written_but_not_if_that_failed(tmp_path):
    recent, writing, path = RecentFiles(100), Future(), tmp_path / "a"
    recent.put(path, TENSORS, writing)
    assert recent.get(path)["w"] is TENSORS["w"]
    writing.set_exception(OSError("disk full"))
    assert recent.get(path) is None


def test_the_oldest_make_way(written):
    path, done = written
    recent = RecentFiles(17)
    recent.put(path, TENSORS, done)
    recent.put(path, TENSORS, done)  # the same again counts once
    recent.put(path.with_name("b"), TENSORS, Future())
    assert recent.get(path) is not None
    recent.put(path.with_name("c"), TENSORS, Future())
    assert recent.get(path) is None
    assert recent.get(path.with_name("c")) is not None
    recent.forget(path.with_name("b"), path.with_name("c"))
    recent.put(path, TENSORS, done)
    assert recent.get(path) is not None
