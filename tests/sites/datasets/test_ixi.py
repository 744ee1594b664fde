"""IXI: the thesis's cohort from the real table, prompts, and invalid input."""

import csv
import itertools
import os
import re
from collections import Counter
from pathlib import Path

import pandas as pd
import pytest
from sklearn.metrics import roc_auc_score

from mmare.errors import DataError, StudyError
from mmare.study.choices import Kind, PromptMode, Scaling
from mmare.wire.messages import Split
from sites.datasets.ixi import IXI_PROMPTS, prepare_ixi, split_cohort
from sites.datasets.ixi_cohort import (
    CONTRASTS,
    IXI_COLUMNS,
    find_volumes,
    index_volumes,
    read_demographics,
    select_cohort,
)
from sites.federation import site_folders
from sites.manifest import load_manifest
from sites.missing.plan import Missingness
from sites.options import IxiTask
from sites.prompts import compile_prompt
from tests.data_folder import data_folder

# --- the real table and names ---


@pytest.fixture(scope="module")
def real():
    return data_folder("ixi")


@pytest.fixture(scope="module")
def names(real):
    """Every file name of the release, its ending put right."""
    table = pd.read_csv(real / "IXI_with_filenames.csv")
    cells = pd.concat([table[f"{contrast.upper()}_file_name"] for contrast in CONTRASTS]).dropna().unique()
    return [Path(name.replace(".png", ".nii.gz")) for name in cells]


@pytest.fixture(scope="module")
def source(real, names, tmp_path_factory):
    """The release as it unpacks, every volume an empty file: no image is opened."""
    folder = tmp_path_factory.mktemp("ixi") / "IXI"
    for name in names:
        file = folder / name.name.rsplit("-", 1)[1].split(".")[0] / "deep" / name
        file.parent.mkdir(parents=True, exist_ok=True)
        file.touch()
    (folder / "T1" / "IXI012-HH-1211-DTI-00.nii.gz").touch()
    (folder / "T1" / "._IXI012-HH-1211-T1.nii.gz").touch()  # as macOS leaves them
    (folder / "IXI.xls").symlink_to(real / "IXI.xls")
    return folder


def rows_of(prepared):
    sites = site_folders(prepared.folder)
    tables = [load_manifest(site.manifest, prepared.study, 0).table.assign(site=site.id) for site in sites]
    return pd.concat(tables).set_index("patient_id")


@pytest.fixture(scope="module")
def sex(source, tmp_path_factory):
    return prepare_ixi(source, tmp_path_factory.mktemp("sex") / "fed", "sex", with_clinical=True, seed=42)


@pytest.fixture(scope="module")
def epoch(source, tmp_path_factory):
    return prepare_ixi(source, tmp_path_factory.mktemp("epoch") / "fed", "epoch", with_clinical=True, seed=42)


@pytest.mark.data
def test_the_cohort_selection_of_the_thesis(real, names):
    table = read_demographics(real)
    assert len(table.frame) == 619
    subjects = index_volumes(names)
    cohort = select_cohort(table, subjects)
    assert [number for number, _ in cohort.steps] == [592, 578, 528, 525, 516]
    rows = cohort.rows
    assert Counter(rows["epoch"]) == {"young": 116, "mid": 313, "old": 87}
    assert Counter(rows["sex"]) == {"male": 230, "female": 286}
    assert Counter(rows["site"]) == {"Guys": 275, "HH": 176, "IOP": 65}
    by_site = {site: Counter(group["epoch"]) for site, group in rows.groupby("site")}
    assert {site: [bins[name] for name in ("young", "mid", "old")] for site, bins in by_site.items()} == {
        "Guys": [52, 173, 50],
        "HH": [45, 104, 27],
        "IOP": [19, 36, 10],
    }
    gaps = rows[["height", "weight", "marital", "occupation", "education", "ethnicity"]].isna().sum()
    assert gaps.tolist() == [15 + 1, 14 + 3, 5, 5, 7, 15]
    assert rows.loc[rows["age"] == "19", "epoch"].tolist() == ["young"]


