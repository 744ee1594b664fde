"""Any table as a federation."""

import numpy as np
import pandas as pd
import pytest

from mmare.errors import DataError, StudyError
from mmare.study.choices import Kind, Scaling
from sites.datasets.table import TableColumns, prepare_table
from sites.features import load_features
from sites.federation import NO_VALIDATION, site_folders
from sites.manifest import load_manifest
from sites.missing.plan import Missingness

ROWS = """
id,hospital,outcome,part,age,sex,crp,ldl
p1,Ost,ill,train,61,f,3.5,-9
p2,Ost,healthy,val,?,m,-9.0,
p3,Ost,ill,test,,,1,2
p4,West,healthy,train,40,,,?
p5,West,ill,train,30,x,0.5,7
"""
MODALITIES = {"exam": ("age", "sex"), "lab": ("crp", "ldl")}


def columns(**changes: object):
    settings = {"id": "id", "site": "hospital", "label": "outcome", "modalities": MODALITIES}
    return TableColumns(**(settings | {"categorical": ("sex",)} | changes))


def prepare(tmp_path, rows=ROWS, classes=("healthy", "ill"), spec=None, **options: object):
    path = tmp_path / "heart.csv"
    path.write_text(rows.lstrip(), encoding="utf-8")
    options = {"missing_values": ("?", "-9")} | options
    return prepare_table(path, tmp_path / "fed", spec or columns(), classes, **options)


def vectors(tmp_path, site, modality):
    """By patient; None where blank."""
    found = load_features(tmp_path / "fed" / site / f"{modality}.csv")
    return {
        patient: [None if np.isnan(cell) else cell for cell in vector.tolist()]
        for patient, vector in found.items()
    }


def test_groups_of_columns_become_modalities(tmp_path):
    prepared = prepare(tmp_path, spec=columns(split="part"))
    # exam: age, age is blank, sex f, m, x, sex is blank; lab: crp, ldl, ldl is blank
    assert vectors(tmp_path, "ost", "exam") == {"p1": [61, 0, 1, 0, 0, 0], "p2": [None, 1, 0, 1, 0, 0]}
    assert vectors(tmp_path, "west", "exam") == {"p4": [40, 0, 0, 0, 0, 1], "p5": [30, 0, 0, 0, 1, 0]}
    assert vectors(tmp_path, "ost", "lab") == {"p1": [3.5, None, 1], "p3": [1, 2, 0]}
    assert vectors(tmp_path, "west", "lab") == {"p5": [0.5, 7, 0]}
    study = prepared.study
    assert (study.name, study.classes, study.positive) == ("heart", ("healthy", "ill"), "ill")
    assert [(m.name, m.kind, m.width, m.scaling, m.encoder) for m in study.modalities] == [
        ("exam", Kind.FEATURES, 6, Scaling.ZSCORE, "given"),
        ("lab", Kind.FEATURES, 3, Scaling.ZSCORE, "given"),
    ]
    assert study.privacy.min_count == 0
    manifest = load_manifest(site_folders(tmp_path / "fed")[0].manifest, study, 0)
    assert manifest.patient_ids == ("p1", "p2", "p3")
    assert manifest.labels.tolist() == [1, 0, 1]
    assert manifest.splits.tolist() == ["train", "val", "test"]


def test_columns_without_blanks_get_no_indicator(tmp_path):
    prepare(tmp_path, spec=columns(modalities={"age": ("age",), "crp": ("crp",), "sex": ("sex",)}))
    assert vectors(tmp_path, "ost", "age") == {"p1": [61]}
    assert vectors(tmp_path, "west", "crp") == {"p5": [0.5]}
    assert vectors(tmp_path, "ost", "sex") == {"p1": [1, 0, 0], "p2": [0, 1, 0]}


