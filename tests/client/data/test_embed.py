"""Scans through their encoder, once; whatever is wrong with one of them, the others go on."""

import gzip
import os
import re
import subprocess
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import nibabel as nib
import numpy as np
import pandas as pd
import pytest
import torch

from client.data.dataset import load_data
from client.data.embed import EmbedReport, embed_site
from client.encoders.registry import ENCODERS
from client.ingest.reasons import ScanReason, explain
from client.telemetry.embed_record import read_record
from mmare.errors import DataError, RunError
from mmare.study.study import Study, load_study, parse_study
from sites.config import SiteConfig, load_site
from sites.federation import SiteTables, write_federation
from tests.client.ingest.phantoms import save, stack, values

ENCODER = "med3d-resnet18-random"
REAL = ENCODERS[ENCODER]
WIDTH = 512
SIZE = (4, 8, 8)


def write_scan(path: Path, seed: int = 0, shape: Sequence[int] = (10, 12, 8)) -> Path:
    """A head of random brightness in a background of 0; every seed another one."""
    voxels = np.zeros(shape, dtype=np.uint8)
    inner = tuple(slice(1, length - 1) for length in shape[:3])
    voxels[inner] = np.random.default_rng(seed).integers(1, 255, voxels[inner].shape)
    path.parent.mkdir(parents=True, exist_ok=True)
    nib.save(nib.Nifti1Image(voxels, np.diag([2.0, 2.0, 3.0, 1.0])), path)
    return path


def scan_study(size: Sequence[int] = SIZE, modalities: Sequence[str] = ("t1", "t2")) -> Study:
    """A study of volumes."""
    volumes = [
        {"name": name, "kind": "volume", "width": WIDTH, "encoder": ENCODER, "size": list(size)}
        for name in modalities
    ]
    content: dict[str, Any] = {
        "study": {"name": "scans", "classes": ["no", "yes"], "positive": "yes", "seed": 3},
        "modality": volumes,
        "model": {"name": "mmare", "width": 16},
        "training": {"rounds": 2, "batch_size": 8},
        "federation": {"min_sites": 1, "deadline_s": 60},
        "privacy": {"min_count": 0},
    }
    return parse_study(content, source="test")


def write_site(folder: Path, patients: Sequence[Mapping[str, str]], study: Study | None = None) -> Path:
    """A federation of the site ``elm``; each patient has paths of scans by modality, relative to the site."""
    study = study or scan_study()
    names = [modality.name for modality in study.modalities]
    table = {
        "patient_id": [f"p-{row}" for row in range(len(patients))],
        "label": [study.classes[row % 2] for row in range(len(patients))],
        "split": [("train", "train", "val", "val", "test", "test")[row % 6] for row in range(len(patients))],
        **{name: [scans.get(name) for scans in patients] for name in names},
    }
    write_federation(folder, study, [SiteTables("elm", pd.DataFrame(table), scans={n: n for n in names})])
    return folder


def opened(folder: Path) -> tuple[SiteConfig, Study]:
    return load_site(folder / "elm" / "site.toml"), load_study(folder / "study.toml")


def embed(folder: Path, study: Study | None = None) -> EmbedReport:
    site, own = opened(folder)
    return embed_site(site, study or own)


def load(folder: Path, study: Study | None = None):
    site, own = opened(folder)
    return load_data(site, study or own)


def counts(report: EmbedReport) -> tuple[int, int, int]:
    return report.encoded, report.cached, len(report.refused)


@pytest.fixture
def federation(tmp_path):
    """Three patients: both contrasts, the first alone, the second alone."""
    folder = write_site(
        tmp_path / "federation",
        [
            {"t1": "a.nii.gz", "t2": "b.nii"},
            {"t1": "c.nii.gz"},
            {"t2": str(tmp_path / "elsewhere" / "d.nii")},
        ],
    )
    for seed, name in enumerate(("a.nii.gz", "b.nii", "c.nii.gz")):
        write_scan(folder / "elm" / name, seed)
    write_scan(tmp_path / "elsewhere" / "d.nii", 3)
    return folder


