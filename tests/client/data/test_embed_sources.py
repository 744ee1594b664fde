"""How a site holds its scans: masks, series rules, slides, and what of it changes an embedding."""

import sys
from pathlib import Path

import nibabel as nib
import numpy as np
import pytest
import torch
from pydicom.dataset import FileDataset, FileMetaDataset
from pydicom.uid import ExplicitVRLittleEndian, MRImageStorage, generate_uid

from client.data.dataset import load_data
from client.data.embed import embed_site
from client.data.scan_list import scans_of
from client.encoders.resnet50_wsi import TruncatedResNet50
from client.encoders.weights import import_weights
from client.ingest.reasons import ScanReason
from mmare.errors import DataError
from mmare.study.choices import Kind, MaskUse
from mmare.study.specs import ModalitySpec
from mmare.study.study import Study
from sites.config import load_site
from sites.manifest import load_patients
from tests.data_folder import data_folder

RANDOM = "med3d-resnet18-random"


def volume(seed=0, shape=(16, 18, 12)):
    generator = np.random.default_rng(seed)
    return generator.uniform(50, 100, shape).astype(np.float32)


def write(path: Path, voxels) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    image = nib.Nifti1Image(np.asarray(voxels, dtype=np.float32), np.eye(4))
    image.set_sform(np.eye(4), 1)
    nib.save(image, path)
    return path


def study(*names, **details):
    modalities = tuple(
        ModalitySpec(name, Kind.VOLUME, 512, RANDOM, size=(4, 8, 8), **details) for name in names
    )
    return Study("s", ("a", "b"), modalities)


def site(folder: Path, tables: str, header: str, *rows: str):
    (folder / "site.toml").write_text(f'[site]\nid = "lab"\n[data]\nmanifest = "patients.csv"\n{tables}\n')
    lines = [f"patient_id,label,split,{header}", *rows]
    (folder / "patients.csv").write_text("\n".join(lines) + "\n")
    return load_site(folder / "site.toml")


def vectors(where, wanted):
    report = embed_site(where, wanted)
    data = load_data(where, wanted)
    return report, data.embedding


@pytest.fixture
def masked(tmp_path):
    write(tmp_path / "scan.nii.gz", volume())
    inside = np.zeros((16, 18, 12))
    inside[4:12, 5:14, 3:9] = 1
    write(tmp_path / "mask.nii.gz", inside)
    write(tmp_path / "masks" / "scan.nii.gz", inside)
    return tmp_path


COLUMN = '[modality.t1]\ncolumn = "t1"\n[modality.t1.mask]\ncolumn = "brain"'
FOLDER = '[modality.t1]\ncolumn = "t1"\n[modality.t1.mask]\nfolder = "masks"'


def test_a_mask_from_a_column_a_folder_or_a_program_gives_the_same_embedding(masked):
    program = masked / "strip.py"
    program.write_text("import shutil, sys; shutil.copyfile(sys.argv[1], sys.argv[2])\n")
    command = f"{sys.executable} {program} {masked / 'mask.nii.gz'} {{output}} {{input}}"
    tables = [COLUMN, FOLDER, f'[modality.t1]\ncolumn = "t1"\n[modality.t1.mask]\ncommand = "{command}"']
    found = []
    for table in tables:
        where = site(masked, table, "t1,brain", "p,a,train,scan.nii.gz,mask.nii.gz")
        report, embedding = vectors(where, study("t1", mask=MaskUse.STRIP))
        assert report.refused == ()
        found.append(embedding[0])
    assert torch.equal(found[0], found[1])
    assert torch.equal(found[0], found[2])
    plain = vectors(site(masked, COLUMN, "t1,brain", "p,a,train,scan.nii.gz,mask.nii.gz"), study("t1"))[1][0]
    cropped = vectors(
        site(masked, COLUMN, "t1,brain", "p,a,train,scan.nii.gz,mask.nii.gz"), study("t1", crop_to_mask=True)
    )[1][0]
    assert not torch.allclose(found[0], plain)
    assert not torch.allclose(cropped, plain)


