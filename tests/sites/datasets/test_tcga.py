"""TCGA's kidney and breast cancers: facts of the real files, and sentences about damaged ones."""

import pandas as pd
import pytest

from mmare.errors import DataError, StudyError
from sites.datasets.porpoise import read_omics
from sites.datasets.tcga_brca import prepare_brca
from sites.datasets.tcga_kirc import prepare_kirc
from sites.federation import site_folders
from sites.manifest import load_manifest
from tests.data_folder import data_folder

OMICS = "tcga_kirc_all_clean.csv.zip"


def manifests(prepared):
    sites = site_folders(prepared.folder)
    tables = [load_manifest(site.manifest, prepared.study).table.assign(site=site.id) for site in sites]
    return pd.concat(tables).set_index("patient_id")


@pytest.fixture(scope="module")
def kirc(tmp_path_factory):
    omics = data_folder("tcga-kirc") / OMICS
    return prepare_kirc(data_folder("mmist"), omics, tmp_path_factory.mktemp("kirc") / "fed")


@pytest.mark.data
def test_kidney_cancers_are_the_345_with_times(kirc):
    rows = manifests(kirc)
    assert (len(rows), rows["event"].astype(int).sum()) == (345, 92)
    assert kirc.notes == ("175 patients without a time left out",)
    assert rows["site"].value_counts().to_dict() == {
        "bp": 77,
        "b0": 67,
        "other": 54,
        "cj": 45,
        "a3": 37,
        "cz": 33,
        "b8": 32,
    }
    present = {name: sum(site.present[name] for site in kirc.sites) for name in kirc.sites[0].present}
    assert (present["person"], present["rna"], present["clinical"], present["wsi"]) == (345, 345, 254, 254)
    widths = {modality.name: modality.width for modality in kirc.study.modalities}
    assert (widths["rna"], widths["cnv"], widths["mutations"]) == (1556, 937, 10)
    assert kirc.study.survival.follow_up == pytest.approx(149.05)
    shares = rows.assign(event=rows["event"].astype(int)).groupby("split")["event"].mean()
    assert shares.max() - shares.min() < 0.04


@pytest.mark.data
def test_a_year_is_known_of_those_without_times_too(tmp_path):
    omics = data_folder("tcga-kirc") / OMICS
    prepared = prepare_kirc(
        data_folder("mmist"), omics, tmp_path / "fed", task="vital12", without=["ct", "mri"]
    )
    rows = manifests(prepared)
    assert len(rows) > 429  # all of TCGA in MMIST, and those with times alone
    assert prepared.notes == (f"{520 - len(rows)} patients censored within a year left out",)
    assert rows["label"].isin(["dead", "alive"]).all()
    assert "TCGA-B0-4713" in rows.index


@pytest.mark.data
def test_breast_cancers_are_flamby_s_regions_and_splits(tmp_path):
    prepared = prepare_brca(data_folder("tcga-brca"), tmp_path / "fed")
    rows = manifests(prepared)
    counts = rows.assign(test=rows["split"] == "test").groupby(["site", "test"]).size().unstack()
    sizes = dict(zip(counts.index, map(tuple, counts.to_numpy().tolist()), strict=True))
    assert sizes == {
        "northeast": (248, 63),
        "south": (156, 40),
        "west": (164, 42),
        "midwest": (129, 33),
        "europe": (129, 33),
        "canada": (40, 11),
    }
    assert prepared.study.survival.unit == "days"
    assert prepared.study.modalities[0].width == 39


def table(tmp_path, **changes):
    content = {
        "case_id": ["TCGA-A-1", "TCGA-A-1", "TCGA-B-2"],
        "age": [50, 50, 61],
        "is_female": [0, 0, None],
        "survival_months": [3.5, 3.5, 70],
        "censorship": [0, 0, 1],
        "TP53_rnaseq": [0.1, 0.1, -1.0],
        "TP53_cnv": [0, 0, 1],
        "TP53_mut": [1, 1, 0],
    }
    frame = pd.DataFrame({**content, **changes})
    frame = frame.drop(columns=[name for name, values in changes.items() if values is None])
    frame.to_csv(tmp_path / "omics.csv", index=False)
    return tmp_path / "omics.csv"


def test_slides_of_a_patient_count_once(tmp_path):
    omics = read_omics(table(tmp_path))
    assert omics.months.to_dict() == {"TCGA-A-1": 3.5, "TCGA-B-2": 70.0}
    assert omics.died.to_dict() == {"TCGA-A-1": 1, "TCGA-B-2": 0}
    assert omics.vectors("rna")["TCGA-B-2"].tolist() == [-1.0]


@pytest.mark.parametrize(
    ("changes", "sentence"),
    [
        (
            {"survival_months": [3.5, 3.5, -1]},
            "survival_months of TCGA-B-2 is -1.0, expected a time",
        ),
        ({"censorship": [0, 0, 2]}, "censorship of TCGA-B-2 is 2, expected 0 or 1"),
        ({"TP53_rnaseq": ["a", "a", "b"]}, "column 'TP53_rnaseq' holds text, expected numbers"),
        ({"TP53_cnv": None}, "no column …_cnv, expected those of cnv"),
        ({"age": None}, "no column 'age', expected a table of PORPOISE"),
    ],
)
def test_a_damaged_table_is_refused(tmp_path, changes, sentence):
    with pytest.raises(DataError, match=sentence):
        read_omics(table(tmp_path, **changes))


def test_missing_files_and_unknown_options_are_refused(tmp_path):
    with pytest.raises(DataError, match="no such file, expected a table of PORPOISE"):
        read_omics(tmp_path / "none.csv")
    with pytest.raises(StudyError, match="--task is 'cure', expected one of survival, vital12"):
        prepare_kirc(tmp_path, tmp_path, tmp_path / "fed", task="cure")
    with pytest.raises(StudyError, match="--without is 'age'"):
        prepare_brca(tmp_path, tmp_path / "fed", without=["age"])
