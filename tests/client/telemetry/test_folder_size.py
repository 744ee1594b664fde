"""Sizes of a folder's parts, measured beside the work."""

import os
import time

from client.telemetry.folder_size import FolderSize


def fill(path, size):
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(bytes(size))


def test_bytes_are_told_by_part(tmp_path):
    fill(tmp_path / "embeddings" / "ab" / "abc.npy", 100)
    fill(tmp_path / "embeddings" / "files.json", 20)
    fill(tmp_path / "runs" / "one" / "000001.safetensors", 7)
    fill(tmp_path / "embedding.json", 3)
    fill(tmp_path / "unknown" / "deep" / "er", 5)
    (tmp_path / "embeddings" / "loop").symlink_to(tmp_path)
    size = FolderSize(tmp_path, ("embeddings", "runs", "masks"))
    assert size.bytes == {}
    size.measure()
    link = os.lstat(tmp_path / "embeddings" / "loop").st_size
    assert size.bytes == {"embeddings": 120 + link, "runs": 7, "masks": 0, "other": 8}


def test_it_is_measured_again_while_the_block_runs(tmp_path):
    size = FolderSize(tmp_path / "later", ("embeddings",))
    with size.measured(interval_s=0.01):
        fill(tmp_path / "later" / "embeddings" / "a", 10)
        end = time.monotonic() + 10
        while size.bytes.get("embeddings") != 10 and time.monotonic() < end:
            time.sleep(0.01)
    assert size.bytes == {"embeddings": 10, "other": 0}
