"""Federation folders: read back as written, written atomically, never over anything else."""

import os
from pathlib import Path

import numpy as np
import pandas as pd
import pytest

from mmare.errors import DataError
from mmare.study.choices import Kind, Scaling
from mmare.study.specs import ModalitySpec, PrivacySpec
from mmare.study.study import Study, load_study
from mmare.wire.messages import Split
from sites.features import load_features
from sites.federation import SiteTables, site_folders, site_id, write_federation
from sites.manifest import load_manifest

STUDY = Study(
    name="tiny",
    classes=("no", "yes"),
    positive="yes",
    seed=4,
    modalities=(
        ModalitySpec("ct", Kind.FEATURES, 70),
        ModalitySpec("lab", Kind.FEATURES, 2),
        ModalitySpec("note", Kind.TEXT, 8, "hashing-text", Scaling.L2, prompt="[Aged {age}.][ A {sex}.]"),
    ),
    privacy=PrivacySpec(min_count=0),
)
COLUMNS = {"note": ("age", "sex")}


def a_site(name="North Clinic", prefix="n", **changes: str):
    """Three patients: one has everything, one the note alone, one CT alone."""
    manifest = pd.DataFrame(
        {
            "patient_id": [f"{prefix}1", f"{prefix}2", f"{prefix}3"],
            "label": ["no", "yes", "yes"],
            "split": ["train", "val", "test"],
            "age": ["61", None, None],
            "sex": ["female", "male", None],
        }
    )
    for column, value in changes.items():
        manifest.loc[2, column] = value
    features = {
        "ct": {f"{prefix}3": np.full(70, 0.1, np.float32), f"{prefix}1": np.ones(70, np.float32)},
        "lab": {f"{prefix}1": np.array([1, 2], np.float32), "stranger": np.array([3, 4], np.float32)},
    }
    return SiteTables(name, manifest, features, COLUMNS)


def tree(folder):
    return {
        path.relative_to(folder).as_posix(): path.read_bytes() for path in folder.rglob("*") if path.is_file()
    }


def test_what_is_written_is_found(tmp_path):
    out = tmp_path / "new" / "fed"
    south = SiteTables("South", a_site(prefix="s").manifest.iloc[:2], {}, COLUMNS)
    prepared = write_federation(out, STUDY, [south, a_site()])
    assert load_study(out / "study.toml") == STUDY == prepared.study
    sites = site_folders(out)
    assert [site.id for site in sites] == ["north-clinic", "south"] == [site.id for site in prepared.sites]
    assert [site.min_count for site in sites] == [0, 0]
    north = sites[0]
    assert north.modalities["ct"].file == out / "north-clinic" / "ct.npz"
    assert north.modalities["lab"].file == out / "north-clinic" / "lab.csv"
    assert north.modalities["note"].columns == ("age", "sex")
    assert set(sites[1].modalities) == {"note"}
    manifest = load_manifest(north.manifest, STUDY, seed=0)
    assert manifest.patient_ids == ("n1", "n2", "n3")
    assert manifest.splits.tolist() == ["train", "val", "test"]
    assert manifest.table["age"].isna().tolist() == [False, True, True]
    ct = load_features(north.modalities["ct"].file, 70)
    assert set(ct) == {"n1", "n3"}
    np.testing.assert_array_equal(ct["n3"], np.full(70, 0.1, np.float32))
    assert set(load_features(north.modalities["lab"].file, 2)) == {"n1"}


def test_counts_say_what_was_written(tmp_path):
    (site,) = write_federation(tmp_path / "fed", STUDY, [a_site()]).sites
    assert site.n_patients == 3
    assert site.patients[Split.VAL, "yes"] == 1
    assert site.patients[Split.VAL, "no"] == 0
    assert site.present == {"ct": 2, "lab": 1, "note": 2}


