"""A scan as the manifest names it, whatever it is stored as, to what the encoder sees: through the cache."""

from dataclasses import replace

import nibabel as nib
import numpy as np
import torch

from client.data.dataset import load_data
from client.data.embed import embed_site
from client.data.scan_list import steps_of
from client.encoders.preprocess import VolumeSteps
from client.ingest.convert import convert_folder
from tests.client.data.test_embed import embed, load, opened, scan_study, write_scan, write_series, write_site


def test_the_study_says_size_and_window():
    modality = scan_study((8, 16, 24)).modalities[0]
    assert steps_of(modality).size == (8, 16, 24)
    assert steps_of(modality).window is None
    assert steps_of(replace(modality, window=(-79.0, 304.0))).window == (-79.0, 304.0)
    assert steps_of(replace(modality, size=())).size == VolumeSteps().size
    marks = {
        steps_of(changed).fingerprint
        for changed in (modality, replace(modality, window=(0.0, 9.0)), replace(modality, size=(8, 16, 25)))
    }
    assert len(marks) == 3


def test_how_a_volume_is_stored_changes_no_bit(tmp_path):
    """The same head packed, turned, as floats: one patient each at one place, so with the same noise."""
    folder = write_site(tmp_path / "federation", [{"t1": "scan.nii.gz"}])
    path = write_scan(folder / "elm" / "scan.nii.gz", seed=4)
    image = nib.load(path)
    voxels, affine = np.asarray(image.dataobj), image.affine
    turned = nib.Nifti1Image(voxels, affine).as_reoriented(
        nib.orientations.axcodes2ornt("PSL")  # any other order and direction of the axes
    )
    found = []
    for other in (
        nib.Nifti1Image(voxels, affine),
        nib.Nifti1Image(voxels.astype(np.float32), affine),
        turned,
    ):
        nib.save(other, path)
        embed(folder)
        found.append(load(folder).embedding[0])
    assert torch.equal(found[0], found[1])
    assert torch.equal(found[0], found[2])


def test_a_folder_of_dicom_files_is_what_convert_makes_of_it(tmp_path):
    folder = write_site(tmp_path / "federation", [{"t1": "series"}])
    write_series(folder / "elm" / "series", seed=2)
    embed(folder)
    direct = load(folder).embedding[0]
    report = convert_folder(folder / "elm" / "series", tmp_path / "converted")
    (entry,) = report.series
    manifest = folder / "elm" / "patients.csv"
    manifest.write_text(manifest.read_text().replace("series", str(tmp_path / "converted" / entry.output)))
    site, study = opened(folder)
    assert embed_site(site, study).encoded == 1
    assert torch.equal(load_data(site, study).embedding[0], direct)


def test_of_several_series_the_one_with_most_slices_is_taken(tmp_path):
    folder = write_site(tmp_path / "federation", [{"t1": "series"}])
    write_series(folder / "elm" / "series" / "long", name="long", seed=2)
    embed(folder)
    alone = load(folder).embedding[0]
    from tests.client.ingest.phantoms import save, stack, values

    save(stack(values(3, rows=12, columns=10, seed=8) + 1, name="short"), folder / "elm" / "series" / "a")
    (folder / "elm" / "series" / "notes.txt").write_text("no picture")
    assert embed(folder).encoded == 1
    assert torch.equal(load(folder).embedding[0], alone)


def test_a_window_changes_what_is_seen(tmp_path):
    folder = write_site(tmp_path / "federation", [{"t1": "scan.nii"}])
    write_scan(folder / "elm" / "scan.nii", seed=4)
    plain = scan_study()
    first, *others = plain.modalities
    windowed = replace(plain, modalities=(replace(first, window=(50.0, 120.0)), *others))
    assert embed(folder, plain).encoded == 1
    assert embed(folder, windowed).encoded == 1
    one, other = load(folder, plain), load(folder, windowed)
    assert not torch.equal(one.embedding[0], other.embedding[0])
    assert one.encoders["t1"] != other.encoders["t1"]