def many_rows(n_patients=200):
    generator = np.random.default_rng(0)
    outcomes = generator.choice(["a", "b", "c"], n_patients, p=[0.2, 0.3, 0.5])
    rows = [
        f"p{row},{'one' if row < 80 else 'two'},{outcome},{row}"
        for row, outcome in enumerate(outcomes.tolist())
    ]
    return "id,hospital,outcome,x\n" + "\n".join(rows)


def test_splits_are_drawn_by_label_and_site(tmp_path):
    spec = columns(modalities={"x": ("x",)}, categorical=())
    prepared = prepare(tmp_path, many_rows(), ("a", "b", "c"), spec, seed=5)
    assert prepared.study.positive is None
    assert prepared.study.seed == 5
    total = {"train": 0, "val": 0, "test": 0}
    for site in prepared.sites:
        for name in ("a", "b", "c"):
            counts = {split: n for (split, label), n in site.patients.items() if label == name}
            size = sum(counts.values())
            assert abs(counts["test"] - 0.2 * size) < 2
            assert abs(counts["val"] - 0.1 * size) < 2
            for split, n in counts.items():
                total[split] += n
    assert total == {"train": 140, "val": 20, "test": 40}


def test_same_seed_same_federation(tmp_path):
    spec = columns(modalities={"x": ("x",)}, categorical=())
    bytes_of = []
    for seed in (1, 1, 2):
        prepare(tmp_path, many_rows(), ("a", "b", "c"), spec, seed=seed, overwrite=True)
        bytes_of.append((tmp_path / "fed" / "one" / "patients.csv").read_bytes())
    assert bytes_of[0] == bytes_of[1] != bytes_of[2]


def test_absurd_vectors_are_named_by_row(tmp_path):
    np.savez(tmp_path / "ct.npz", p1=np.ones(2), p4=np.array([1, 1e30]))
    with pytest.raises(
        DataError, match=r"row 2 \(patient 'p4'\): feature 2 is 1e\+30, expected .* at most 1e\+15"
    ):
        prepare(tmp_path, features={"ct": tmp_path / "ct.npz"})
    assert not (tmp_path / "fed").exists()


def test_vectors_come_from_files_too(tmp_path):
    ct = {"p1": np.ones(100), "p4": np.zeros(100), "unknown": np.ones(100)}
    np.savez(tmp_path / "ct.npz", **ct)
    prepared = prepare(tmp_path, features={"ct": tmp_path / "ct.npz"}, allow_unmatched=True)
    assert [(m.name, m.width, m.scaling) for m in prepared.study.modalities][-1] == (
        "ct",
        100,
        Scaling.ZSCORE,
    )
    assert [site.present["ct"] for site in prepared.sites] == [1, 1]
    assert set(load_features(tmp_path / "fed" / "west" / "ct.npz", 100)) == {"p4"}
    assert [note.replace(f"{tmp_path}/", "") for note in prepared.notes] == [
        "ct.npz: 1 of 3 vectors match no patient: unknown",
        "ct.npz: no vector of 2 of 3 patients of Ost: p2, p3",
        "ct.npz: no vector of 1 of 2 patients of West: p5",
        "lab: crp is the same in every train row, so nothing is learned of it",
    ]
    with pytest.raises(DataError, match=r"ct\.npz: 1 of 3 vectors match no patient: unknown; .*unmatched"):
        prepare(tmp_path, features={"ct": tmp_path / "ct.npz"}, overwrite=True)