@pytest.mark.data
def test_the_cohort_selection_against_pandas(real, names):
    """The same five steps on the table with file names, with pandas alone."""
    table = pd.read_csv(real / "IXI_with_filenames.csv")
    full = table.dropna(subset=[f"{contrast.upper()}_file_name" for contrast in CONTRASTS])
    own = full.drop_duplicates("IXI_ID", keep=False)
    expected = own[own["AGE"].notna() & (own["ETHNIC_ID"] != 0)]
    cohort = select_cohort(read_demographics(real), index_volumes(names))
    assert cohort.rows["patient_id"].tolist() == [f"IXI{number:03d}" for number in expected["IXI_ID"]]
    for contrast in CONTRASTS:
        files = [path.name.removesuffix(".nii.gz") for path in cohort.rows[contrast]]
        assert files == [name.removesuffix(".png") for name in expected[f"{contrast.upper()}_file_name"]]


@pytest.mark.data
def test_impossible_values_are_reported(real, names):
    notes = select_cohort(read_demographics(real), index_volumes(names)).notes
    assert notes == (
        "HEIGHT 75: impossible (expected 100 to 230), treated as missing in 1 of 516 subjects",
        "WEIGHT 710, 710, 960: impossible (expected 30 to 250), treated as missing in 3 of 516 subjects",
        "ETHNIC_ID 2: no meaning in the code book, treated as missing in 15 of 516 subjects",
    )


@pytest.mark.data
def test_sites_splits_and_labels(sex, epoch):
    for prepared in (sex, epoch):
        assert {site.id: site.n_patients for site in prepared.sites} == {"guys": 275, "hh": 176, "iop": 65}
        assert all(set(site.present.values()) == {site.n_patients} for site in prepared.sites)
        sizes = Counter(rows_of(prepared)["split"])
        assert [sizes[split] for split in Split] == [309, 51, 156]
    one, other = rows_of(sex), rows_of(epoch)
    assert (one["split"] == other["split"].loc[one.index]).all()  # by age bin for both
    assert "cohort: 592 rows" in sex.notes[0]
    assert "516 an ethnicity" in sex.notes[0]


@pytest.mark.data
def test_seed_42_gives_the_tables_of_the_thesis(sex, epoch):
    tables = {"sex": (sex, [[137, 172], [20, 31], [73, 83]])}
    tables["epoch"] = (epoch, [[70, 187, 52], [11, 31, 9], [35, 95, 26]])
    for prepared, expected in tables.values():
        counts = Counter()
        for site in prepared.sites:
            counts.update(site.patients)
        assert [[counts[split, name] for name in prepared.study.classes] for split in Split] == expected


@pytest.mark.data
@pytest.mark.parametrize("seed", [0, 1])
def test_every_seed_has_the_same_age_bins_per_split(real, names, seed):
    bins = select_cohort(read_demographics(real), index_volumes(names)).rows["epoch"].tolist()
    splits = split_cohort(bins, seed)
    counts = Counter(zip(splits.tolist(), bins, strict=True))
    assert [counts["train", name] for name in ("young", "mid", "old")] == [70, 187, 52]
    assert [counts["test", name] for name in ("young", "mid", "old")] == [35, 95, 26]


@pytest.mark.data
def test_manifests_name_the_volumes(sex, source):
    sites = {site.id: site for site in site_folders(sex.folder)}
    assert [sites["hh"].modalities[name].column for name in CONTRASTS] == list(CONTRASTS)
    row = rows_of(sex).loc["IXI012"]
    expected = source.resolve() / "T1" / "deep" / "IXI012-HH-1211-T1.nii.gz"
    assert (row["site"], row["label"], row["t1"]) == ("hh", "male", str(expected))
    assert "sex" not in row.index  # the target is in no column that a prompt could use


@pytest.mark.data
def test_golden_prompts(sex, epoch):
    rest = (
        ", with White ethnicity, married. Occupation: go out to full time employment; Education: university"
        " or polytechnic degree. Body measures include height 175 and weight 70."
    )
    for prepared, start in ((sex, "The patient is 38 years old"), (epoch, "The patient is a male")):
        (spec,) = [modality for modality in prepared.study.modalities if modality.kind is Kind.TEXT]
        row = rows_of(prepared).loc["IXI012"].to_dict()
        for mode in PromptMode:
            assert compile_prompt(spec.prompt).render(row, mode) == start + rest


