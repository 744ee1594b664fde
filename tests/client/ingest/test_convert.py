"""The command's whole path: names, second runs, folders that do not fit, the report."""

import json
import shutil
import signal
import subprocess
import sys

import nibabel as nib
import numpy as np
import pytest
import SimpleITK as sitk  # noqa: N813  its own manual's name

from client.ingest import convert as convert_module
from client.ingest.choose import SeriesRule
from client.ingest.convert import convert_folder, write_volume
from client.ingest.names import OwnedNames
from client.ingest.nifti import read_nifti
from client.ingest.reasons import ScanReason
from client.ingest.report import Outcome
from client.ingest.volume import Plane, Volume
from mmare.errors import InputError, RunError
from tests.client.ingest.helpers import convert, only, read_back
from tests.client.ingest.phantoms import CORONAL, save, stack, values


def _snapshot(folder):
    return {path.name: path.read_bytes() for path in folder.iterdir()}


def test_two_series_of_one_name_get_two_files(tmp_path):
    save(stack(values(3), name="a"), tmp_path / "in" / "a")
    save(stack(values(4), name="b"), tmp_path / "in" / "b")
    report = convert(tmp_path)
    assert sorted(entry.output for entry in report.series) == ["5_phantom-3d.nii.gz", "5_phantom-3d_2.nii.gz"]


def test_second_run_changes_nothing(tmp_path):
    save(stack(values(3), name="a"), tmp_path / "in" / "a")
    save(stack(values(4), name="b"), tmp_path / "in" / "b")
    convert(tmp_path)
    first = _snapshot(tmp_path / "out")
    convert(tmp_path)
    assert _snapshot(tmp_path / "out") == first


def test_a_new_series_takes_no_name_of_an_old_one(tmp_path):
    for name in "bcd":
        save(stack(values(3), name=name), tmp_path / "in" / name)
    before = {entry.series_uid: entry.output for entry in convert(tmp_path).series}
    save(stack(values(3), name="a"), tmp_path / "in" / "a")
    shutil.rmtree(tmp_path / "in" / "c")
    after = {entry.series_uid: entry.output for entry in convert(tmp_path).series}
    kept = before.keys() & after.keys()
    assert len(kept) == 2
    assert all(before[uid] == after[uid] for uid in kept)
    (new,) = after.keys() - before.keys()
    assert after[new] not in before.values()  # the file of the series that went away is still its own


def test_files_of_others_are_not_touched(tmp_path):
    save(stack(values(3)), tmp_path / "in")
    (tmp_path / "out").mkdir()
    theirs = tmp_path / "out" / "5_phantom-3d.nii.gz"
    theirs.write_text("not ours")
    assert only(convert(tmp_path)).output == "5_phantom-3d_2.nii.gz"
    assert theirs.read_text() == "not ours"


def test_volume_of_a_series_that_broke_is_removed(tmp_path):
    save(stack(values(4)), tmp_path / "in")
    output = tmp_path / "out" / only(convert(tmp_path)).output
    assert output.exists()
    path = tmp_path / "in" / "001.dcm"
    path.write_bytes(path.read_bytes()[:-10])
    assert only(convert(tmp_path)).reasons == (ScanReason.TRUNCATED_PIXEL_DATA,)
    assert not output.exists()


def test_killed_conversion_is_taken_up(tmp_path, monkeypatch):
    save(stack(values(3)), tmp_path / "in")
    written = convert_module.write_volume

    def killed(volume, path):
        written(volume, path)
        raise KeyboardInterrupt

    monkeypatch.setattr(convert_module, "write_volume", killed)
    with pytest.raises(KeyboardInterrupt):
        convert(tmp_path)
    monkeypatch.setattr(convert_module, "write_volume", written)
    assert json.loads((tmp_path / "out" / "report.json").read_text())["finished"] is False
    assert only(convert(tmp_path)).output == "5_phantom-3d.nii.gz"
    assert len(list((tmp_path / "out").iterdir())) == 2


def test_a_series_that_did_not_change_is_not_converted_again(tmp_path, monkeypatch):
    for name in "ab":
        save(stack(values(3), name=name), tmp_path / "in" / name)
    first = convert(tmp_path)
    made = []
    monkeypatch.setattr(convert_module, "make_volume", made.append)
    assert convert(tmp_path) == first
    assert made == []