@pytest.mark.slow
def test_a_changed_mask_is_encoded_again_and_nothing_else(masked):
    write(masked / "other.nii.gz", volume(1))
    rows = ("p,a,train,scan.nii.gz,mask.nii.gz", "q,b,train,other.nii.gz,masks/scan.nii.gz")
    where = site(masked, COLUMN, "t1,brain", *rows)
    wanted = study("t1", mask=MaskUse.STRIP)
    assert embed_site(where, wanted).encoded == 2
    assert embed_site(where, wanted).encoded == 0
    smaller = np.zeros((16, 18, 12))
    smaller[6:10, 6:12, 4:8] = 1
    write(masked / "mask.nii.gz", smaller)
    report = embed_site(where, wanted)
    assert (report.encoded, report.cached) == (1, 1)


def test_a_patient_without_a_mask_is_refused_by_reason_and_a_site_without_masks_at_all_by_name(masked):
    where = site(masked, COLUMN, "t1,brain", "p,a,train,scan.nii.gz,", "q,b,train,scan.nii.gz,mask.nii.gz")
    report = embed_site(where, study("t1", mask=MaskUse.STRIP))
    assert [(refusal.row, refusal.modality) for refusal in report.refused] == [(0, "t1")]
    assert report.refused[0].reason is ScanReason.NO_MASK
    bare = site(masked, '[modality.t1]\ncolumn = "t1"', "t1,brain", "p,a,train,scan.nii.gz,mask.nii.gz")
    with pytest.raises(DataError, match=r"the study wants masks of t1; expected \[modality\.t1\.mask\]"):
        scans_of(bare, study("t1", mask=MaskUse.STRIP), load_patients(bare.manifest))


@pytest.mark.slow
def test_a_mask_program_that_fails_makes_the_scan_missing_until_it_works(masked):
    table = '[modality.t1]\ncolumn = "t1"\n[modality.t1.mask]\ncommand = "{} {{input}} {{output}}"'
    program = masked / "strip.py"
    program.write_text("raise SystemExit(1)\n")
    write(masked / "other.nii.gz", volume(1))
    wanted = Study("s", ("a", "b"), (*study("t1", mask=MaskUse.STRIP).modalities, *study("t2").modalities))
    tables = table.format(f"{sys.executable} {program}") + '\n[modality.t2]\ncolumn = "t2"'
    where = site(masked, tables, "t1,t2", "p,a,train,scan.nii.gz,other.nii.gz")
    report = embed_site(where, wanted)
    assert [refusal.modality for refusal in report.refused] == ["t1"]
    assert load_data(where, wanted).present.tolist() == [[False, True]]
    program.write_text(f"import shutil, sys; shutil.copyfile({str(masked / 'mask.nii.gz')!r}, sys.argv[2])\n")
    assert embed_site(where, wanted).encoded == 1
    assert load_data(where, wanted).present.tolist() == [[True, True]]


def series(folder: Path, number: int, description: str, slices: int):
    uid, frame = generate_uid(), generate_uid()
    generator = np.random.default_rng(number)
    for index in range(slices):
        meta = FileMetaDataset()
        meta.MediaStorageSOPClassUID, meta.TransferSyntaxUID = MRImageStorage, ExplicitVRLittleEndian
        meta.MediaStorageSOPInstanceUID = generate_uid()
        data = FileDataset(None, {}, file_meta=meta, preamble=b"\0" * 128)
        data.SOPClassUID, data.SOPInstanceUID = MRImageStorage, meta.MediaStorageSOPInstanceUID
        data.StudyInstanceUID, data.SeriesInstanceUID, data.FrameOfReferenceUID = "1.2.3", uid, frame
        data.PatientID, data.Modality, data.SeriesNumber = "p", "MR", number
        data.SeriesDescription, data.InstanceNumber = description, index + 1
        data.ImageType = ["ORIGINAL", "PRIMARY", "M"]
        data.ImageOrientationPatient, data.ImagePositionPatient = [1, 0, 0, 0, 1, 0], [0, 0, 3.0 * index]
        data.PixelSpacing, data.SliceThickness = [1, 1], 3
        data.Rows, data.Columns, data.SamplesPerPixel = 16, 16, 1
        data.PhotometricInterpretation = "MONOCHROME2"
        data.BitsAllocated, data.BitsStored, data.HighBit, data.PixelRepresentation = 16, 16, 15, 0
        data.PixelData = generator.integers(100, 900, (16, 16), dtype=np.uint16).tobytes()
        data.save_as(folder / f"{number}-{index}", enforce_file_format=True)


