"""How far the scans are: counted as they are encoded, kept over runs and kills, read back or not at all."""

import json
import stat

import pytest

from client.ingest.reasons import ScanReason
from client.telemetry import embed_record
from client.telemetry.embed_record import EmbedWatch, ScanCounts, read_record, watched
from tests.client.data.test_embed import embed, opened, write_scan, write_site


class Clock:
    """Stands still until it is set."""

    def __init__(self):
        self.now = 1000.0

    def __call__(self):
        return self.now


@pytest.fixture
def clock():
    return Clock()


def counts(folder, modality="t1"):
    return read_record(opened(folder)[0].cache).modalities[modality]


def test_what_became_of_real_scans_is_written_down(tmp_path):
    folder = write_site(
        tmp_path / "federation",
        [
            {"t1": "a.nii.gz", "t2": "b.nii"},
            {"t1": "flat.nii.gz"},
            {"t1": "rubbish.nii", "t2": "b.nii"},
            {"t1": "absent.nii"},
        ],
    )
    site = folder / "elm"
    for seed, name in enumerate(("a.nii.gz", "b.nii")):
        write_scan(site / name, seed)
    write_scan(site / "flat.nii.gz", shape=(10, 12, 2))  # two slices
    (site / "rubbish.nii").write_bytes(b"no picture")
    embed(folder)
    found = counts(folder)
    assert (found.scans, found.usable, found.hits, found.misses) == (4, 1, 0, 4)
    assert sum(found.refused.values()) == 3
    assert set(found.refused) == set(found.refused_at)
    assert found.refused["unreadable-file"] == 1
    assert "other" not in found.refused
    assert counts(folder, "t2") == ScanCounts(2, 2, misses=2)
    record = read_record(opened(folder)[0].cache)
    assert not record.active

    embed(folder)
    again = counts(folder)
    assert (again.scans, again.usable, again.refused) == (4, 1, found.refused)
    assert (again.hits, again.misses) == (3, 5)  # the scan that is not there is looked for again
    assert counts(folder, "t2") == ScanCounts(2, 2, hits=2, misses=2)
    lasting = set(found.refused) - {"unreadable-file"}
    assert {word: again.refused_at[word] for word in lasting} == {
        word: found.refused_at[word] for word in lasting
    }
    assert again.refused_at["unreadable-file"] > found.refused_at["unreadable-file"]


def test_it_is_written_now_and_then_and_at_both_ends(tmp_path, clock):
    watch = EmbedWatch(tmp_path, {"t1": 9}, frozenset({"t1"}), clock)
    watch.write(active=True)
    done = []
    for step in (0.0, 1.0, 1.0, 1.9, 0.2):
        clock.now += step
        watch.observe("t1", cached=False)
        done.append(read_record(tmp_path).modalities["t1"].done)
    assert done == [0, 0, 3, 3, 5]
    assert read_record(tmp_path).active
    with watched(tmp_path, {"t1": 9}, frozenset({"t1"})) as again:
        assert read_record(tmp_path).active
        again.observe("t1", cached=True)
    record = read_record(tmp_path)
    assert not record.active
    assert record.modalities["t1"] == ScanCounts(9, 1, hits=1, misses=5)
    assert not list(tmp_path.glob(".*"))


def test_after_a_failure_it_is_no_longer_active(tmp_path):
    def fail():
        raise RuntimeError("the GPU went")

    with pytest.raises(RuntimeError), watched(tmp_path, {"t1": 9}, frozenset({"t1"})):
        fail()
    assert not read_record(tmp_path).active


def test_modalities_that_the_site_lost_go_and_those_of_another_study_stay(tmp_path):
    for study, known in (({"t1": 9}, {"t1"}), ({"t2": 8}, {"t1", "t2"}), ({"t2": 8}, {"t2"})):
        with watched(tmp_path, study, frozenset(known)) as watch:
            for name in study:
                watch.observe(name, cached=False)
        assert set(read_record(tmp_path).modalities) == known


def test_a_site_without_scans_gets_no_file(tmp_path):
    with watched(tmp_path / "cache", {}, frozenset({"ct"})):
        pass
    assert not (tmp_path / "cache").exists()


def test_a_disk_that_is_full_does_not_end_the_work(tmp_path, monkeypatch, caplog):
    def full(*_args, **_kwargs):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(embed_record, "write_whole", full)
    with watched(tmp_path, {"t1": 9}, frozenset({"t1"})) as watch:
        watch.observe("t1", cached=False)
    assert "cannot be saved" in caplog.text


@pytest.mark.parametrize(
    "content",
    [
        "",
        "[]",
        '"x"',
        "[" * 100_000,
        '{"format": 1}',
        '{"format": 2, "updated": 1.0, "active": true, "modalities": {}}',
        '{"format": 1, "updated": NaN, "active": true, "modalities": {}}',
        '{"format": 1, "updated": 1.0, "active": true, "modalities": {"t1": {"scans": "many"}}}',
        '{"format": 1, "updated": 1.0, "active": true, "modalities": {"t1": {"refused": {"/home/x": 1}}}}',
        '{"format": 1, "updated": 1.0, "active": true, "modalities": {"t1": {"patients": ["PAT-1"]}}}',
    ],
)
def test_what_is_no_record_is_none(tmp_path, content):
    (tmp_path / "embedding.json").write_text(content)
    assert read_record(tmp_path) is None


def test_a_record_reads_back(tmp_path):
    content = {"t1": {"scans": 4, "usable": 1, "refused": {"no-mask": 1}, "refused_at": {"no-mask": 5.0}}}
    (tmp_path / "embedding.json").write_text(
        json.dumps({"format": 1, "updated": 7, "active": False, "modalities": content})
    )
    found = read_record(tmp_path)
    assert (found.updated, found.active) == (7.0, False)
    assert found.modalities["t1"] == ScanCounts(4, 1, {"no-mask": 1}, {"no-mask": 5.0})
    assert found.modalities["t1"].done == 2


def test_a_writer_keeps_the_file_readable_for_the_worker_s_user(tmp_path):
    with watched(tmp_path, {"t1": 9}, frozenset({"t1"})):
        pass
    assert stat.S_IMODE((tmp_path / "embedding.json").stat().st_mode) == 0o644


def test_every_reason_is_counted_under_its_own_code(tmp_path):
    with watched(tmp_path, {"t1": len(ScanReason)}, frozenset({"t1"})) as watch:
        for reason in ScanReason:
            watch.observe("t1", cached=False, refused=reason)
    found = read_record(tmp_path).modalities["t1"]
    assert found.refused == {reason.value: 1 for reason in ScanReason}
    assert set(found.refused_at) == set(found.refused)