def test_rows_without_a_label_or_a_modality_can_be_left_out(tmp_path):
    rows = ROWS + "p6,Ost,,train,50,f,1,1\np7,West,ill,train,,,,\np8,West,,train,,,?,\n"
    with pytest.raises(DataError, match=r"row 6 \(line 7\): outcome is blank, .*\(2 such rows; --drop-unl"):
        prepare(tmp_path, rows)
    with pytest.raises(DataError, match=r"\(line 8\): patient 'p7' has no modality.*\(1 such rows; --drop-e"):
        prepare(tmp_path, rows, drop_unlabelled=True)
    with pytest.raises(DataError, match=r"row 9 \(line 10\): hospital is blank"):
        prepare(tmp_path, f"{rows}p9,,ill,train,1,,,\n", drop_unlabelled=True)
    np.savez(tmp_path / "ct.npz", p1=np.ones(3), p6=np.ones(3))  # the one left out is no stranger
    options = {"drop_unlabelled": True, "drop_empty": True, "features": {"ct": tmp_path / "ct.npz"}}
    prepared = prepare(tmp_path, rows, **options)
    assert sum(site.n_patients for site in prepared.sites) == 5
    assert prepared.notes[0] == "2 rows without a label left out"
    assert "1 row without any modality left out" in prepared.notes
    assert not any("match no patient" in note for note in prepared.notes)


def test_a_class_without_a_patient_is_refused(tmp_path):
    with pytest.raises(DataError, match="no patient has the class 'dead', expected at least one of each"):
        prepare(tmp_path, classes=("healthy", "ill", "dead"))
    rows = ROWS.replace("healthy", "").replace("p3,Ost,ill,test,,,1,2", "p3,Ost,healthy,test,,,,")
    with pytest.raises(DataError, match="no patient has the class 'healthy'"):
        prepare(tmp_path, rows, drop_unlabelled=True, drop_empty=True)


def test_all_wrong_labels_and_cells_are_told_at_once(tmp_path):
    rows = ROWS.replace("p1,Ost,ill", "p1,Ost,Ill").replace("p5,West,ill", "p5,NA,NA")
    with pytest.raises(DataError) as error:
        prepare(tmp_path, rows.replace("3.5", '"3,5"'))
    for part in (
        "outcome is 'Ill'",
        "outcome is 'NA', expected one of the study's classes healthy, ill",
        "--missing-values outcome=NA",
        "crp is '3,5'",
    ):
        assert part in str(error.value)
    rows = ROWS.replace("p5,West", "p5,NA").replace("p4,West", "p4,nan")
    notes = prepare(tmp_path, rows).notes
    assert any("hospital: 'NA' is a site; --missing-values hospital=NA" in note for note in notes)


def test_a_label_may_be_written_as_another_spelling_of_its_number(tmp_path):
    prepared = prepare(tmp_path, ROWS.replace("healthy", "0").replace("ill", "1.0"), ("0", "1"))
    assert (tmp_path / "fed" / "west" / "patients.csv").read_text().count(",1,") == 1
    assert sum(site.n_patients for site in prepared.sites) == 5
    with pytest.raises(DataError, match=r"outcome is '1\.0' \(in 3 rows\), expected one"):
        prepare(tmp_path, ROWS.replace("healthy", "1").replace("ill", "1.0"), ("1", "01"), overwrite=True)


def test_sites_keep_their_names_in_any_script(tmp_path):
    prepared = prepare(tmp_path, ROWS.replace("Ost", "北京").replace("West", "北京 B"))
    sites = site_folders(tmp_path / "fed")
    assert [(site.id, site.display_name) for site in sites] == [
        ("b-cb02d5", "北京 B"),
        ("site-68c77e", "北京"),
    ]
    assert "site 北京 has the id site-68c77e" in prepared.notes


def test_a_federation_without_validation_rows_says_so(tmp_path):
    rows = ROWS.replace(",val,", ",train,")
    assert NO_VALIDATION in prepare(tmp_path, rows, spec=columns(split="part")).notes
    assert NO_VALIDATION not in prepare(tmp_path, spec=columns(split="part"), overwrite=True).notes


@pytest.mark.parametrize("ending", ["tsv", "parquet"])
def test_other_formats(tmp_path, ending):
    frame = pd.DataFrame(
        {"id": [1, 2, 3], "hospital": list("aab"), "outcome": list("yny"), "x": [0.5, None, 2]}
    )
    frame["y"] = [1, 2, 3]
    path = tmp_path / f"t.{ending}"
    frame.to_parquet(path) if ending == "parquet" else frame.to_csv(path, sep="\t", index=False)
    spec = columns(modalities={"xy": ("x", "y")}, categorical=())
    prepare_table(path, tmp_path / "fed", spec, ("n", "y"))
    assert vectors(tmp_path, "a", "xy") == {"1": [0.5, 0, 1], "2": [None, 1, 2]}