@pytest.fixture
def no_encoder(monkeypatch):
    """Whoever opens the encoder fails."""

    def refuse(_source):
        raise AssertionError("the encoder was opened")

    monkeypatch.setitem(ENCODERS, ENCODER, replace(REAL, open_volume=refuse))


# Once


def test_every_scan_is_encoded_once_and_its_vector_is_in_the_right_row(federation):
    steps = []
    site, study = opened(federation)
    report = embed_site(site, study, lambda done, total: steps.append((done, total)))
    assert counts(report) == (4, 0, 0)
    assert "UNTRAINED" in "".join(report.untrained)
    assert steps[0] == (0, 4)
    assert steps[-1] == (4, 4)
    assert steps == sorted(steps)
    data = load(federation)
    assert data.present.tolist() == [[True, True], [True, False], [False, True]]
    filled = [(slot, row) for slot in range(2) for row in range(3) if data.present[row, slot]]
    vectors = [data.embedding[slot][row] for slot, row in filled]
    for vector in vectors:
        assert vector.shape == (WIDTH,)
        assert vector.isfinite().all()
        assert vector.abs().sum() > 0
    assert len({vector.numpy().tobytes() for vector in vectors}) == 4
    assert data.embedding[1][1].abs().sum() == 0
    assert data.embedding[0][2].abs().sum() == 0
    assert data.encoders["t1"] == data.encoders["t2"]
    assert "random" in data.encoders["t1"]


def test_a_vector_goes_with_its_scan_and_not_with_its_row(tmp_path):
    """Two sites name the same scans in another order: the rows change places, their bits stay."""
    patients = [{"t1": f"../../{seed}.nii"} for seed in range(3)]
    for seed in range(3):
        write_scan(tmp_path / f"{seed}.nii", seed)
    folder = write_site(tmp_path / "federation", patients)
    embed(folder)
    before = load(folder).embedding[0]
    file = folder / "elm" / "patients.csv"
    head, *rows = file.read_text().splitlines()
    file.write_text("\n".join([head, *rows[::-1]]) + "\n")
    assert counts(embed(folder)) == (0, 3, 0)
    assert torch.equal(load(folder).embedding[0], before.flip(0))


def test_a_second_run_encodes_nothing_and_opens_no_encoder(federation, request):
    embed(federation)
    request.getfixturevalue("no_encoder")
    steps = []
    site, study = opened(federation)
    report = embed_site(site, study, lambda done, total: steps.append((done, total)))
    assert counts(report) == (0, 4, 0)
    assert set(steps) == {(4, 4)}


def test_a_changed_file_is_the_only_one_encoded_again(federation):
    embed(federation)
    before = load(federation)
    write_scan(federation / "elm" / "c.nii.gz", seed=77)
    assert counts(embed(federation)) == (1, 3, 0)
    after = load(federation)
    assert not torch.equal(after.embedding[0][1], before.embedding[0][1])
    assert torch.equal(after.embedding[0][0], before.embedding[0][0])
    assert torch.equal(after.embedding[1], before.embedding[1])


def test_a_file_that_moved_is_not_encoded_again(federation):
    embed(federation)
    scan, manifest = federation / "elm" / "c.nii.gz", federation / "elm" / "patients.csv"
    scan.rename(scan.with_name("moved.nii.gz"))
    manifest.write_text(manifest.read_text().replace("c.nii.gz", "moved.nii.gz"))
    assert counts(embed(federation)) == (0, 4, 0)


@pytest.mark.slow
def test_another_size_encodes_all_again_and_the_first_stay(federation):
    embed(federation)
    larger = scan_study((5, 8, 8))
    with pytest.raises(DataError, match="mmare-site embed"):
        load(federation, larger)
    assert counts(embed(federation, larger)) == (4, 0, 0)
    assert load(federation, larger).encoders != load(federation).encoders
    assert counts(embed(federation)) == (0, 4, 0)