@pytest.mark.data
def test_mcar_is_reported_and_leaves_every_patient_a_modality(source, tmp_path):
    more = {"missing": Missingness("mcar", 0.6), "with_clinical": True}
    prepared = prepare_ixi(source, tmp_path / "a", "epoch", **more)
    rows = rows_of(prepared)
    fields = list(compile_prompt(IXI_PROMPTS[IxiTask.EPOCH]).fields)
    present = pd.concat([rows[list(CONTRASTS)].notna(), rows[fields].notna().any(axis=1)], axis=1)
    assert present.any(axis=1).all()
    lost = 1 - present.to_numpy().mean()
    assert lost == pytest.approx(0.6 - 0.6**5 / 5, abs=0.03)
    assert f"mcar at 0.6: {lost:.3f} of the modalities were removed (train 0." in prepared.notes[-1]
    assert (1 - present.mean()).between(0.5, 0.67).all()  # the clinical one, too
    again = prepare_ixi(source, tmp_path / "b", "epoch", **more)
    assert again.sites == prepared.sites
    assert rows_of(again).equals(rows)
    other = prepare_ixi(source, tmp_path / "c", "epoch", seed=1, **more)
    assert other.sites != prepared.sites


@pytest.mark.data
def test_mar_is_driven_by_the_age_by_default(source, sex, tmp_path):
    ages = rows_of(sex)["age"].astype(float)
    prepared = prepare_ixi(source, tmp_path / "a", "sex", missing=Missingness("mar", 0.5))
    lost = rows_of(prepared)[list(CONTRASTS)].isna()
    for contrast in CONTRASTS:
        assert roc_auc_score(lost[contrast], ages.loc[lost.index]) > 0.7
    assert prepared.notes[-1].startswith("mar on age at 0.5: 0.4")
    by_height = Missingness("mar", 0.5, ("height",))
    lost = rows_of(prepare_ixi(source, tmp_path / "b", "sex", missing=by_height))["t1"].isna()
    assert roc_auc_score(lost, ages.loc[lost.index]) < 0.6


@pytest.mark.data
def test_an_exclusive_hospital_does_not_name_the_contrast(source, tmp_path):
    prepared = prepare_ixi(source, tmp_path / "fed", "sex", missing=Missingness(pattern="exclusive"))
    for site, config in zip(prepared.sites, site_folders(prepared.folder), strict=True):
        (never,) = prepared.amputation["sites"][site.id]["never"]
        assert set(config.modalities) == set(CONTRASTS) - {never}
        assert site.present[never] == 0


@pytest.mark.data
def test_the_few_real_volumes_are_an_incomplete_cohort(real, tmp_path):
    with pytest.raises(
        DataError, match=r"no subject is left: 12 rows .* 0 of them all four .*--keep-incomplete"
    ):
        prepare_ixi(real, tmp_path / "fed", "sex")
    prepared = prepare_ixi(real, tmp_path / "fed", "sex", complete=False)
    assert [(site.id, site.n_patients, site.present["t1"]) for site in prepared.sites] == [("hh", 12, 12)]
    (site,) = site_folders(prepared.folder)
    assert set(site.modalities) == {"t1"}
    assert all(Path(path).is_file() for path in rows_of(prepared)["t1"])


# --- prompts ---

CELLS = {
    "age": "38",
    "sex": "male",
    "ethnicity": "White",
    "marital": "widowed",
    "occupation": "retired",
    "education": "A-levels",
    "height": "175",
    "weight": "70",
}


@pytest.mark.parametrize("task", IxiTask)
def test_the_target_is_left_out(task):
    target = {IxiTask.SEX: "sex", IxiTask.EPOCH: "age"}[task]
    assert set(compile_prompt(IXI_PROMPTS[task]).fields) == set(CELLS) - {target}


@pytest.mark.parametrize("mode", PromptMode)
@pytest.mark.parametrize("task", IxiTask)
def test_every_gap_leaves_a_sentence_that_reads(task, mode):
    """All 127 combinations of missing fields: present values appear, missing ones are named or omitted."""
    prompt = compile_prompt(IXI_PROMPTS[task])
    sentence = re.compile(r"(The patient is|Occupation:|Education:|Body measures include|Height and weight) ")
    for present in itertools.product([True, False], repeat=len(prompt.fields)):
        values = {name: CELLS[name] for name, has in zip(prompt.fields, present, strict=True) if has}
        text = prompt.render(values, mode)
        if not values:
            assert text is None
            continue
        assert all(value in text for value in values.values())
        assert ("not available" in text) == (mode is PromptMode.EXPLICIT and not all(present)), text
        assert not re.search(r"  | [,.;]|[,;:]\.|\.\.|, and|;$", text), text
        assert text.endswith(".")
        assert all(sentence.match(part) for part in re.split(r"(?<=\.) ", text)), text
        absent = [value for name, value in CELLS.items() if name in prompt.fields and name not in values]
        assert not any(re.search(rf"\b{value}\b", text) for value in absent)