@pytest.mark.parametrize(
    ("old", "new", "sentence"),
    [
        pytest.param(
            "p2,", "p1,", r"row 2 \(line 3\): id 'p1' occurs twice, first in row 1", id="repeated-id"
        ),
        pytest.param("p2,", ",", r"row 2 \(line 3\): id is blank", id="blank-id"),
        pytest.param("p2,Ost", "p2,", r"row 2 \(line 3\): hospital is blank", id="blank-site"),
        pytest.param("p2,Ost,healthy", "p2,Ost,", r"row 2 \(line 3\): outcome is blank", id="blank-label"),
        pytest.param(
            "p2,Ost,healthy", "p2,Ost,well", "outcome is 'well', expected one of .* healthy, ill", id="label"
        ),
        pytest.param(",val,", ",dev,", r"row 2 \(line 3\): part is 'dev', expected one of train", id="split"),
        pytest.param(",val,", ",,", r"row 2 \(line 3\): part is blank", id="blank-split"),
        pytest.param(
            ",61,", ",old,", r"row 1 \(line 2\): age is 'old', expected a finite number; name", id="word"
        ),
        pytest.param(",61,", ",inf,", "age is 'inf', expected a finite number", id="infinity"),
        pytest.param(",61,", ",1e99,", "age is '1e99', expected a finite number", id="too-large"),
        pytest.param("40,,,?", ",,,?", r"row 4 \(line 5\): patient 'p4' has no modality", id="no-modality"),
        pytest.param(
            "p5,West", "p5,ost", "sites 'Ost' and 'ost' would both have the id 'ost'", id="two-sites-one-id"
        ),
        pytest.param(
            ",part,", ",teil,", r"no column 'part'.*; the table has id, hospital, outcome, teil", id="column"
        ),
        pytest.param("train", "test", "no patient of any site is in the split train", id="no-train-row"),
    ],
)
def test_unusable_tables_leave_nothing_behind(tmp_path, old, new, sentence):
    assert old in ROWS
    with pytest.raises(DataError, match=sentence):
        prepare(tmp_path, ROWS.replace(old, new), spec=columns(split="part"))
    assert [entry.name for entry in tmp_path.iterdir()] == ["heart.csv"]


@pytest.mark.parametrize(
    ("changes", "error", "sentence"),
    [
        pytest.param({"id": "idd"}, DataError, r"no column 'idd' \(did you mean 'id'\?\)", id="id"),
        pytest.param({"site": "ward"}, DataError, "no column 'ward'", id="site"),
        pytest.param({"label": "death"}, DataError, "no column 'death'", id="label"),
        pytest.param({"split": "fold"}, DataError, "no column 'fold'", id="split"),
        pytest.param(
            {"modalities": {"lab": ("crp", "hdl")}}, DataError, "no column 'hdl'", id="modality-column"
        ),
        pytest.param({"categorical": ("part",)}, DataError, "'part' is in no modality", id="categorical"),
        pytest.param({"modalities": {}}, StudyError, "no modality: expected at least one", id="no-modality"),
        pytest.param({"modalities": {"lab": ()}}, StudyError, "'lab' has no column", id="no-column"),
        pytest.param(
            {"modalities": {"a/b": ("crp",)}}, StudyError, "modality 'a/b': expected a name", id="name"
        ),
        pytest.param({"modalities": {"lab": ("crp", "crp")}}, StudyError, "'crp' twice", id="column-twice"),
        pytest.param(
            {"modalities": {"lab": ("crp", "outcome")}},
            StudyError,
            "'outcome' is the label column",
            id="leak",
        ),
    ],
)
def test_settings_that_contradict_the_table_are_refused(tmp_path, changes, error, sentence):
    with pytest.raises(error, match=sentence):
        prepare(tmp_path, spec=columns(**({"categorical": ()} | changes)))
    assert [entry.name for entry in tmp_path.iterdir()] == ["heart.csv"]