@pytest.mark.slow
def test_damaged_embeddings_are_made_again_with_the_same_bits(federation):
    embed(federation)
    before = load(federation)
    site, _ = opened(federation)
    files = sorted(site.cache.rglob("*.npy"))
    files[0].write_bytes(files[0].read_bytes()[:-9])
    files[1].write_bytes(b"")
    with pytest.raises(DataError, match="mmare-site embed"):
        load(federation)
    assert counts(embed(federation)) == (2, 2, 0)
    after = load(federation)
    for mine, other in zip(after.embedding, before.embedding, strict=True):
        assert torch.equal(mine, other)


def test_two_caches_hold_the_same_bits(federation):
    site, study = opened(federation)
    data = []
    for name in ("one", "other"):
        own = replace(site, cache=federation / name)
        embed_site(own, study)
        data.append(load_data(own, study))
    for mine, other in zip(data[0].embedding, data[1].embedding, strict=True):
        assert torch.equal(mine, other)


def test_a_scan_that_is_not_embedded_yet_is_named_by_its_row(federation):
    with pytest.raises(DataError, match=r"data row 1: the scan of t1 .*mmare-site embed"):
        load(federation)
    embed(federation)
    write_scan(federation / "elm" / "c.nii.gz", seed=78)
    with pytest.raises(DataError, match=r"data row 2: the scan of t1 .*mmare-site embed"):
        load(federation)


# What cannot be used


def no_file(_path: Path) -> None:
    """Nothing is written."""


def empty_file(path: Path) -> None:
    path.write_bytes(b"")


def text_file(path: Path) -> None:
    path.write_text("this is no image")


