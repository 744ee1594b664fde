"""Several scans, or vectors, of one modality of a patient."""

from dataclasses import replace
from itertools import permutations

import nibabel
import numpy as np
import pytest
import torch

from client.data.check import check_site
from client.data.dataset import load_data
from client.data.embed import embed_site
from client.data.scan_list import scans_of
from client.data.table_version import TableVersion
from mmare.errors import DataError
from mmare.study.choices import Kind, Scans
from mmare.study.specs import ModalitySpec
from sites.config import load_site
from sites.manifest import load_manifest
from tests.federations import tiny_study

SITE = """[site]
id = "ash"
[data]
manifest = "patients.csv"
[modality.ct]
"""
T1 = ModalitySpec("ct", Kind.VOLUME, 512, "med3d-resnet18-random", size=(8, 16, 16), scans=Scans.MEAN)
ONE = {Scans.ONE: ["zoe/b.nii", "adam/c.nii"], Scans.MEAN: ["zoe/b.nii", "zoe/a.nii", "adam/c.nii"]}


def written(folder, source, patients="patient_id,label,split\nzoe,yes,train\nadam,no,train\nmia,no,val\n"):
    (folder / "patients.csv").write_text(patients)
    (folder / "site.toml").write_text(SITE + source)
    return load_site(folder / "site.toml")


def study_of(scans=Scans.MEAN, kind=Kind.FEATURES, width=3):
    ct = ModalitySpec("ct", kind, width, "given" if kind is Kind.FEATURES else T1.encoder, scans=scans)
    return replace(tiny_study(), modalities=(ct,))


# Vectors


def ct_of(folder, rows, scans=Scans.MEAN):
    (folder / "ct.csv").write_text("patient_id,f0,f1,f2\n" + "".join(f"{row}\n" for row in rows))
    site = written(folder, 'file = "ct.csv"\n', "patient_id,label,split\nzoe,yes,train\nadam,no,val\n")
    return load_data(site, study_of(scans)).embedding[0]


def test_neither_order_nor_duplicates_of_scans_change_a_bit(tmp_path):
    bag = [f"zoe,{','.join(map(str, row))}" for row in np.random.default_rng(2).normal(size=(4, 3))]
    orders = [*permutations(bag)][::5]
    found = {ct_of(tmp_path, ["adam,1,2,3", *order]).numpy().tobytes() for order in orders}
    found.add(ct_of(tmp_path, [*bag, "adam,1,2,3", *bag[:2], "adam,1,2,3"]).numpy().tobytes())
    assert len(found) == 1
    mean = np.mean([[float(cell) for cell in row.split(",")[1:]] for row in bag], axis=0)
    np.testing.assert_allclose(ct_of(tmp_path, [*bag, "adam,1,2,3"])[0].numpy(), mean, rtol=1e-6)


def test_one_scan_is_itself_and_blank_cells_are_left_out_of_the_mean(tmp_path):
    found = ct_of(tmp_path, ["zoe,0.1,2,", "zoe,0.3,,", "adam,0.1,0.2,0.3"])
    assert found[1].tolist() == torch.tensor([0.1, 0.2, 0.3]).tolist()
    torch.testing.assert_close(found[0], torch.tensor([0.2, 2.0, torch.nan]), equal_nan=True)


def test_a_study_of_one_scan_refuses_a_patient_with_two_rows(tmp_path):
    with pytest.raises(DataError, match="occurs twice, expected one vector per patient"):
        ct_of(tmp_path, ["zoe,1,2,3", "zoe,4,5,6"], Scans.ONE)


# Scans

TABLE = """patient_id,modality,file,date
adam,ct,adam/c.nii,
zoe,ct,zoe/a.nii,2024-05-01
zoe,mri,zoe/m.nii,2025-05-01
zoe,ct,zoe/b.nii,2025-01-31
zoe,ct,zoe/b.nii,2023-01-31
"""
COLUMNS = """patient_id,label,split,last,first
zoe,yes,train,zoe/b.nii,zoe/a.nii
adam,no,train,adam/c.nii,
mia,no,val,,
"""