@pytest.mark.parametrize(
    ("options", "sentence"),
    [
        pytest.param({"classes": ("ill",)}, "--classes is 'ill', expected at least two", id="one-class"),
        pytest.param(
            {"classes": ("ill", "healthy", "ill")}, "at least two different names", id="class-twice"
        ),
        pytest.param({"positive": "sick"}, "positive 'sick' is not one of the classes", id="positive"),
        pytest.param({"seed": -1}, "seed must not be negative", id="seed"),
        pytest.param(
            {"features": {"lab": "lab.npz"}}, "'lab' is given by --modality and by --features", id="both"
        ),
    ],
)
def test_settings_without_a_valid_study_are_refused(tmp_path, options, sentence):
    with pytest.raises(StudyError, match=sentence):
        prepare(tmp_path, **options)
    assert [entry.name for entry in tmp_path.iterdir()] == ["heart.csv"]


def test_an_empty_table_leaves_no_site(tmp_path):
    with pytest.raises(DataError, match="no patient, so no site is left"):
        prepare(tmp_path, ROWS.lstrip().split("\n")[0])
    rows = "id,hospital,outcome,age,crp\np1,a,ill,3,\np2,a,healthy,4,?"
    spec = columns(modalities={"a": ("age",), "lab": ("crp",)}, categorical=())
    with pytest.raises(DataError, match="the columns crp are blank in every row"):
        prepare(tmp_path, rows, spec=spec)


def test_unsuitable_feature_files_are_refused(tmp_path):
    path = tmp_path / "ct.npz"
    with pytest.raises(DataError, match=r"ct\.npz: no such features file"):
        prepare(tmp_path, features={"ct": path})
    np.savez(path, other=np.ones(3))
    with pytest.raises(DataError, match=r"none of its 1 patient ids is in .*heart\.csv"):
        prepare(tmp_path, features={"ct": path})
    np.savez(path, p1=np.ones(3), p2=np.ones(4))
    with pytest.raises(DataError, match=r"\(patient 'p2'\): found 4 numbers, expected 3"):
        prepare(tmp_path, features={"ct": path})
    np.savez(path, p1=np.array([1, np.inf]))
    with pytest.raises(DataError, match="feature 2 is inf"):
        prepare(tmp_path, features={"ct": path})
    assert not (tmp_path / "fed").exists()


def test_mar_can_be_driven_by_any_column(tmp_path):
    rows = "id,hospital,outcome,age,crp,ldl,ward\n" + "\n".join(
        f"p{row},{('Ost', 'West')[row % 2]},{('ill', 'healthy')[row % 3 == 0]},{row},1,2,{'abc'[row // 100]}"
        for row in range(300)
    )
    spec = columns(modalities={"exam": ("age",), "lab": ("crp", "ldl")}, categorical=())
    prepared = prepare(tmp_path, rows, spec=spec, missing=Missingness("mar", 0.4, ("ward",), 4.0))
    assert prepared.notes[-1].startswith("mar on ward at 0.4: ")
    kept = [int(patient[1:]) for site in ("ost", "west") for patient in vectors(tmp_path, site, "lab")]
    assert sum(row < 100 for row in kept) > 85
    assert sum(row >= 200 for row in kept) < 60


def test_mar_of_a_table_needs_an_existing_column(tmp_path):
    with pytest.raises(StudyError, match="expected one of hospital, part, age, sex, crp, ldl"):
        prepare(tmp_path, missing=Missingness("mar", 0.4))
    with pytest.raises(StudyError, match="--driver is 'outcome', expected a column: hospital"):
        prepare(tmp_path, missing=Missingness("mar", 0.4, ("outcome",)))
    assert not (tmp_path / "fed").exists()