def truncated(path: Path) -> None:
    content = write_scan(path).read_bytes()
    path.write_bytes(content[: len(content) // 2])


def damaged_inside(path: Path) -> None:
    content = bytearray(write_scan(path).read_bytes())
    content[len(content) // 2] ^= 0xFF
    path.write_bytes(content)


def another_format(path: Path) -> None:
    path.write_bytes(gzip.compress(b"not an image" * 100))


def four_dimensional(path: Path) -> None:
    write_scan(path, shape=(6, 6, 6, 2))


def flat_picture(path: Path) -> None:
    nib.save(nib.Nifti1Image(np.ones((6, 6), np.uint8), np.eye(4)), path)


def constant(path: Path) -> None:
    nib.save(nib.Nifti1Image(np.full((6, 6, 6), 9, np.uint8), np.eye(4)), path)


def all_zero(path: Path) -> None:
    nib.save(nib.Nifti1Image(np.zeros((6, 6, 6), np.uint8), np.eye(4)), path)


def not_finite(path: Path) -> None:
    nib.save(nib.Nifti1Image(np.full((6, 6, 6), np.nan, np.float32), np.eye(4)), path)


def empty_folder(path: Path) -> None:
    path.mkdir()


def folder_of_text(path: Path) -> None:
    path.mkdir()
    (path / "readme.txt").write_text("no scan here")


BAD = [
    pytest.param(no_file, "unreadable-file", "FileNotFoundError.", id="missing"),
    pytest.param(empty_file, "not-nifti", "", id="empty"),
    pytest.param(text_file, "not-nifti", "", id="text"),
    pytest.param(truncated, "truncated-pixel-data", "", id="truncated"),
    pytest.param(damaged_inside, "(damaged|truncated)-pixel-data", "", id="damaged"),
    pytest.param(another_format, "not-nifti", "", id="another format"),
    pytest.param(four_dimensional, "four-dimensional", "The shape is 6 x 6 x 6 x 2.", id="4-D"),
    pytest.param(flat_picture, "too-few-slices", "The shape is 6 x 6.", id="2-D"),
    pytest.param(constant, "constant-volume", "", id="constant"),
    pytest.param(all_zero, "empty-volume", "", id="all zero"),
    pytest.param(not_finite, "non-finite-voxels", "", id="not finite"),
    pytest.param(empty_folder, "no-fitting-series", "No usable series.", id="empty folder"),
    pytest.param(folder_of_text, "no-fitting-series", "No usable series.", id="folder of text"),
]


@pytest.fixture
def with_bad(tmp_path):
    """Makes a site of three patients; the second one's first contrast is what ``spoil`` writes."""

    def make(spoil) -> Path:
        folder = write_site(
            tmp_path / "federation",
            [{"t1": "a.nii.gz"}, {"t1": "secret-name.nii.gz", "t2": "b.nii.gz"}, {"t1": "c.nii.gz"}],
        )
        for seed, name in enumerate(("a.nii.gz", "b.nii.gz", "c.nii.gz")):
            write_scan(folder / "elm" / name, seed)
        spoil(folder / "elm" / "secret-name.nii.gz")
        return folder

    return make


@pytest.mark.parametrize(("spoil", "code", "detail"), BAD)
def test_a_bad_scan_is_named_once_and_the_rest_goes_on(with_bad, spoil, code, detail):
    folder = with_bad(spoil)
    report = embed(folder)
    assert counts(report) == (3, 0, 1)
    (refusal,) = report.refused
    assert (refusal.modality, refusal.row) == ("t1", 1)
    assert re.fullmatch(code, refusal.reason)
    assert refusal.detail == detail
    assert refusal.sentence == f"{explain(refusal.reason)} {detail}".strip()
    assert "\n" not in refusal.sentence
    assert "secret-name" not in refusal.sentence  # rows only
    assert read_record(opened(folder)[0].cache).modalities["t1"].refused == {refusal.reason: 1}
    data = load(folder)
    assert data.present.tolist() == [[True, False], [False, True], [True, False]]
    assert data.embedding[0][1].abs().sum() == 0


@pytest.mark.parametrize(("spoil", "code", "detail"), [BAD[0], BAD[3], BAD[8], BAD[12]])
def test_a_reason_is_the_same_the_second_time_and_the_encoder_stays_shut(
    with_bad, request, spoil, code, detail
):
    folder = with_bad(spoil)
    first = embed(folder)
    request.getfixturevalue("no_encoder")
    second = embed(folder)
    assert counts(second) == (0, 3, 1)
    assert second.refused == first.refused
    assert (second.refused[0].reason, second.refused[0].detail) == (code, detail)


def test_an_embedding_that_is_not_finite_is_a_refusal_for_good(federation, monkeypatch, request):
    class Broken:
        def encode(self, volumes):
            return torch.full((len(volumes), WIDTH), torch.inf)

    with monkeypatch.context() as patch:
        patch.setitem(ENCODERS, ENCODER, replace(REAL, open_volume=lambda _source: Broken()))
        first = embed(federation)
    assert {refusal.reason for refusal in first.refused} == {ScanReason.NON_FINITE_EMBEDDING}
    request.getfixturevalue("no_encoder")
    assert embed(federation).refused == first.refused


@pytest.mark.parametrize("spoil", [no_file, truncated, constant])
def test_a_scan_that_was_mended_is_encoded(with_bad, spoil):
    folder = with_bad(spoil)
    embed(folder)
    write_scan(folder / "elm" / "secret-name.nii.gz", seed=9)
    assert counts(embed(folder)) == (1, 3, 0)
    assert load(folder).present.tolist() == [[True, False], [True, True], [True, False]]


@pytest.mark.parametrize("spoil", [no_file, truncated, constant])
def test_a_patient_whose_only_scan_is_refused_is_named_by_the_row(tmp_path, spoil):
    folder = write_site(tmp_path / "federation", [{"t1": "a.nii.gz"}, {"t1": "b.nii.gz"}])
    write_scan(folder / "elm" / "a.nii.gz")
    spoil(folder / "elm" / "b.nii.gz")
    assert counts(embed(folder)) == (1, 0, 1)
    with pytest.raises(DataError, match=r"data row 2 has none of the study's modalities \(t1, t2\)"):
        load(folder)


def test_bad_scans_are_listed_by_their_own_rows(tmp_path):
    folder = write_site(tmp_path / "federation", [{"t1": f"{row}.nii.gz"} for row in range(6)])
    for row in range(6):
        write_scan(folder / "elm" / f"{row}.nii.gz", row)
    for row, spoil in ((1, truncated), (2, constant), (5, text_file)):
        spoil(folder / "elm" / f"{row}.nii.gz")
    report = embed(folder)
    assert counts(report) == (3, 0, 3)
    assert sorted(refusal.row for refusal in report.refused) == [1, 2, 5]


def test_a_scan_that_comes_twice_gives_the_same_bits_however_often_one_stopped(tmp_path):
    folder = write_site(tmp_path / "federation", [{"t1": "a.nii"}, {"t1": "b.nii"}, {"t1": "c.nii"}])
    for name, seed in (("a.nii", 1), ("b.nii", 1), ("c.nii", 2)):  # a duplicate under another name
        write_scan(folder / "elm" / name, seed)
    site, study = opened(folder)
    assert embed_site(site, study).refused == ()
    whole = load(folder).embedding[0]
    own = replace(site, cache=folder / "stopped")

    class Stopped(Exception):  # noqa: N818 - no error
        pass

    def stop(done: int, _total: int) -> None:
        if done == 1:
            raise Stopped

    with pytest.raises(Stopped):
        embed_site(own, study, stop)
    embed_site(own, study)
    assert torch.equal(load_data(own, study).embedding[0], whole)


# Folders of DICOM files


def write_series(folder: Path, seed: int = 0, **more: object) -> Path:
    save(stack(values(5, rows=12, columns=10, seed=seed) + 1, **more), folder)
    return folder


def test_a_folder_of_dicom_files_is_converted_and_encoded(tmp_path, request):
    folder = write_site(tmp_path / "federation", [{"t1": "series"}, {"t1": "a.nii.gz"}])
    write_series(folder / "elm" / "series")
    write_scan(folder / "elm" / "a.nii.gz")
    before = sorted((folder / "elm" / "series").iterdir())
    assert counts(embed(folder)) == (2, 0, 0)
    assert sorted((folder / "elm" / "series").iterdir()) == before  # only read
    first = load(folder).embedding[0]
    write_series(folder / "elm" / "series", seed=5)
    with pytest.raises(DataError, match="data row 1"):
        load(folder)
    assert counts(embed(folder)) == (1, 1, 0)
    second = load(folder).embedding[0]
    assert not torch.equal(first[0], second[0])
    assert torch.equal(first[1], second[1])
    request.getfixturevalue("no_encoder")
    assert counts(embed(folder)) == (0, 2, 0)


def test_a_folder_of_several_patients_is_one_line_and_the_rest_goes_on(tmp_path):
    folder = write_site(tmp_path / "federation", [{"t1": "series"}, {"t1": "a.nii.gz"}])
    write_series(folder / "elm" / "series" / "one", name="one", PatientID="P-1")
    write_series(folder / "elm" / "series" / "two", name="two", PatientID="P-2", seed=4)
    write_scan(folder / "elm" / "a.nii.gz")
    report = embed(folder)
    assert counts(report) == (1, 0, 1)
    assert report.refused[0].reason is ScanReason.OTHER
    assert "several patients" in report.refused[0].sentence


def test_a_conversion_that_was_cut_off_is_done_again(tmp_path):
    folder = write_site(tmp_path / "federation", [{"t1": "series"}])
    write_series(folder / "elm" / "series")
    embed(folder)
    whole = load(folder).embedding[0]
    site, _ = opened(folder)
    for file in site.cache.rglob("*"):
        if file.is_file() and file.suffix != ".json":
            file.write_bytes(file.read_bytes()[:40])
    assert counts(embed(folder)) == (1, 0, 0)
    assert torch.equal(load(folder).embedding[0], whole)


# The disk and the machine


@pytest.fixture
def small_disk(tmp_path):
    """A real file system of 512 KiB."""
    folder = tmp_path / "disk"
    folder.mkdir()
    command = ["mount", "-t", "tmpfs", "-o", "size=512k", "tmpfs", str(folder)]
    if os.geteuid() != 0:
        pytest.skip("only root mounts")
    try:
        done = subprocess.run(command, capture_output=True, check=False)
    except FileNotFoundError:
        pytest.skip("there is no mount")
    if done.returncode:
        pytest.skip("this machine mounts nothing")
    yield folder
    subprocess.run(["umount", str(folder)], check=True)


def fill(folder: Path, but: int) -> Path:
    """Fill a disk up to ``but`` bytes."""
    filler = folder / "filler"
    room = os.statvfs(folder)
    filler.write_bytes(bytes(room.f_bavail * room.f_frsize - but))
    return filler


def test_a_full_disk_is_one_sentence_and_the_next_run_goes_on(federation, small_disk):
    site, study = opened(federation)
    site = replace(site, cache=small_disk / "cache")
    site.cache.mkdir()
    filler = fill(small_disk, but=12_288)
    with pytest.raises(RunError, match="disk is full") as caught:
        embed_site(site, study)
    assert "\n" not in str(caught.value)
    filler.unlink()
    kept = list(site.cache.rglob("*.npy"))
    report = embed_site(site, study)
    assert report.refused == ()
    assert (report.encoded, report.cached) == (4 - len(kept), len(kept))
    assert load_data(site, study).present.sum() == 4


def test_a_disk_full_from_the_start_refuses_no_scan_for_good(with_bad, small_disk):
    folder = with_bad(constant)
    site, study = opened(folder)
    site = replace(site, cache=small_disk / "cache")
    site.cache.mkdir()
    filler = fill(small_disk, but=0)
    with pytest.raises(RunError, match="disk is full"):
        embed_site(site, study)
    filler.unlink()
    report = embed_site(site, study)
    assert counts(report)[::2] == (3, 1)
    assert report.refused[0].reason is ScanReason.CONSTANT_VOLUME


def test_a_refusal_that_could_not_be_written_is_found_again(tmp_path, small_disk):
    folder = write_site(tmp_path / "federation", [{"t1": "bad.nii.gz"}, {"t1": "a.nii.gz"}])
    constant(folder / "elm" / "bad.nii.gz")
    write_scan(folder / "elm" / "a.nii.gz")
    site, study = opened(folder)
    site = replace(site, cache=small_disk / "cache")
    site.cache.mkdir()
    embed_site(site, study, lambda *_: None)
    for path in site.cache.rglob("*"):  # the folders stay, so that only the file itself needs room
        if path.is_file():
            path.unlink()
    filler = fill(small_disk, but=0)
    with pytest.raises(RunError, match="disk is full"):
        embed_site(site, study)
    filler.unlink()
    report = embed_site(site, study)
    assert counts(report) == (1, 0, 1)
    assert report.refused[0].reason is ScanReason.CONSTANT_VOLUME


def test_a_full_disk_while_a_folder_is_converted_is_no_refusal(tmp_path, small_disk):
    folder = write_site(tmp_path / "federation", [{"t1": "series"}])
    write_series(folder / "elm" / "series")
    site, study = opened(folder)
    site = replace(site, cache=small_disk / "cache")
    site.cache.mkdir()
    filler = fill(small_disk, but=0)
    with pytest.raises(RunError):
        embed_site(site, study)
    filler.unlink()
    assert counts(embed_site(site, study)) == (1, 0, 0)


def test_what_the_system_would_not_give_is_tried_again(with_bad, monkeypatch):
    """A disk that is away for a moment, or rights that come later, change no file."""
    folder = with_bad(lambda path: write_scan(path, 9))
    site, study = opened(folder)
    real = nib.load

    def away(path, *arguments, **more):
        if Path(path).name.startswith("secret"):
            raise PermissionError(13, "Permission denied")
        return real(path, *arguments, **more)

    with monkeypatch.context() as patch:
        patch.setattr(nib, "load", away)
        assert counts(embed_site(site, study)) == (3, 0, 1)
    assert counts(embed_site(site, study)) == (1, 3, 0)


def test_an_encoder_that_nobody_has_is_one_sentence(federation):
    _, study = opened(federation)
    first, *others = study.modalities
    unknown = replace(study, modalities=(replace(first, encoder="nobody-has-it"), *others))
    with pytest.raises(DataError, match="nobody-has-it"):
        embed(federation, unknown)


def test_a_modality_without_its_column_is_one_sentence(federation):
    file = federation / "elm" / "patients.csv"
    file.write_text(file.read_text().replace("t2", "t3", 1))
    with pytest.raises(DataError, match="modality t2 needs a column of scans, found 't2'"):
        embed(federation)