@pytest.mark.parametrize(
    ("missing", "mode", "expected"),
    [
        (
            ("weight", "education"),
            PromptMode.OMIT,
            "The patient is a male, with White ethnicity, widowed. Occupation: retired."
            " Body measures include height 175.",
        ),
        (
            ("weight", "education"),
            PromptMode.EXPLICIT,
            "The patient is a male, with White ethnicity, widowed. Occupation: retired; Education: not"
            " available. Body measures include height 175 and a weight that is not available.",
        ),
        (
            ("ethnicity", "marital", "occupation", "height"),
            PromptMode.OMIT,
            "The patient is a male. Education: A-levels. Body measures include weight 70.",
        ),
        (
            ("ethnicity", "marital", "occupation", "education", "height", "weight"),
            PromptMode.EXPLICIT,
            "The patient is a male, with ethnicity not available, with marital status not available."
            " Occupation: not available; Education: not available. Height and weight are not available.",
        ),
    ],
)
def test_golden_gaps(missing, mode, expected):
    values = {name: value for name, value in CELLS.items() if name not in missing}
    assert compile_prompt(IXI_PROMPTS[IxiTask.EPOCH]).render(values, mode) == expected


# --- a small folder of the same form, built here ---


def small(folder, replaced=()):
    """Twelve subjects of two hospitals with all contrasts; cells of the table may be replaced."""
    folder.mkdir()
    table = [
        dict(zip(IXI_COLUMNS, (n, 1 + n % 2, 170, 60 + n, 1, 2, 3, 4, 20 + 5 * n), strict=True))
        for n in range(1, 13)
    ]
    for row, column, cell in replaced:
        table[row][column] = cell
    with (folder / "IXI.csv").open("w", newline="") as stream:
        writer = csv.DictWriter(stream, IXI_COLUMNS)
        writer.writeheader()
        writer.writerows(table)
    for n, contrast in itertools.product(range(1, 13), CONTRASTS):
        hospital = "Guys" if n <= 6 else "IOP"
        file = folder / contrast / f"IXI{n:03d}-{hospital}-{700 + n}-{contrast.upper()}.nii.gz"
        file.parent.mkdir(exist_ok=True)
        file.touch()
    return folder


def test_a_small_folder(tmp_path):
    prepared = prepare_ixi(small(tmp_path / "in"), tmp_path / "fed", "epoch")
    assert [(site.id, site.n_patients) for site in prepared.sites] == [("guys", 6), ("iop", 6)]
    rows = rows_of(prepared)
    # 25, 30 years | 35 … 65 | 70 …
    assert rows["label"].tolist() == ["young"] * 2 + ["mid"] * 7 + ["old"] * 3
    assert Counter(rows["split"]) == {"train": 7, "val": 1, "test": 4}
    assert list(rows.columns) == ["label", "split", *CONTRASTS, "site"]
    study = prepared.study
    assert (study.name, study.classes, study.positive) == ("ixi-epoch", ("young", "mid", "old"), None)
    assert study.training.oversample == "balanced"
    assert study.privacy.min_count == 0
    assert {(m.kind, m.encoder, m.width, m.scaling, m.size) for m in study.modalities} == {
        (Kind.VOLUME, "med3d-resnet18", 512, Scaling.ZSCORE, ())
    }


def test_the_study_of_the_other_task(tmp_path):
    study = prepare_ixi(
        small(tmp_path / "in"), tmp_path / "fed", "sex", True, prompt_mode=PromptMode.EXPLICIT
    ).study
    assert (study.name, study.classes, study.positive) == ("ixi-sex", ("male", "female"), "female")
    assert study.training.oversample is None
    clinical = study.modalities[-1]
    assert (clinical.kind, clinical.encoder, clinical.scaling) == (Kind.TEXT, "hashing-text", Scaling.L2)
    assert clinical.prompt_mode is PromptMode.EXPLICIT
    assert clinical.prompt == IXI_PROMPTS[IxiTask.SEX]