@pytest.mark.system
def test_killed_conversion_goes_on_where_it_was(tmp_path):
    for number in range(40):
        save(stack(values(3, seed=number), name=f"s{number}"), tmp_path / "in" / str(number))
    program = (
        "import os, signal, sys\nfrom pathlib import Path\n"
        "from client.ingest import convert as c\nc._KEEP_S = 0\n"
        "def tell(stage, done, total):\n"
        "    if (stage, done) == ('convert', 20): os.kill(os.getpid(), signal.SIGKILL)\n"
        "c.convert_folder(Path(sys.argv[1]), Path(sys.argv[2]), tell)"
    )
    command = [sys.executable, "-c", program, tmp_path / "in", tmp_path / "out"]
    assert subprocess.run(command, check=False).returncode == -signal.SIGKILL
    before = {path: path.stat().st_mtime_ns for path in (tmp_path / "out").glob("[!.]*.nii.gz")}
    report = convert(tmp_path)
    assert len(report.converted) == 40
    untouched = [path for path, stamp in before.items() if path.stat().st_mtime_ns == stamp]
    assert len(untouched) >= 20
    assert not list((tmp_path / "out").glob(".partial*"))


def test_a_changed_slice_is_converted_again(tmp_path):
    save(stack(values(3)), tmp_path / "in")
    first = read_back(tmp_path, only(convert(tmp_path)))[0]
    save(stack(values(3, seed=7)), tmp_path / "in")
    assert not np.array_equal(read_back(tmp_path, only(convert(tmp_path)))[0], first)


def test_source_is_not_written(tmp_path):
    save(stack(values(3)), tmp_path / "in")
    before = {path: path.stat().st_mtime_ns for path in (tmp_path / "in").rglob("*")}
    convert(tmp_path)
    assert {path: path.stat().st_mtime_ns for path in (tmp_path / "in").rglob("*")} == before


@pytest.mark.parametrize("out", ["in", "in/out", "in/deep/er"])
def test_output_within_the_source_is_refused(tmp_path, out):
    save(stack(values(3)), tmp_path / "in")
    with pytest.raises(InputError, match="within"):
        convert_folder(tmp_path / "in", tmp_path / out)
    assert not (tmp_path / "in" / "report.json").exists()


def test_output_within_the_source_through_a_link_is_refused(tmp_path):
    save(stack(values(3)), tmp_path / "in")
    (tmp_path / "link").symlink_to(tmp_path / "in")
    with pytest.raises(InputError, match="within"):
        convert_folder(tmp_path / "in", tmp_path / "link" / "out")


def test_absent_source(tmp_path):
    with pytest.raises(InputError, match="there is no folder"):
        convert_folder(tmp_path / "nothing", tmp_path / "out")
    assert not (tmp_path / "out").exists()


def test_output_that_is_a_file(tmp_path):
    save(stack(values(3)), tmp_path / "in")
    (tmp_path / "out").write_text("")
    with pytest.raises(InputError, match="is a file"):
        convert(tmp_path)


def test_output_of_another_source_is_refused(tmp_path):
    save(stack(values(3)), tmp_path / "in")
    convert(tmp_path)
    save(stack(values(3)), tmp_path / "elsewhere")
    with pytest.raises(InputError, match="another folder"):
        convert_folder(tmp_path / "elsewhere", tmp_path / "out")


@pytest.mark.parametrize("content", ["{}", "[1]", "no json"])
def test_report_that_is_not_ours(tmp_path, content):
    save(stack(values(3)), tmp_path / "in")
    (tmp_path / "out").mkdir()
    (tmp_path / "out" / "report.json").write_text(content)
    with pytest.raises(InputError, match="not one of ours"):
        convert(tmp_path)


def test_empty_folder_is_no_error(tmp_path):
    (tmp_path / "in").mkdir()
    report = convert(tmp_path)
    assert (report.series, report.ignored, report.anything_refused) == ((), (), False)


def test_full_disk_is_one_sentence(tmp_path, monkeypatch):
    def full(*_arguments: object, **_keywords: object):
        raise RuntimeError("sitk::ERROR: write failed")

    save(stack(values(3)), tmp_path / "in")
    monkeypatch.setattr(sitk, "WriteImage", full)
    with pytest.raises(RunError, match="disk full"):
        convert(tmp_path)
    assert [path.name for path in (tmp_path / "out").iterdir()] == ["report.json"]