def test_scans_are_named_by_a_column(tmp_path):
    """A scan modality is a column of paths; without any path the site does not have the modality."""
    volumes = tuple(ModalitySpec(name, Kind.VOLUME, 512, "med3d-resnet18") for name in ("t1", "t2"))
    study = Study("scans", ("no", "yes"), volumes)
    table = a_site().manifest.assign(t1=["/scans/a.nii", None, "b.nii"], t2=None).iloc[[0, 2]]
    prepared = write_federation(
        tmp_path / "fed", study, [SiteTables("a", table, scans={"t1": "t1", "t2": "t2"})]
    )
    assert prepared.sites[0].present == {"t1": 2, "t2": 0}
    (site,) = site_folders(tmp_path / "fed")
    assert {name: source.column for name, source in site.modalities.items()} == {"t1": "t1"}
    manifest = load_manifest(site.manifest, study, seed=0)
    assert manifest.table["t1"].tolist() == ["/scans/a.nii", "b.nii"]
    bare = SiteTables("a", table.assign(t1=None), scans={"t1": "t1", "t2": "t2"})
    with pytest.raises(DataError, match="'n1' has no modality, expected at least one of t1, t2"):
        write_federation(tmp_path / "none", study, [bare])


def test_same_tables_same_bytes(tmp_path):
    write_federation(tmp_path / "a", STUDY, [a_site()])
    write_federation(tmp_path / "b", STUDY, [a_site()])
    assert tree(tmp_path / "a") == tree(tmp_path / "b")


@pytest.mark.parametrize(
    ("sites", "sentence"),
    [
        pytest.param([], "no site is left", id="no-site"),
        pytest.param(
            [a_site("A B"), a_site("a-b", "s")], "would both have the id 'a-b'", id="two-sites-one-id"
        ),
        pytest.param([a_site("///")], "site '///': a name needs at least one letter", id="no-name"),
        pytest.param([a_site(patient_id="n1")], "site north-clinic: patient 'n1' occurs twice", id="twice"),
        pytest.param(
            [a_site(label="maybe")], "label 'maybe' is not a class of the study, expected", id="class"
        ),
        pytest.param(
            [a_site(patient_id="n9")],
            "north-clinic, row 3: patient 'n9' has no modality, expected at least one of ct, lab, note",
            id="no-modality",
        ),
        pytest.param(
            [SiteTables("x", a_site().manifest.iloc[:0], {}, COLUMNS)], "site x: no patient", id="no-patient"
        ),
        pytest.param(
            [SiteTables("x", a_site().manifest.iloc[1:2], {}, COLUMNS)],
            "in the split train",
            id="no-train-row",
        ),
        pytest.param(
            [SiteTables("x", a_site().manifest, {"ct": {"n1": np.ones(3, np.float32)}}, COLUMNS)],
            r"patient 'n1': ct has shape \(3,\), expected \(70,\)",
            id="width",
        ),
    ],
)
def test_invalid_tables_leave_nothing_behind(tmp_path, sites, sentence):
    with pytest.raises(DataError, match=sentence):
        write_federation(tmp_path / "deep" / "fed", STUDY, sites)
    assert list(tmp_path.iterdir()) == []


def test_a_failed_overwrite_keeps_the_old_federation(tmp_path):
    """A site's name that is too long for the file system fails after the first site is written."""
    out = tmp_path / "fed"
    write_federation(out, STUDY, [a_site()])
    before = tree(out)
    with pytest.raises(DataError, match="cannot be written"):
        write_federation(out, STUDY, [a_site("a"), a_site("b" * 300, "s")], overwrite=True)
    assert tree(out) == before
    assert [entry.name for entry in tmp_path.iterdir()] == ["fed"]


def test_an_unwritable_folder_is_a_data_error(tmp_path):
    (tmp_path / "file").write_text("mine")
    with pytest.raises(DataError, match="cannot be written"):
        write_federation(tmp_path / "file" / "fed", STUDY, [a_site()])
    assert (tmp_path / "file").read_text() == "mine"


def test_an_empty_folder_is_filled(tmp_path):
    (tmp_path / "fed").mkdir()
    write_federation(tmp_path / "fed", STUDY, [a_site()])
    assert [site.id for site in site_folders(tmp_path / "fed")] == ["north-clinic"]
    assert [entry.name for entry in tmp_path.iterdir()] == ["fed"]


