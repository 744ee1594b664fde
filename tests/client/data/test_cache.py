"""The cache of embeddings: keyed by content, whole or not there, and made anew where it is damaged."""

import os
from pathlib import Path

import numpy as np
import pytest

from client.data.cache import EmbeddingCache, content_hash
from client.ingest.reasons import ScanReason, ScanRefused

VECTOR = np.arange(6, dtype=np.float32)


@pytest.fixture
def cache(tmp_path):
    return EmbeddingCache(tmp_path / "cache")


@pytest.fixture
def scan(tmp_path):
    path = tmp_path / "scan.nii"
    path.write_bytes(b"voxels")
    return path


def touch(path: Path) -> None:
    """Move the time of change on, and nothing else."""
    stat = path.stat()
    os.utime(path, ns=(stat.st_atime_ns, stat.st_mtime_ns + 1_000_000_000))


def embedding_file(folder: Path) -> Path:
    (file,) = folder.rglob("*.npy")
    return file


def files_of(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.rglob("*") if path.is_file())


# Keys


def test_the_key_is_of_the_content_and_of_what_encodes_it(cache, scan):
    key = cache.key(scan, "encoder/1")
    assert cache.key(scan, "encoder/1") == key
    assert cache.key(scan, "encoder/2") != key
    scan.write_bytes(b"others")  # same length
    touch(scan)
    assert cache.key(scan, "encoder/1") != key
    scan.write_bytes(b"voxels")
    touch(scan)
    assert cache.key(scan, "encoder/1") == key


def test_the_key_is_not_of_the_name_or_the_time(cache, scan, tmp_path):
    key = cache.key(scan, "encoder/1")
    touch(scan)
    assert cache.key(scan, "encoder/1") == key
    other = tmp_path / "elsewhere" / "0001"
    other.parent.mkdir()
    scan.rename(other)
    assert cache.key(other, "encoder/1") == key


def test_content_and_fingerprint_do_not_run_into_each_other(cache, tmp_path):
    one, other = tmp_path / "one", tmp_path / "other"
    one.write_bytes(b"ab")
    other.write_bytes(b"a")
    assert cache.key(one, "c") != cache.key(other, "bc")


def test_a_folder_is_one_scan(cache, tmp_path):
    folder = tmp_path / "series"
    (folder / "inner").mkdir(parents=True)
    first, second = folder / "1.dcm", folder / "inner" / "2.dcm"
    first.write_bytes(b"one")
    second.write_bytes(b"two")
    key = cache.key(folder, "encoder/1")
    touch(first)
    assert cache.key(folder, "encoder/1") == key
    second.write_bytes(b"three")
    changed = cache.key(folder, "encoder/1")
    assert changed != key
    (folder / "3.dcm").write_bytes(b"")
    assert cache.key(folder, "encoder/1") not in (key, changed)


def test_where_one_file_ends_and_the_next_begins_counts(tmp_path):
    paths = [tmp_path / name for name in ("a", "b")]
    hashes = set()
    for contents in ((b"12", b"3"), (b"1", b"23")):
        for path, content in zip(paths, contents, strict=True):
            path.write_bytes(content)
        hashes.add(content_hash(paths))
        assert content_hash(reversed(paths)) == content_hash(paths)
    assert len(hashes) == 2


def test_a_file_that_is_not_there_is_an_error_of_the_system(cache, tmp_path):
    with pytest.raises(FileNotFoundError):
        cache.key(tmp_path / "nothing.nii", "encoder/1")


# The list of seen files


def test_an_unchanged_file_is_not_read_again(scan, tmp_path, monkeypatch):
    cache = EmbeddingCache(tmp_path / "cache")
    key = cache.key(scan, "encoder/1")
    cache.save_index()

    def unread(_paths):
        raise AssertionError("it was read")

    monkeypatch.setattr("client.data.cache.content_hash", unread)
    again = EmbeddingCache(tmp_path / "cache")
    assert again.key(scan, "encoder/1") == key
    touch(scan)
    with pytest.raises(AssertionError, match="it was read"):
        again.key(scan, "encoder/1")


@pytest.mark.parametrize(
    "content",
    [
        pytest.param(b"", id="empty"),
        pytest.param(b'{"/a": ["1", "2"', id="cut off"),
        pytest.param(b"\xff\xfe\x00", id="no text"),
        pytest.param(b"[1, 2]", id="a list"),
        pytest.param(b'{"/a": 3}', id="another shape"),
        pytest.param(b'{"/a": ["1"]}', id="too short"),
        pytest.param(b"null", id="nothing"),
    ],
)
def test_a_damaged_list_is_made_anew(scan, tmp_path, content):
    folder = tmp_path / "cache"
    first = EmbeddingCache(folder)
    key = first.key(scan, "encoder/1")
    first.put(key, VECTOR)
    first.save_index()
    (index,) = folder.rglob("*.json")
    index.write_bytes(content)
    again = EmbeddingCache(folder)
    assert again.key(scan, "encoder/1") == key
    assert np.array_equal(again.get(key), VECTOR)
    again.save_index()
    assert index.read_bytes() != content