def test_a_failure_nobody_foresaw_stops_only_its_series(tmp_path, monkeypatch):
    save(stack(values(3), name="a", SeriesNumber=1), tmp_path / "in" / "a")
    save(stack(values(3), name="b", SeriesNumber=2), tmp_path / "in" / "b")
    made = convert_module.make_volume

    def fails(part):
        if part.frames[0].file.series_number == 1:
            raise ZeroDivisionError
        return made(part)

    monkeypatch.setattr(convert_module, "make_volume", fails)
    report = convert(tmp_path)
    assert [entry.reasons for entry in report.series] == [(ScanReason.NOT_CONVERTED,), ()]
    assert report.series[0].detail == "ZeroDivisionError"


def test_report_says_what_became_of_everything(tmp_path):
    save(stack(values(3)), tmp_path / "in")
    save(stack(values(2), name="short", SeriesNumber=6), tmp_path / "in" / "short")
    (tmp_path / "in" / "readme.txt").write_text("hello")
    report = convert(tmp_path)
    content = json.loads((tmp_path / "out" / "report.json").read_text())
    assert content["counts"] == {
        "files": 6,
        "ignored_files": {"not-dicom": 1},
        "series": 2,
        "converted": 1,
        "refused": {"too-few-slices": 1},
    }
    converted, refused = content["series"]
    assert converted["outcome"] == "converted"
    assert converted["size"] == [8, 6, 3]
    assert (converted["orientation"], converted["plane"]) == ("LPS", "axial")
    assert refused["reasons"][0]["code"] == "too-few-slices"
    assert refused["reasons"][0]["sentence"].startswith("Fewer than three")
    assert content["ignored_files"][0]["outcome"] == Outcome.IGNORED_FILE
    assert report.anything_refused


def test_progress_reaches_the_end(tmp_path):
    save(stack(values(3)), tmp_path / "in")
    seen = []
    convert_folder(tmp_path / "in", tmp_path / "out", lambda *step: seen.append(step))
    assert seen[0] == ("scan", 0, 3)
    assert ("scan", 3, 3) in seen
    assert seen[-1] == ("convert", 1, 1)


def test_rules_are_answered_in_the_report(tmp_path):
    save(stack(values(3), name="a", SeriesNumber=1, SeriesDescription="T1"), tmp_path / "in" / "a")
    save(stack(values(6), name="b", SeriesNumber=2, orientation=CORONAL), tmp_path / "in" / "b")
    rules = {
        "axial": SeriesRule(plane=Plane.AXIAL),
        "rest": SeriesRule(),
        "none": SeriesRule(description="zzz"),
    }
    convert_folder(tmp_path / "in", tmp_path / "out", rules=rules)
    chosen = json.loads((tmp_path / "out" / "report.json").read_text())["chosen"]
    assert [(line["modality"], line["output"]) for line in chosen] == [
        ("axial", "1_t1.nii.gz"),
        ("rest", "2_phantom-3d.nii.gz"),
        ("none", None),
    ]
    assert chosen[0]["rule"]["plane"] == "axial"


def test_written_volume_is_read_back_as_it_was(tmp_path):
    turn = np.array([[0.8, -0.48, 0.36], [0.6, 0.64, -0.48], [0.0, 0.6, 0.8]])
    affine = np.eye(4)
    affine[:3, :3] = turn * [0.7, 0.9, 2.5]
    affine[:3, 3] = (-91.25, 120.5, -33.0)
    for voxels in (values(4).astype(np.int16), values(4).astype(np.float32) / 7):
        write_volume(Volume(voxels, affine), tmp_path / "a.nii.gz")
        back = read_nifti(tmp_path / "a.nii.gz")
        assert back.voxels.dtype == voxels.dtype
        np.testing.assert_array_equal(back.voxels, voxels)
        np.testing.assert_allclose(back.affine_mm, affine, atol=1e-4)
    header = nib.load(tmp_path / "a.nii.gz").header
    assert (int(header["sform_code"]), int(header["qform_code"])) == (1, 1)


@pytest.mark.parametrize(
    ("description", "expected"),
    [
        ("../../etc/passwd", "etc-passwd"),
        ("Schädel  nativ", "schadel-nativ"),
        ("脳", "series"),
        ("x" * 300, "x" * 60),
        ("<script>", "script"),
    ],
)
def test_a_description_becomes_a_file_name(tmp_path, description, expected):
    name = OwnedNames(tmp_path, "digest").name(("study", "series", 3, 1), description)
    assert name == f"3_{expected}.nii.gz"