def test_a_federation_is_replaced_only_when_asked(tmp_path):
    out = tmp_path / "fed"
    write_federation(out, STUDY, [a_site()])
    (out / "north-clinic" / "cache").mkdir()
    before = tree(out)
    with pytest.raises(DataError, match="not empty; choose another one or add --overwrite"):
        write_federation(out, STUDY, [a_site("south")])
    assert tree(out) == before
    write_federation(out, STUDY, [a_site("south")], overwrite=True)
    assert [site.id for site in site_folders(out)] == ["south"]
    assert sorted(entry.name for entry in out.iterdir()) == ["south", "study.toml"]
    assert [entry.name for entry in tmp_path.iterdir()] == ["fed"]


@pytest.mark.parametrize("overwrite", [False, True])
def test_nothing_else_is_ever_replaced(tmp_path, overwrite):
    for name in ("notes", "federation-with-notes"):
        folder = tmp_path / name
        if name != "notes":
            write_federation(folder, STUDY, [a_site()])
        folder.mkdir(exist_ok=True)
        (folder / "thesis.txt").write_text("ten years of work")
        before = tree(folder)
        with pytest.raises(DataError, match="holds 'thesis.txt'" if overwrite else "not empty"):
            write_federation(folder, STUDY, [a_site()], overwrite=overwrite)
        assert tree(folder) == before
    (tmp_path / "file").write_text("mine")
    with pytest.raises(DataError, match="not a folder, expected a new"):
        write_federation(tmp_path / "file", STUDY, [a_site()], overwrite=overwrite)
    (tmp_path / "link").symlink_to(tmp_path / "elsewhere")
    with pytest.raises(DataError, match="not a folder, expected a new"):
        write_federation(tmp_path / "link", STUDY, [a_site()], overwrite=overwrite)


def test_a_federation_needs_a_study(tmp_path):
    out = tmp_path / "fed"
    write_federation(out, STUDY, [a_site()])
    (out / "study.toml").unlink()
    with pytest.raises(DataError, match=r"expected a federation folder, .* it has no study\.toml"):
        write_federation(out, STUDY, [a_site()], overwrite=True)
    with pytest.raises(DataError, match=r"no study\.toml in it"):
        site_folders(out)


def test_other_folders_are_refused(tmp_path):
    with pytest.raises(DataError, match="no such folder"):
        site_folders(tmp_path / "none")
    (tmp_path / "study.toml").touch()
    with pytest.raises(DataError, match="no such folder"):
        site_folders(tmp_path / "study.toml")
    (tmp_path / "notes").mkdir()
    with pytest.raises(DataError, match=r"no site, expected at least one sub-folder with a site\.toml"):
        site_folders(tmp_path)


def test_two_sites_with_one_id_are_refused(tmp_path):
    out = tmp_path / "fed"
    write_federation(out, STUDY, [a_site("a"), a_site("b", "s")])
    text = (out / "b" / "site.toml").read_text()
    (out / "b" / "site.toml").write_text(text.replace('id = "b"', 'id = "a"'))
    with pytest.raises(
        DataError, match=r"b/site\.toml: site id 'a' is already used by .*/a, expected unique ids"
    ):
        site_folders(out)


def test_sites_are_sorted_by_id_not_by_folder(tmp_path):
    out = tmp_path / "fed"
    write_federation(out, STUDY, [a_site("a"), a_site("b", "s")])
    text = (out / "a" / "site.toml").read_text()
    (out / "a" / "site.toml").write_text(text.replace('id = "a"', 'id = "z"'))
    assert [site.id for site in site_folders(out)] == ["b", "z"]


@pytest.mark.parametrize(
    ("name", "expected"),
    [
        ("Guy's", "guy-s"),
        ("TCGA", "tcga"),
        ("Klinik  Süd (2)", "klinik-sud-2"),
        ("a_b", "a-b"),
        ("Straße", "strae"),
        ("北京", "site-68c77e"),
    ],
)
def test_slugs(name, expected):
    assert site_id(name) == expected == site_id(expected)


def test_folders_follow_the_users_mask(tmp_path):
    mask = os.umask(0o027)
    try:
        write_federation(tmp_path / "fed", STUDY, [a_site()])
    finally:
        os.umask(mask)
    assert (tmp_path / "fed").stat().st_mode & 0o777 == 0o750


def test_the_current_folder_is_no_new_folder():
    with pytest.raises(DataError, match="expected the path of a new folder"):
        write_federation(Path(), STUDY, [a_site()], overwrite=True)