@pytest.mark.parametrize(
    ("replaced", "left", "note"),
    [
        pytest.param(
            [(0, "IXI_ID", 2)], 10, "subjects with volumes that are not in the table: 1", id="twice"
        ),
        pytest.param([(0, "AGE", "")], 11, None, id="no-age"),
        pytest.param([(0, "AGE", 650)], 11, "IXI001: AGE 650 is impossible", id="age"),
        pytest.param([(0, "ETHNIC_ID", 0)], 11, None, id="no-ethnicity"),
        pytest.param([(0, "ETHNIC_ID", 2)], 12, "ETHNIC_ID 2: no meaning", id="code"),
        pytest.param([(0, "HEIGHT", 75)], 12, "HEIGHT 75: impossible", id="height"),
        pytest.param([(0, "WEIGHT", "")], 12, None, id="no-weight"),
    ],
)
def test_who_is_left(tmp_path, replaced, left, note):
    prepared = prepare_ixi(small(tmp_path / "in", replaced), tmp_path / "fed", "sex", True)
    assert sum(site.n_patients for site in prepared.sites) == left
    assert any(text.startswith(note) for text in prepared.notes) if note else len(prepared.notes) == 1


def test_zero_and_impossible_values_are_blank_in_the_manifest(tmp_path):
    cells = [
        (0, "HEIGHT", 0),
        (0, "WEIGHT", 960),
        (1, "MARITAL_ID", 0),
        (1, "OCCUPATION_ID", 0),
        (2, "HEIGHT", 171.5),
    ]
    prepared = prepare_ixi(small(tmp_path / "in", cells), tmp_path / "fed", "sex", True)
    rows = rows_of(prepared)
    assert rows.loc["IXI001", ["height", "weight"]].isna().all()
    assert rows.loc["IXI002", ["marital", "occupation"]].isna().all()
    assert rows.loc["IXI002", ["education", "height"]].tolist() == [
        "further education (City & Guilds / NVQs)",
        "170",
    ]
    assert rows.loc["IXI003", "height"] == "171.5"


def test_subjects_with_gaps_are_kept_when_asked(tmp_path):
    folder = small(tmp_path / "in")
    (folder / "mra" / "IXI001-Guys-701-MRA.nii.gz").unlink()
    for contrast in CONTRASTS:
        (folder / contrast / f"IXI002-Guys-702-{contrast.upper()}.nii.gz").unlink()
    strict = prepare_ixi(folder, tmp_path / "strict", "sex")
    loose = prepare_ixi(folder, tmp_path / "loose", "sex", complete=False)
    assert [site.n_patients for site in strict.sites] == [4, 6]
    assert [(site.n_patients, site.present["mra"]) for site in loose.sites] == [(5, 4), (6, 6)]


def test_links_are_followed_and_do_not_run_in_circles(tmp_path):
    folder = small(tmp_path / "in")
    (folder / "t2").rename(tmp_path / "elsewhere")
    (folder / "t2").symlink_to(tmp_path / "elsewhere")
    (folder / "pd" / "back").symlink_to(folder)
    assert len(find_volumes(folder)) == 48


def test_uncompressed_volumes_and_an_underscore_are_fine():
    files = [Path("a/IXI007-IOP-0034_T1.nii"), Path("b/IXI007-IOP-0034-MRA.nii.gz"), Path("c/notes.txt")]
    assert index_volumes(files)[7].volumes == {"t1": files[0], "mra": files[1]}


