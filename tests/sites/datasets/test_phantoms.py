"""The head phantoms: an IXI folder with the gaps and the answer that are promised."""

import shutil
from collections import Counter

import nibabel as nib
import numpy as np
import pandas as pd
import pytest
from sklearn.metrics import roc_auc_score

from mmare.errors import DataError, StudyError
from mmare.study.choices import Kind
from sites.datasets import phantoms
from sites.datasets.ixi import prepare_ixi
from sites.datasets.phantoms import draw_head, draw_people, expected_volume_auc, prepare_synthetic_scans
from sites.datasets.synthetic import prepare_synthetic
from sites.federation import site_folders
from sites.manifest import load_manifest


@pytest.fixture(scope="module")
def prepared(tmp_path_factory):
    return prepare_synthetic_scans(tmp_path_factory.mktemp("phantoms") / "fed", subjects=10, seed=1)


@pytest.fixture(scope="module")
def people():
    return draw_people(40, seed=0)


@pytest.fixture(scope="module")
def heads(people):
    return [draw_head(person) for person in people]


def tree(folder):
    return {
        path.relative_to(folder).as_posix(): path.read_bytes() for path in folder.rglob("*") if path.is_file()
    }


def test_three_hospitals_and_scans_that_are_no_site(prepared):
    sites = {site.id: site for site in site_folders(prepared.folder)}
    assert list(sites) == ["guys", "hh", "iop"]
    assert [site.n_patients for site in prepared.sites] == [10, 10, 10]
    assert set(sites["guys"].modalities) == {"t1", "t2", "clinical"}
    assert set(sites["hh"].modalities) == {"pd", "mra", "clinical"}
    assert set(sites["iop"].modalities) == {"t2", "pd", "clinical"}
    assert sites["iop"].modalities["t2"].column == "t2"
    assert (prepared.folder / "scans" / "IXI.csv").is_file()
    volumes = prepared.study.modalities[:4]
    assert {(m.kind, m.encoder, m.size) for m in volumes} == {
        (Kind.VOLUME, "med3d-resnet18-random", (16, 32, 32))
    }
    assert (prepared.study.seed, prepared.study.positive) == (1, "female")


def test_a_manifest_names_scans_that_are_there(prepared):
    named = []
    for site, counts in zip(site_folders(prepared.folder), prepared.sites, strict=True):
        manifest = load_manifest(site.manifest, prepared.study, seed=0)
        for contrast in ("t1", "t2", "pd", "mra"):
            paths = manifest.table[contrast].dropna()
            assert len(paths) == counts.present[contrast]
            assert all(path.startswith("../scans/") for path in paths)
            named += [(site.folder / path).resolve() for path in paths]
    assert set(named) == {path.resolve() for path in prepared.folder.rglob("*.nii.gz")}
    assert len(set(named)) == len(named)


def test_the_folder_is_small_and_can_be_moved(prepared, tmp_path):
    assert sum(len(content) for content in tree(prepared.folder).values()) < 2e6
    moved = shutil.copytree(prepared.folder, tmp_path / "moved")
    site = site_folders(moved)[0]
    path = load_manifest(site.manifest, prepared.study, 0).table["t1"].dropna().iloc[0]
    assert (site.folder / path).is_file()


def test_gaps_are_those_of_the_hospitals():
    people = draw_people(400, seed=3)
    for hospital, rates in phantoms.MISSING.items():
        mine = [person for person in people if person.hospital == hospital]
        for contrast, rate in rates.items():
            has = np.mean([contrast in person.contrasts for person in mine])
            assert has == pytest.approx(1 - rate, abs=0.07), (hospital, contrast)
    assert all(person.contrasts for person in people)


def test_same_seed_same_bytes(prepared, tmp_path):
    again = prepare_synthetic("scans", out=tmp_path / "again", patients=10, seed=1)
    assert tree(again.folder) == tree(prepared.folder)
    assert again.notes == prepared.notes
    first, other = (draw_people(10, seed) for seed in (1, 2))
    assert [person.sex for person in first] != [person.sex for person in other]
    assert (draw_head(first[0])["t1"] != draw_head(other[0])["t1"]).any()


def test_volumes_are_stored_as_each_scanner_does(prepared):
    orders = Counter()
    for path in (prepared.folder / "scans").rglob("*.nii.gz"):
        image = nib.load(path)
        orders[path.name.split("-")[1], "".join(nib.aff2axcodes(image.affine))] += 1
        upright = nib.as_closest_canonical(image)
        assert upright.shape == (32, 32, 16)
        assert upright.header.get_zooms() == (6.75, 6.75, 11.25)
        voxels = np.asarray(upright.dataobj)
        assert voxels[0, 0, 0] == 0
        # The head is in the middle of the field, in mm.
        centre = nib.affines.apply_affine(upright.affine, np.argwhere(voxels > 0).mean(axis=0))
        assert np.abs(centre).max() < 15
    assert set(orders) == {("Guys", "RAS"), ("HH", "LPS"), ("IOP", "ASR")}
    # Reoriented, a stored volume is the one that was drawn.
    person = next(p for p in draw_people(10, seed=1) if p.hospital == "IOP")
    (path,) = (prepared.folder / "scans" / "IXI-T2").glob(f"IXI{person.number:03d}-*")
    np.testing.assert_array_equal(
        np.asarray(nib.as_closest_canonical(nib.load(path)).dataobj), draw_head(person)["t2"]
    )


