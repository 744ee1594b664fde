"""What `check --read-voxels` counts as usable, `embed` takes, whatever is in the voxels."""

import nibabel as nib
import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays

from client.data.check import check_site
from client.data.embed import embed_site
from client.encoders.med3d import Med3DEncoder, random_med3d
from client.encoders.preprocess import VolumeSteps, preprocess
from client.encoders.vgg11 import SliceSteps, slices_of
from client.ingest.reasons import ScanReason, ScanRefused
from client.ingest.volume import Volume
from mmare.study.study import parse_study
from sites.config import load_site
from tests.client.data.test_embed import scan_study, write_scan, write_site
from tests.client.ingest.phantoms import save, stack, values

AFFINE = np.diag([2.0, 2.0, 3.0, 1.0])
HEAD = np.random.default_rng(0).integers(1, 99, (10, 12, 8)).astype(np.float32)
CORNER = np.indices(HEAD.shape).sum(axis=0) < 4

VOXELS = {
    "good": (HEAD, None),
    "all-nan": (np.full_like(HEAD, np.nan), ScanReason.NON_FINITE_VOXELS),
    "some-nan": (np.where(CORNER, np.nan, HEAD), ScanReason.NON_FINITE_VOXELS),
    "some-infinite": (np.where(CORNER, np.inf, HEAD), ScanReason.NON_FINITE_VOXELS),
    "zero": (np.zeros_like(HEAD), ScanReason.EMPTY_VOLUME),
    "negative": (-HEAD, ScanReason.EMPTY_VOLUME),
    "constant": (np.full_like(HEAD, 7), ScanReason.CONSTANT_VOLUME),
    "one-label": (CORNER.astype(np.uint8), ScanReason.CONSTANT_VOLUME),
    "labels": (1 + CORNER.astype(np.uint8) + 2 * (np.indices(HEAD.shape)[1] > 5), ScanReason.LABEL_MAP),
    "coarse": (HEAD // 25, None),
    "fill-value": (np.where(CORNER, np.float32(-3e38), HEAD), ScanReason.OUTLYING_VOXELS),
    "absurd": (np.where(CORNER, np.float32(3e38), HEAD), None),  # finite for the network
}
MASKS = {
    "good": (HEAD > 20, None),
    "labels": (np.where(CORNER, 3, HEAD > 20), None),
    "nan": (np.full_like(HEAD, np.nan), ScanReason.EMPTY_MASK),
    "empty": (np.zeros_like(HEAD), ScanReason.EMPTY_MASK),
    "another-grid": (np.ones((10, 12, 7)), ScanReason.MASK_GRID),
    "background-only": (CORNER, ScanReason.EMPTY_VOLUME),
}


def nifti(path, voxels):
    path.parent.mkdir(parents=True, exist_ok=True)
    nib.save(nib.Nifti1Image(voxels.astype(np.float32), AFFINE), path)


def dicom(path, voxels):
    """Whole numbers of 16 bits; other values take the place of what a scanner cannot write."""
    frames = values(8, rows=12, columns=10).copy()
    frames[:] = np.nan_to_num(voxels, nan=0, posinf=0, neginf=0).clip(0, 3000).T
    save(stack(frames), path)


def both(site, study):
    """The reason by row, None where usable, of `check` and of `embed`."""
    _, (checked,) = check_site(site, study, read_voxels=True)
    report = embed_site(site, study)
    refused = {refusal.row: refusal.reason for refusal in report.refused}
    assert checked.refused.total() == len(refused)
    assert {reason for reason, _ in checked.refused} == set(refused.values())
    assert report.encoded == int(checked.usable.sum())
    assert [row not in refused for row in range(len(checked.usable))] == checked.usable.tolist()
    return refused


@pytest.mark.parametrize("write", [nifti, dicom])
def test_check_finds_what_embed_refuses(tmp_path, write):
    study = scan_study(modalities=("t1",))
    folder = write_site(tmp_path / "fed", [{"t1": f"{name}.nii"} for name in VOXELS], study)
    for name, (voxels, _) in VOXELS.items():
        write(folder / "elm" / f"{name}.nii", voxels)
    refused = both(load_site(folder / "elm" / "site.toml"), study)
    if write is nifti:
        expected = {row: why for row, (_, why) in enumerate(VOXELS.values()) if why is not None}
        assert refused == expected
    else:
        assert set(refused.values()) == {
            ScanReason.EMPTY_VOLUME,
            ScanReason.CONSTANT_VOLUME,
            ScanReason.LABEL_MAP,
        }


def test_check_finds_the_masks_that_embed_refuses(tmp_path):
    content = scan_study(modalities=("t1",)).to_dict()
    content["modality"][0]["mask"] = "strip"
    study = parse_study(content, source="test")
    folder = write_site(tmp_path / "fed", [{"t1": f"{name}.nii"} for name in [*MASKS, "lacking"]], study)
    for name, (voxels, _) in MASKS.items():
        nifti(folder / "elm" / f"{name}.nii", np.where(CORNER, 0, HEAD))
        nifti(folder / "elm" / "masks" / f"{name}.nii", voxels)
    write_scan(folder / "elm" / "lacking.nii")
    file = folder / "elm" / "site.toml"
    file.write_text(file.read_text() + '\n[modality.t1.mask]\nfolder = "masks"\n', encoding="utf-8")
    refused = both(load_site(file), study)
    expected = {row: why for row, (_, why) in enumerate(MASKS.values()) if why is not None}
    assert refused == expected | {len(MASKS): ScanReason.UNREADABLE_FILE}


ODD = st.sampled_from([0.0, 1.0, -1.0, 7.5, 1e-45, -1e6, 1e15, 3e38, -3e38, np.nan, np.inf, -np.inf])
STEPS = (VolumeSteps((4, 8, 8)), VolumeSteps((4, 8, 8), window=(-100.0, 300.0)))


@pytest.fixture(scope="module")
def encoder():
    return Med3DEncoder(random_med3d())


@given(arrays(np.float32, (4, 5, 6), elements=ODD | st.floats(width=32), fill=st.sampled_from([0.0, 3.0])))
def test_what_preprocessing_lets_through_has_a_finite_embedding(encoder, voxels):
    volume = Volume(voxels, AFFINE)
    for steps in STEPS:
        try:
            tensor = preprocess(volume, steps, 1)
        except ScanRefused:
            continue
        assert bool(torch.isfinite(encoder.encode(tensor.unsqueeze(0))).all())
    for steps in (SliceSteps(), SliceSteps(window=(-100.0, 300.0))):
        try:
            slices = slices_of(volume, steps)
        except ScanRefused:
            continue
        assert bool(((slices >= -1e-6) & (slices <= 1 + 1e-6)).all())