@pytest.fixture
def exported(tmp_path):
    folder = tmp_path / "export"
    folder.mkdir()
    series(folder, 1, "t1 mprage", 8)
    series(folder, 2, "t2 tse", 12)
    return tmp_path


@pytest.mark.slow
def test_a_rule_says_which_series_of_a_folder_counts(exported):
    tables = '[modality.t1]\ncolumn = "scan"\n[modality.t1.series]\ndescription = "{}"'
    found = {}
    for words in ("mprage", "tse"):
        where = site(exported, tables.format(words), "scan", "p,a,train,export")
        report, embedding = vectors(where, study("t1"))
        assert report.encoded == 1
        found[words] = embedding[0]
    assert not torch.equal(found["mprage"], found["tse"])
    where = site(exported, tables.format("flair"), "scan", "p,a,train,export")
    assert embed_site(where, study("t1")).refused[0].reason is ScanReason.NO_FITTING_SERIES


def test_modalities_that_share_a_folder_never_take_the_same_series(exported):
    tables = '[modality.t1]\ncolumn = "scan"\n[modality.t2]\ncolumn = "scan"'
    where = site(exported, tables, "scan", "p,a,train,export")
    report, embedding = vectors(where, study("t1", "t2"))
    assert report.encoded == 2
    assert not torch.equal(embedding[0], embedding[1])


def test_a_rule_that_cannot_be_is_one_sentence(exported):
    tables = '[modality.t1]\ncolumn = "scan"\n[modality.t1.series]\nplane = "diagonal"'
    where = site(exported, tables, "scan", "p,a,train,export")
    (refusal,) = embed_site(where, study("t1")).refused
    assert refusal.reason is ScanReason.OTHER
    assert "expected plane axial" in refusal.sentence


@pytest.mark.slow
@pytest.mark.data
def test_a_slide_becomes_a_vector_and_what_is_none_a_reason(tmp_path):
    with torch.device("meta"):
        empty = TruncatedResNet50().state_dict()
    generator = torch.Generator().manual_seed(0)
    weights = {
        name: torch.rand(value.shape, generator=generator) * 0.05 + 0.01 for name, value in empty.items()
    }
    torch.save({**weights, "fc.weight": torch.zeros(2, 2)}, tmp_path / "resnet50.pth")
    assert import_weights(tmp_path / "resnet50.pth", tmp_path / "weights").name == "resnet50-wsi"
    slides = data_folder("wsi")
    rows = [
        f"{name},a,train,{(slides / name).resolve()}" for name in ("cmu-1-small-region.svs", "broken.svs")
    ]
    tables = '[modality.wsi]\ncolumn = "slide"\n[compute]\nweights = "weights"'
    where = site(tmp_path, tables, "slide", *rows)
    wanted = Study("s", ("a", "b"), (ModalitySpec("wsi", Kind.VOLUME, 1024, "resnet50-wsi"),))
    report = embed_site(where, wanted)
    assert (report.encoded, [refusal.row for refusal in report.refused]) == (1, [1])
    assert report.refused[0].reason is ScanReason.NOT_A_SLIDE
    assert embed_site(where, wanted).encoded == 0