@pytest.mark.parametrize("scans", [Scans.ONE, Scans.MEAN])
@pytest.mark.parametrize("source", ["columns", "table", "folder"])
def test_columns_a_table_and_folders_name_the_same_scans(tmp_path, source, scans):
    (tmp_path / "scans.csv").write_text(TABLE)
    wanted = ONE[scans]
    if source == "columns":
        site = written(tmp_path, 'columns = ["last", "first"]\n', COLUMNS)
    elif source == "table":
        site = written(tmp_path, 'table = "scans.csv"\n')
    else:  # by name, where the first is the first
        site = written(tmp_path, 'folder = "scans"\n')
        for name in ("zoe/a.nii", "zoe/b.nii", "adam/c.nii"):
            (tmp_path / "scans" / name).parent.mkdir(parents=True, exist_ok=True)
            (tmp_path / "scans" / name).touch()
        first = {"zoe/b.nii": "zoe/a.nii"}
        wanted = [f"scans/{name}" for name in ONE[Scans.MEAN]]
        wanted = (
            sorted(wanted[:2]) + wanted[2:]
            if scans is Scans.MEAN
            else [f"scans/{first.get(name, name)}" for name in ONE[Scans.ONE]]
        )
    study = study_of(scans, Kind.VOLUME, 512)
    found = scans_of(site, study, load_manifest(site.manifest, study))
    assert [str(scan.path.relative_to(tmp_path)) for scan in found] == wanted


@pytest.mark.parametrize(
    ("change", "sentence"),
    [
        pytest.param(
            ("adam,ct", "eve,ct"),
            r"scans.csv, row 1 \(line 2\): patient_id is 'eve', who is not in patients.csv",
            id="patient",
        ),
        pytest.param(
            ("2024-05-01", "1/5/24"), r"row 2 .*: date is '1/5/24', expected one such as", id="date"
        ),
        pytest.param(("adam/c.nii", ""), r"row 1 .*: file is blank", id="file"),
        pytest.param((",modality,", ",kind,"), r"scans.csv: no column 'modality'", id="column"),
    ],
)
def test_a_table_of_scans_that_cannot_be_used_is_refused(tmp_path, change, sentence):
    (tmp_path / "scans.csv").write_text(TABLE.replace(*change))
    site = written(tmp_path, 'table = "scans.csv"\n')
    study = study_of(kind=Kind.VOLUME, width=512)
    with pytest.raises(DataError, match=sentence):
        scans_of(site, study, load_manifest(site.manifest, study))


def test_a_changed_table_of_scans_is_another_version(tmp_path):
    (tmp_path / "scans.csv").write_text(TABLE)
    version = TableVersion.of(written(tmp_path, 'table = "scans.csv"\n'))
    before = version()
    (tmp_path / "scans.csv").write_text(TABLE.replace("2024", "2022"))
    assert version() != before


def test_scans_are_encoded_each_and_their_mean_is_the_patients(tmp_path):
    for name in ("zoe/a.nii", "zoe/b.nii", "adam/c.nii", "zoe/again.nii"):
        seed = {"zoe/again.nii": "zoe/a.nii"}.get(name, name)
        (tmp_path / "scans" / name).parent.mkdir(parents=True, exist_ok=True)
        voxels = np.random.default_rng([*seed.encode()]).normal(size=(8, 10, 10)).astype(np.float32)
        nibabel.save(nibabel.Nifti1Image(voxels, np.eye(4)), tmp_path / "scans" / name)
    patients = "patient_id,label,split\nzoe,yes,train\nadam,no,train\n"
    site = written(tmp_path, 'folder = "scans"\n', patients)
    study = replace(tiny_study(), modalities=(T1,))
    assert embed_site(site, study).encoded == 4
    (found,) = check_site(site, study)[1]
    assert found.usable.tolist() == [True, True]
    mean = load_data(site, study).embedding[0]
    (tmp_path / "scans" / "zoe" / "again.nii").unlink()
    assert torch.equal(load_data(site, study).embedding[0], mean)
    one = replace(study, modalities=(replace(T1, scans=Scans.ONE),))
    single = load_data(site, one).embedding[0]
    assert torch.equal(single[1], mean[1])
    assert not torch.equal(single[0], mean[0])