# Embeddings


def test_what_is_put_is_got_by_another_process_too(cache, tmp_path):
    assert cache.get("ab12") is None
    cache.put("ab12", VECTOR)
    found = EmbeddingCache(tmp_path / "cache").get("ab12")
    assert found.dtype == np.float32
    assert np.array_equal(found, VECTOR)
    assert cache.get("ab13") is None


@pytest.mark.parametrize(
    "damage",
    [
        pytest.param(lambda content: content[:-1], id="a byte short"),
        pytest.param(lambda content: content[: len(content) // 2], id="half"),
        pytest.param(lambda content: content[:5], id="within the magic"),
        pytest.param(lambda _: b"", id="empty"),
        pytest.param(lambda content: bytes(len(content)), id="zeros"),
        pytest.param(lambda _: b"\x80\x04 no array at all", id="another format"),
    ],
)
def test_a_damaged_embedding_is_not_there_and_can_be_put_again(cache, tmp_path, damage):
    cache.put("ab12", VECTOR)
    file = embedding_file(tmp_path)
    file.write_bytes(damage(file.read_bytes()))
    assert cache.get("ab12") is None
    cache.put("ab12", VECTOR)
    assert np.array_equal(cache.get("ab12"), VECTOR)


def test_a_put_that_fails_leaves_what_was_there(cache, tmp_path, monkeypatch):
    cache.put("ab12", VECTOR)
    before = files_of(tmp_path)

    def half(file, vector):
        file.write(vector.tobytes()[:7])
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(np, "save", half)
    for key in ("ab12", "ab13"):
        with pytest.raises(OSError, match="No space"):
            cache.put(key, VECTOR + 1)
    assert files_of(tmp_path) == before
    assert np.array_equal(cache.get("ab12"), VECTOR)
    assert cache.get("ab13") is None


# Refusals


def of(refused: ScanRefused | None):
    return refused and (refused.reason, refused.detail)


def test_a_refusal_is_kept_until_the_file_changes(scan, tmp_path):
    cache = EmbeddingCache(tmp_path / "cache")
    key = cache.key(scan, "encoder/1")
    assert cache.refusal(key) is None
    cache.put_refusal(key, ScanRefused(ScanReason.TRUNCATED_PIXEL_DATA, "50 of 96 bytes."))
    again = EmbeddingCache(tmp_path / "cache")
    kept = again.refusal(again.key(scan, "encoder/1"))
    assert of(kept) == (ScanReason.TRUNCATED_PIXEL_DATA, "50 of 96 bytes.")
    assert again.get(key) is None
    assert again.refusal(again.key(scan, "encoder/2")) is None  # another preprocessing may take it
    scan.write_bytes(b"better voxels")
    assert again.refusal(again.key(scan, "encoder/1")) is None


@pytest.mark.parametrize("reason", ScanReason)
def test_every_reason_is_kept_as_it_is(cache, reason):
    cache.put_refusal("ab12", ScanRefused(reason, "Größe 3 x 4."))
    assert of(cache.refusal("ab12")) == (reason, "Größe 3 x 4.")


@pytest.mark.parametrize(
    ("ending", "sentence", "reason", "detail"),
    [
        (".refused", "Some voxels are NaN or infinite.", ScanReason.NON_FINITE_VOXELS, ""),
        (
            ".refused",
            "The folder holds no series that fits: No usable series.",
            ScanReason.NO_FITTING_SERIES,
            "No usable series.",
        ),
        (".refused", "Worded otherwise by now.", ScanReason.OTHER, "Worded otherwise by now."),
        (".failed", "The command that makes the mask failed. x", ScanReason.MASK_COMMAND, "x"),
        (".failed", "cannot be read (OSError)", ScanReason.UNREADABLE_FILE, "cannot be read (OSError)"),
    ],
)
def test_a_cache_that_holds_sentences_is_read(cache, tmp_path, ending, sentence, reason, detail):
    path = tmp_path / "cache" / "embeddings" / "ab" / f"ab12{ending}"
    path.parent.mkdir(parents=True)
    path.write_text(sentence)
    assert of(cache.refusal("ab12")) == (reason, detail)
    cache.put_refusal("ab12", ScanRefused(ScanReason.NO_MASK))
    assert of(cache.refusal("ab12")) == (ScanReason.NO_MASK, "")


def test_an_embedding_is_no_refusal(cache):
    cache.put("ab12", VECTOR)
    assert cache.refusal("ab12") is None