@pytest.mark.slow
def test_the_volume_of_a_head_tells_the_sex_as_well_as_documented(people, heads):
    """Known answer .990; with 25 of either sex its standard error is .014."""
    assert expected_volume_auc() == pytest.approx(0.99, abs=0.001)
    male = [person.sex == "male" for person in people]
    assert sum(male) == 60
    for contrast in ("t1", "t2"):
        held = [row for row, head in enumerate(heads) if contrast in head]
        volume = [(heads[row][contrast] > 0).sum() for row in held]
        assert roc_auc_score(np.array(male)[held], volume) == pytest.approx(0.99, abs=0.03)


def test_the_ventricles_tell_the_age(people, heads):
    """Bright voxels in the middle of T2, as a share of the head, in units of the scanner's gain."""
    held = [row for row, head in enumerate(heads) if "t2" in head]
    middle = np.s_[12:20, 8:24, 7:10]
    gain = [phantoms.SCANNERS[people[row].hospital].gain for row in held]
    shares = [
        (heads[row]["t2"][middle] > 150 * factor).mean() for row, factor in zip(held, gain, strict=True)
    ]
    assert np.corrcoef(shares, [people[row].age for row in held])[0, 1] > 0.85


def test_a_scanner_tells_neither_sex_nor_age(people, heads):
    rows = pd.DataFrame(
        {
            "hospital": [person.hospital for person in people],
            "age": [person.age for person in people],
            **{
                name: [head[name][head[name] > 0].mean() if name in head else np.nan for head in heads]
                for name in ("t2", "pd")
            },
        }
    )
    means = rows.groupby("hospital").mean()
    assert means["pd"]["HH"] > 1.15 * means["pd"]["IOP"]
    assert means["t2"]["Guys"] > 1.05 * means["t2"]["IOP"]
    assert means["age"].between(44, 61).all()


def test_the_other_task_is_prepared_from_the_same_scans(prepared, tmp_path):
    scans = prepared.folder / "scans"
    other = prepare_ixi(scans, tmp_path / "fed", "epoch", complete=False)
    assert {site.id: site.n_patients for site in other.sites} == {"guys": 10, "hh": 10, "iop": 10}
    with pytest.raises(DataError, match=r"0 of them all four contrasts.*--keep-incomplete takes any"):
        prepare_ixi(scans, tmp_path / "all-four", "sex")
    with pytest.raises(DataError, match=r"the scans lie in .*, which would be replaced"):
        prepare_ixi(scans, prepared.folder, "epoch", complete=False, overwrite=True)
    assert scans.is_dir()


def test_a_federation_with_drawn_scans_is_replaced_but_never_foreign_ones(tmp_path):
    out = tmp_path / "fed"
    prepare_synthetic_scans(out, subjects=10)
    with pytest.raises(DataError, match="not empty; choose another one or add --overwrite"):
        prepare_synthetic_scans(out, subjects=10, seed=1)
    prepare_synthetic_scans(out, subjects=10, seed=1, overwrite=True)
    assert [entry.name for entry in tmp_path.iterdir()] == ["fed"]
    (out / "scans" / "SYNTHETIC.txt").unlink()  # as if somebody keeps their own scans there
    before = tree(out)
    with pytest.raises(DataError, match="holds 'scans'"):
        prepare_synthetic_scans(out, subjects=10, overwrite=True)
    assert tree(out) == before


@pytest.mark.parametrize(
    ("options", "sentence"),
    [
        pytest.param({"subjects": 9}, "--patients is 9, expected at least 10 per hospital", id="few"),
        pytest.param({"seed": -1}, "seed must not be negative", id="seed"),
    ],
)
def test_settings_out_of_range_are_refused(tmp_path, options, sentence):
    with pytest.raises(StudyError, match=sentence):
        prepare_synthetic_scans(tmp_path / "fed", **options)
    with pytest.raises(StudyError, match="--seed is -1"):
        draw_people(10, -1)
    assert list(tmp_path.iterdir()) == []


def test_a_place_that_cannot_be_written_is_an_input_error(tmp_path):
    (tmp_path / "file").write_text("mine")
    with pytest.raises(DataError, match="cannot be written"):
        prepare_synthetic_scans(tmp_path / "file" / "fed", subjects=10)
    assert (tmp_path / "file").read_text() == "mine"