@pytest.mark.parametrize(
    ("change", "sentence"),
    [
        pytest.param(
            lambda f: (f / "IXI.csv").unlink(),
            r"no demographic table, expected IXI\.xls or .* in it",
            id="table",
        ),
        pytest.param(
            lambda f: (f / "IXI.xls").write_bytes(b"nonsense"),
            r"IXI\.xls: cannot be read, expected an Excel file with a sheet 'Table'",
            id="damaged",
        ),
        pytest.param(
            lambda f: (f / "IXI.csv").write_text((f / "IXI.csv").read_text().replace("AGE", "AGES")),
            r"IXI\.csv: no column 'AGE' \(did you mean 'AGES'\?\)",
            id="column",
        ),
        pytest.param(
            lambda f: [path.unlink() for path in f.rglob("*.nii.gz")],
            r"none of the 1 files in it .* is named like an IXI volume, expected such as IXI012-HH",
            id="no-volumes",
        ),
        pytest.param(
            lambda f: (f / "IXI001-Guys-701-T1.nii.gz").touch(),
            r"t1/IXI001-Guys-701-T1\.nii\.gz: subject IXI001 has two T1 volumes, the other is .*expected one",
            id="duplicate",
        ),
        pytest.param(
            lambda f: (f / "t1" / "IXI001-Guys-701-T1.nii.gz").rename(f / "IXI001-HH-701-T1.nii.gz"),
            "subject IXI001 has volumes of two hospitals",
            id="hospitals",
        ),
    ],
)
def test_malformed_folders_are_refused(tmp_path, change, sentence):
    folder = small(tmp_path / "in")
    change(folder)
    with pytest.raises(DataError, match=sentence):
        prepare_ixi(folder, tmp_path / "fed", "sex")
    assert [entry.name for entry in tmp_path.iterdir()] == ["in"]


@pytest.mark.parametrize(
    ("replaced", "sentence"),
    [
        pytest.param(
            [(1, "SEX_ID (1=m, 2=f)", 3)], r"row 2 \(line 3\): SEX_ID .* is '3', expected 1 or 2", id="sex"
        ),
        pytest.param([(1, "IXI_ID", "x2")], "row 2 .*: IXI_ID is 'x2', expected a whole number", id="id"),
        pytest.param([(1, "IXI_ID", "")], "row 2 .*: IXI_ID is blank", id="no-id"),
        pytest.param([(1, "AGE", "old")], "row 2 .*: AGE is 'old', expected a number", id="age"),
        pytest.param(
            [(row, "AGE", "") for row in range(12)], "no subject is left: 12 rows .*, 0 an age", id="nobody"
        ),
    ],
)
def test_invalid_cells_are_refused(tmp_path, replaced, sentence):
    with pytest.raises(DataError, match=sentence):
        prepare_ixi(small(tmp_path / "in", replaced), tmp_path / "fed", "sex")
    assert not (tmp_path / "fed").exists()


@pytest.mark.skipif(os.geteuid() == 0, reason="root may read every folder")
def test_an_unreadable_folder_is_named(tmp_path):
    folder = small(tmp_path / "in")
    (folder / "t1").chmod(0)
    try:
        with pytest.raises(DataError, match=r"t1: cannot be read \(Permission denied\)"):
            prepare_ixi(folder, tmp_path / "fed", "sex")
    finally:
        (folder / "t1").chmod(0o755)


@pytest.mark.parametrize(
    ("options", "sentence"),
    [
        pytest.param({"task": "age"}, "--task is 'age', expected one of sex, epoch", id="task"),
        pytest.param({"prompt_mode": "loud"}, "--prompt-mode is 'loud'", id="mode"),
        pytest.param({"seed": -1}, "seed must not be negative", id="seed"),
    ],
)
def test_invalid_settings_are_refused(tmp_path, options, sentence):
    folder = small(tmp_path / "in")
    with pytest.raises(StudyError, match=sentence):
        prepare_ixi(folder, tmp_path / "fed", **{"task": "sex", **options})
    assert [entry.name for entry in tmp_path.iterdir()] == ["in"]


def test_other_folders_are_refused(tmp_path):
    with pytest.raises(DataError, match=r"no such folder, expected one with IXI\.xls"):
        prepare_ixi(tmp_path / "none", tmp_path / "fed", "sex")


@pytest.mark.parametrize("n_patients", [0, 1, 2, 3, 5, 10])
def test_few_patients_can_be_split(n_patients):
    splits = split_cohort(["mid", "old"] * 5 if n_patients == 10 else ["mid"] * n_patients, seed=0)
    counts = Counter(splits.tolist())
    assert counts.total() == n_patients
    assert n_patients == 0 or counts["train"] >= 1
    if n_patients == 10:
        assert (counts["train"], counts["val"], counts["test"]) == (6, 1, 3)
