"""The MMIST-ccRCC release: known facts, and the prepared federation."""

from collections import Counter

import numpy as np
import pandas as pd
import pytest
from sklearn.feature_extraction.text import HashingVectorizer
from sklearn.linear_model import LogisticRegression
from sklearn.metrics import roc_auc_score

from mmare.errors import DataError, StudyError
from mmare.study.choices import Kind, PromptMode, Scaling
from mmare.wire.messages import Split
from sites.datasets.mmist import MMIST_PROMPT, prepare_mmist
from sites.features import load_features
from sites.federation import site_folders
from sites.manifest import load_manifest
from sites.missing.plan import Missingness
from sites.prompts import compile_prompt
from tests.data_folder import data_folder
from tests.sites.test_prompts import GOLDEN

GOLDEN_PROMPT = (
    "The patient is a male of White race, diagnosed at age 70-79, who has a VHL mutation and a PBRM1 mutation"
    " without a TTN mutation. Tumor characteristics include tumor stage T3 with node involvement at stage NX"
    " and pathological metastasis at stage MX. The overall tumor stage is III and the tumor grade is G3."
)


@pytest.fixture(scope="module")
def release():
    return data_folder("mmist")


@pytest.fixture(scope="module")
def code(release):
    return release / "datasets" / "ccRCC" / "Code"


@pytest.fixture(scope="module")
def table(code):
    return pd.read_csv(code / "clinical+genomic_split.csv").set_index("case_id")


@pytest.fixture(scope="module")
def prepared(release, tmp_path_factory):
    """By source, stratified, all patients, all modalities."""
    return prepare_mmist(release, tmp_path_factory.mktemp("mmist") / "fed", "source", "stratified")


@pytest.fixture(scope="module")
def patients(prepared):
    """The written manifests of all sites in one table, by patient id."""
    sites = site_folders(prepared.folder)
    tables = [load_manifest(site.manifest, prepared.study, 0).table.assign(site=site.id) for site in sites]
    return pd.concat(tables).set_index("patient_id")


def chosen(code, modality):
    return set(pd.read_csv(code / f"{modality}_patientfiles.csv")["case_id"])


def split_sizes(prepared):
    sizes = Counter()
    for site in prepared.sites:
        for (split, _), n_patients in site.patients.items():
            sizes[split] += n_patients
    return [sizes[split] for split in Split]


# --- facts about the release, read without our code ---


@pytest.mark.data
def test_rows_sources_labels_and_split_of_the_release(table):
    assert table.reset_index().shape == (618, 20)
    assert table.index.is_unique
    assert Counter(table.index.str.split("-").str[0]) == {"TCGA": 429, "C3L": 94, "C3N": 95}
    assert Counter(table["Split"]) == {"train": 497, "test": 121}
    assert Counter(table["vital_status_12"]) == {1: 543, 0: 75}


@pytest.mark.data
def test_presence_of_examinations(table, code):
    ct, mri, wsi = (chosen(code, modality) for modality in ("CT", "MRI", "WSI"))
    train, test = (set(table.index[table["Split"] == split]) for split in ("train", "test"))
    genomics = set(table.index[table["VHL_mutation"] != -1])
    assert wsi == set(table.index)
    counted = [(len(having), len(having & train), len(having & test)) for having in (ct, mri, genomics)]
    assert counted == [(239, 181, 58), (52, 37, 15), (462, 361, 101)]
    patterns = Counter(
        "".join(str(int(patient in having)) for having in (ct, mri, genomics)) for patient in table.index
    )
    assert patterns == {
        "000": 89,
        "001": 258,
        "010": 8,
        "011": 24,
        "100": 55,
        "101": 164,
        "110": 4,
        "111": 16,
    }
    cptac = set(table.index[~table.index.str.startswith("TCGA")])
    shares = [round(100 * len(having & cptac) / len(cptac)) for having in (ct, mri, genomics)]
    assert shares == [27, 3, 100]


@pytest.mark.data
def test_missing_codes(table):
    genes = table[["VHL_mutation", "PBMR1_mutation", "TTN_mutation"]] == -1
    assert genes.sum().tolist() == [156] * 3
    assert (genes.any(axis=1) == genes.all(axis=1)).all()
    assert table.index[genes.any(axis=1)].str.startswith("TCGA").all()
    assert table[["cancer_history", "age_diag"]].isna().sum().tolist() == [545, 17]
    assert table["cancer_history"].dropna().unique().tolist() == [1]
    assert sorted(table["age_diag"].dropna().unique()) == [1, 2, 3, 4, 5, 6, 7, 8]
    staging = [
        "ajcc_path_tumor_pt",
        "ajcc_path_nodes_pn",
        "ajcc_clin_metastasis_cm",
        "ajcc_path_metastasis_pm",
        "ajcc_path_tumor_stage",
    ]
    assert (table[staging] == -1).sum().tolist() == [62, 62, 494, 74, 18]
    assert Counter(table.filter(like="race_").sum(axis=1)) == {1: 613, 0: 5}


@pytest.mark.data
def test_codes_fit_the_stage_that_they_imply(table):
    """The cross tables behind the inference: T1 is stage I, T2 is II, T3 is III, T4 and M1 are IV."""
    assert Counter(table["gender"]) == {1: 413, 0: 205}
    assert set(table["grade"]) == {1, 2, 3, 4, 5}
    stage, pt, pm = (table[f"ajcc_path_{name}"] for name in ("tumor_stage", "tumor_pt", "metastasis_pm"))
    for codes, implied in (((1, 2, 3), 1), ((4, 5, 6), 2), ((7, 8, 9, 10), 3)):
        local = stage[pt.isin(codes) & (stage != 4)]
        assert (local == implied).mean() > 0.97, implied
    assert (stage[pt == 11] == 4).all()
    assert stage[table["ajcc_path_nodes_pn"] == 2].isin([3, 4]).all()
    assert (stage[pm == 2] == 4).sum() == 72
    assert (stage[pm == 1] == 4).sum() == 2


@pytest.mark.data
def test_the_thesis_is_the_release_without_one_patient(table, code):
    """Of all patients, exactly one leaves the thesis's counts when removed."""
    ct = table.index.isin(chosen(code, "CT"))
    train = table["Split"] == "train"
    fits = []
    for patient in table.index[table["vital_status_12"] == 0]:
        kept = train & (table.index != patient)
        alive = table["vital_status_12"][kept].sum()
        genomics = (table["VHL_mutation"][kept] != -1).mean()
        counts = (int(kept.sum()), int(alive), round(100 * ct[kept].mean(), 1), round(100 * genomics, 1))
        if counts == (496, 438, 36.3, 72.8):
            fits.append(patient)
    alike = table.loc[fits]
    assert "TCGA-B0-4713" in fits
    assert (alike["VHL_mutation"] == -1).all()
    assert set(fits) <= chosen(code, "CT")
    assert len(fits) == 1


@pytest.mark.data
@pytest.mark.parametrize(
    ("modality", "listed", "shape", "n_files"),
    [("CT", "CT", (1, 1, 512, 1), 736), ("MRI", "MR", (1, 1, 512, 1), 522), ("WSI", None, (1, 1024), 2907)],
)
def test_every_chosen_exam_resolves_to_a_finite_vector(code, modality, listed, shape, n_files):
    folder = code / "Features" / f"{modality} Features"
    assert len(list(folder.glob("*.npz"))) == n_files
    exams = pd.read_csv(code / f"{modality}_patientfiles.csv")
    if listed is None:
        files = exams["chosen_exam"]
    else:
        rows = pd.read_csv(code / f"patients_with_labels_{listed}_final.csv")
        rows["k"] = rows.groupby("case_id").cumcount() + 1
        merged = exams.merge(rows, left_on=["case_id", "chosen_exam"], right_on=["case_id", "File"])
        assert len(merged) == len(exams)
        files = merged["case_id"] + "-" + merged["k"].astype(str) + ".npz"
    for file in files:
        with np.load(folder / file) as archive:
            assert archive.files == ["arr_0"]
            assert archive["arr_0"].shape == shape
            assert archive["arr_0"].dtype == np.float32
            assert np.isfinite(archive["arr_0"]).all()


@pytest.mark.data
def test_slides_of_patients_outside_the_table_exist(table, code):
    files = (code / "Features" / "WSI Features").glob("*.npz")
    names = [file.stem.split("-") for file in files]
    slides = {"-".join(name[: 3 if name[0] == "TCGA" else 2]) for name in names}
    assert len(slides) == 759
    assert len(slides - set(table.index)) == 141


@pytest.mark.data
def test_hospitals_of_tcga(table, code):
    tcga = table[table.index.str.startswith("TCGA")]
    hospital = tcga.index.str.split("-").str[1]
    sizes = {"BP": 131, "B0": 90, "CJ": 71, "A3": 40, "CZ": 35, "AK": 24, "CW": 16, "DV": 11}
    assert Counter(hospital) == sizes | {"B8": 6, "G6": 3, "B2": 1, "EU": 1}
    deaths = Counter(hospital[tcga["vital_status_12"] == 0])
    assert [deaths[name] for name in ("BP", "B0", "CJ", "A3", "CZ", "AK", "CW")] == [8, 24, 5, 1, 4, 0, 2]
    scanned = chosen(code, "CT") | chosen(code, "MRI")
    assert not set(tcga.index[hospital.isin(["A3", "AK"])]) & scanned


# --- the prepared federation ---


@pytest.mark.data
def test_sites_by_source(prepared):
    assert {site.id: site.n_patients for site in prepared.sites} == {"cptac": 189, "tcga": 429}
    assert {site.id: site.present for site in prepared.sites} == {
        "cptac": {"ct": 51, "mri": 5, "wsi": 189, "clinical": 189},
        "tcga": {"ct": 188, "mri": 47, "wsi": 429, "clinical": 429},
    }
    assert split_sizes(prepared) == [432, 62, 124]


@pytest.mark.data
def test_sites_by_hospital(release, tmp_path):
    prepared = prepare_mmist(release, tmp_path / "fed", "hospital", "stratified", without=["wsi", "mri"])
    sizes = {"a3": 40, "b0": 90, "bp": 131, "cj": 71, "cptac": 189, "cz": 35, "tcga-other": 62}
    assert {site.id: site.n_patients for site in prepared.sites} == sizes
    assert set(site_folders(tmp_path / "fed")[0].modalities) == {"clinical"}
    some = prepare_mmist(
        release, tmp_path / "some", "hospital", "official", without=["wsi", "mri"], min_patients=80
    )
    assert {site.id: site.n_patients for site in some.sites} == {
        "b0": 90,
        "bp": 131,
        "cptac": 189,
        "tcga-other": 208,
    }


@pytest.mark.data
def test_the_cohort_of_the_thesis(release, tmp_path):
    prepared = prepare_mmist(
        release, tmp_path / "fed", "source", "stratified", cohort="thesis", without=["wsi"]
    )
    assert split_sizes(prepared) == [431, 62, 124]
    assert sum(site.n_patients for site in prepared.sites) == 617
    dead = [n for site in prepared.sites for (_, name), n in site.patients.items() if name == "dead"]
    assert sum(dead) == 74


@pytest.mark.data
def test_the_stratified_split_is_fair_to_label_and_presence(patients, code):
    presence = {
        "mri": patients.index.isin(chosen(code, "MRI")),
        "ct": patients.index.isin(chosen(code, "CT")),
        "genomics": patients["vhl"].notna(),
        "dead": patients["label"] == "dead",
    }
    for name, has in presence.items():
        for split, share in (("train", 0.7), ("val", 0.1), ("test", 0.2)):
            drawn = int((has & (patients["split"] == split)).sum())
            assert abs(drawn - share * has.sum()) <= 3.5, (name, split)


@pytest.mark.data
def test_the_official_split_keeps_the_test_set(release, table, tmp_path):
    prepared = prepare_mmist(
        release, tmp_path / "fed", "source", "official", seed=3, without=["wsi", "ct", "mri"]
    )
    assert split_sizes(prepared) == [434, 63, 121]
    for site in site_folders(tmp_path / "fed"):
        manifest = load_manifest(site.manifest, prepared.study, 0)
        official = table["Split"].loc[list(manifest.patient_ids)] == "test"
        assert ((manifest.splits == Split.TEST) == official).all()


@pytest.mark.data
def test_the_seed_moves_the_split_and_is_written(release, patients, tmp_path):
    again = prepare_mmist(release, tmp_path / "a", "source", "stratified", without=["wsi"])
    other = prepare_mmist(release, tmp_path / "b", "source", "stratified", seed=1, without=["wsi"])
    assert (again.study.seed, other.study.seed) == (0, 1)
    splits = [
        load_manifest(folder / "tcga" / "patients.csv", again.study, 0)
        for folder in (tmp_path / "a", tmp_path / "b")
    ]
    assert (splits[0].splits == patients["split"].loc[list(splits[0].patient_ids)]).all()
    assert (splits[0].splits != splits[1].splits).any()


@pytest.mark.data
def test_the_study(prepared, release, tmp_path):
    study = prepared.study
    assert (study.name, study.classes, study.positive) == ("mmist-vital12", ("dead", "alive"), "alive")
    assert [(m.name, m.kind, m.width, m.scaling, m.encoder) for m in study.modalities] == [
        ("ct", Kind.FEATURES, 512, Scaling.ZSCORE, "given"),
        ("mri", Kind.FEATURES, 512, Scaling.ZSCORE, "given"),
        ("wsi", Kind.FEATURES, 1024, Scaling.L2, "given"),
        ("clinical", Kind.TEXT, 512, Scaling.L2, "hashing-text"),
    ]
    assert study.modalities[-1].prompt == MMIST_PROMPT
    assert study.modalities[-1].prompt_mode is PromptMode.OMIT
    assert study.training.oversample == {"dead": 6.0}
    assert study.training.noise_probability == 0.30
    assert study.privacy.min_count == 0
    bare = prepare_mmist(release, tmp_path / "fed", "source", "stratified", without=["clinical"])
    assert [modality.name for modality in bare.study.modalities] == ["ct", "mri", "wsi"]
    sites = site_folders(tmp_path / "fed")
    assert all(set(site.modalities) == {"ct", "mri", "wsi"} for site in sites)
    assert load_manifest(sites[0].manifest, bare.study, 0).table.columns.tolist() == [
        "patient_id",
        "label",
        "split",
    ]


@pytest.mark.data
def test_vectors_are_those_of_the_chosen_exams(prepared, code):
    """The k-th exam of a patient in the list is file k; among the chosen ones some are not the first."""
    tcga = {site.id: site for site in site_folders(prepared.folder)}["cptac"]
    exams = pd.read_csv(code / "patients_with_labels_CT_final.csv")
    picked = pd.read_csv(code / "CT_patientfiles.csv").set_index("case_id")["chosen_exam"]
    written = load_features(tcga.modalities["ct"].file, 512)
    assert len(written) == 51
    ranks = Counter()
    for patient, vector in written.items():
        rank = exams.loc[exams["case_id"] == patient, "File"].tolist().index(picked[patient]) + 1
        ranks[rank] += 1
        with np.load(code / "Features" / "CT Features" / f"{patient}-{rank}.npz") as archive:
            np.testing.assert_array_equal(vector, archive["arr_0"].ravel())
    assert max(ranks) > 1


@pytest.mark.data
def test_clinical_columns_are_decoded(patients, table):
    assert set(patients.index) == set(table.index)
    assert Counter(patients["sex"]) == {"male": 413, "female": 205}
    assert Counter(patients["race"].dropna()) == {
        "White": 553,
        "Black or African American": 27,
        "Asian": 20,
        "other": 11,
        "Hispanic or Latino": 2,
    }
    columns = ["age", "race", "pt", "pn", "pm", "stage", "grade", "vhl", "pbrm1", "ttn"]
    assert patients[columns].isna().sum().tolist() == [17, 5, 62, 62, 74, 18, 0, 156, 156, 156]
    assert set(patients["pt"].dropna()) == {
        "T1",
        "T1a",
        "T1b",
        "T2",
        "T2a",
        "T2b",
        "T3",
        "T3a",
        "T3b",
        "T3c",
        "T4",
    }
    assert set(patients.loc[patients["stage"] == "I", "pt"].dropna()) == {"T1", "T1a", "T1b"}
    assert (patients["pbrm1"] == "a PBRM1 mutation").sum() == 185
    assert Counter(patients["label"]) == {"alive": 543, "dead": 75}


@pytest.mark.data
def test_the_golden_prompt_and_all_gaps(patients):
    prompt = compile_prompt(MMIST_PROMPT)
    rows = {
        patient: {k: v for k, v in row.items() if isinstance(v, str)} for patient, row in patients.iterrows()
    }
    assert prompt.render(rows["C3L-00004"], PromptMode.OMIT) == GOLDEN_PROMPT
    gaps = Counter(tuple(sorted(set(prompt.fields) - set(row))) for row in rows.values())
    assert gaps == {
        tuple(sorted(missing)): number
        for missing, number in zip(GOLDEN, (384, 154, 1, 12, 45, 4, 1, 17), strict=True)
    }


@pytest.mark.data
def test_the_clinical_text_predicts_survival(patients):
    """An independent learner on the prompts reaches what was measured before: test AUC .79, sd .05."""
    prompt = compile_prompt(MMIST_PROMPT)
    texts = [
        prompt.render({k: v for k, v in row.items() if isinstance(v, str)}, PromptMode.OMIT)
        for _, row in patients.iterrows()
    ]
    words = HashingVectorizer(n_features=512, ngram_range=(1, 2), alternate_sign=True).transform(texts)
    train, test = (np.flatnonzero(patients["split"] == split) for split in ("train", "test"))
    alive = (patients["label"] == "alive").to_numpy()
    model = LogisticRegression(class_weight="balanced", max_iter=500).fit(words[train], alive[train])
    assert 0.65 < roc_auc_score(alive[test], model.decision_function(words[test])) < 0.92


@pytest.mark.data
def test_the_inner_folder_is_found_too(code, prepared, tmp_path):
    again = prepare_mmist(code, tmp_path / "fed", "source", "stratified")
    assert again.sites == prepared.sites


@pytest.mark.data
def test_mar_is_driven_by_the_grade_and_removes_vectors_and_prompts(release, patients, tmp_path):
    plan = Missingness("mar", 0.4, slope=3.0)
    prepared = prepare_mmist(release, tmp_path / "fed", missing=plan)
    assert prepared.notes[0].startswith("mar on grade at 0.4: 0.")
    grade = patients["grade"].str[1:].replace("X", "5").astype(int)
    fields = list(compile_prompt(MMIST_PROMPT).fields)
    for site in site_folders(prepared.folder):
        rows = load_manifest(site.manifest, prepared.study, 0).table.set_index("patient_id")
        slides = load_features(site.modalities["wsi"].file)
        for lost in (rows[fields].isna().all(axis=1), pd.Series(~rows.index.isin(slides), rows.index)):
            assert roc_auc_score(lost, grade.loc[rows.index]) > 0.7
    for site in prepared.sites:
        cell = prepared.amputation["sites"][site.id]["modalities"]["wsi"]
        assert site.present["wsi"] / site.n_patients == pytest.approx(1 - cell["achieved"])
        assert cell["mean_probability"] == pytest.approx(0.4, abs=1e-6)


@pytest.mark.data
def test_a_driver_may_be_a_field_of_an_omitted_modality(release, tmp_path):
    plan = Missingness("mar", 0.4, ("stage",))
    prepared = prepare_mmist(release, tmp_path / "fed", without=["clinical"], missing=plan)
    table = load_manifest(prepared.folder / "tcga" / "patients.csv", prepared.study, 0).table
    assert list(table.columns) == ["patient_id", "label", "split"]
    assert prepared.amputation["driver"] == "stage"


# --- bad input, on a release of four patients built here ---

HEADER = (
    "case_id,gender,age_diag,grade,cancer_history,ajcc_path_tumor_pt,ajcc_path_nodes_pn,ajcc_clin_metastasis_cm,"
    "ajcc_path_metastasis_pm,ajcc_path_tumor_stage,vital_status_12,race_Asian,race_Black or African American,"
    "race_Hispanic or Latino,race_White,race_other,VHL_mutation,PBMR1_mutation,TTN_mutation,Split"
)
ROWS = (
    "C3L-1,1,6.0,3,,7,0,1,0,3,1,0,0,0,1,0,1,1,0,train",
    "C3N-2,0,,3,1.0,-1,-1,-1,-1,-1,0,0,0,0,0,0,0,0,1,test",
    "TCGA-AA-3,1,5.0,2,,3,1,1,1,1,1,0,1,0,0,0,-1,-1,-1,train",
    "TCGA-BB-4,1,5.0,2,,3,1,1,1,1,0,0,1,0,0,0,-1,-1,-1,train",
)


def small_release(folder):
    folder.mkdir()
    (folder / "clinical+genomic_split.csv").write_text("\n".join([HEADER, *ROWS]))
    for name, short in (("CT", "CT"), ("MRI", "MR")):
        (folder / f"{name}_patientfiles.csv").write_text(f"case_id,chosen_exam\nC3L-1,/{name}/b\n")
        exams = f"case_id,File\nC3L-1,/{name}/a\nC3L-1,/{name}/b\nTCGA-AA-3,/{name}/a\n"
        (folder / f"patients_with_labels_{short}_final.csv").write_text(exams)
    ids = [row.split(",")[0] for row in ROWS]
    slides = [f"{patient},{patient}-21.npz" for patient in ids]
    (folder / "WSI_patientfiles.csv").write_text("\n".join(["case_id,chosen_exam", *slides]))
    files = {"CT": ["C3L-1-2"], "MRI": ["C3L-1-2"], "WSI": [f"{patient}-21" for patient in ids]}
    for name, stems in files.items():
        shape = (1, 1024) if name == "WSI" else (1, 1, 512, 1)
        (folder / "Features" / f"{name} Features").mkdir(parents=True)
        for number, stem in enumerate(stems):
            vector = np.full(shape, number, np.float32)
            np.savez(folder / "Features" / f"{name} Features" / f"{stem}.npz", vector)
    return folder


def test_a_small_release_of_the_same_form(tmp_path):
    prepared = prepare_mmist(
        small_release(tmp_path / "in"), tmp_path / "fed", "hospital", "official", min_patients=1
    )
    assert [site.id for site in prepared.sites] == ["aa", "bb", "cptac"]
    assert prepared.sites[2].present == {"ct": 1, "mri": 1, "wsi": 2, "clinical": 2}


@pytest.mark.parametrize(
    ("file", "old", "new", "sentence"),
    [
        pytest.param(
            "clinical+genomic_split.csv",
            "C3N-2,",
            "C3L-1,",
            r"row 2 \(line 3\): case_id 'C3L-1' occurs twice",
            id="twice",
        ),
        pytest.param(
            "clinical+genomic_split.csv",
            ",6.0,",
            ",9.0,",
            r"row 1 \(line 2\): age_diag is '9.0', expected -1 or 1, 2",
            id="age",
        ),
        pytest.param(
            "clinical+genomic_split.csv",
            "3,1,0,0,0,1,0,1",
            "3,,0,0,0,1,0,1",
            "row 1 .*vital_status_12 is missing",
            id="label-blank",
        ),
        pytest.param(
            "clinical+genomic_split.csv",
            "3,1,0,0,0,1,0,1",
            "3,2,0,0,0,1,0,1",
            "vital_status_12 is '2'",
            id="label",
        ),
        pytest.param(
            "clinical+genomic_split.csv",
            "0,0,0,1,0,1,1,0",
            "1,0,0,1,0,1,1,0",
            "row 1 .*: 2 race columns are set",
            id="two-races",
        ),
        pytest.param(
            "clinical+genomic_split.csv",
            "1,test",
            "1,hold",
            "Split is 'hold', expected one of train",
            id="split",
        ),
        pytest.param(
            "clinical+genomic_split.csv",
            "PBMR1",
            "PBRM1",
            r"no column 'PBMR1_mutation' \(did you mean",
            id="column",
        ),
        pytest.param(
            "CT_patientfiles.csv",
            "/CT/b",
            "/CT/z",
            r"row 1 \(line 2\): chosen_exam is not among the exams",
            id="exam",
        ),
        pytest.param(
            "patients_with_labels_MR_final.csv",
            "/MRI/a\nC3L",
            "/MRI/a\nC3L-1,/MRI/c\nC3L",
            r"C3L-1-3\.npz: no such features",
            id="rank",
        ),
    ],
)
def test_malformed_releases_are_refused(tmp_path, file, old, new, sentence):
    path = small_release(tmp_path / "in") / file
    assert old in path.read_text()
    path.write_text(path.read_text().replace(old, new, 1))
    with pytest.raises(DataError, match=sentence):
        prepare_mmist(tmp_path / "in", tmp_path / "fed", "source", "official")
    assert [entry.name for entry in tmp_path.iterdir()] == ["in"]


@pytest.mark.parametrize(
    ("content", "sentence"),
    [
        pytest.param(
            {"arr_0": np.ones((1, 2048), np.float32)}, "found 2048 numbers, expected 1024", id="width"
        ),
        pytest.param({"arr_0": np.full((1, 1024), np.nan)}, "expected 1024 finite ones", id="nan"),
        pytest.param({"x": np.ones((1, 1024))}, "an array arr_0", id="key"),
    ],
)
def test_damaged_vectors_are_refused(tmp_path, content, sentence):
    file = small_release(tmp_path / "in") / "Features" / "WSI Features" / "TCGA-AA-3-21.npz"
    np.savez(file, **content)
    with pytest.raises(DataError, match=sentence):
        prepare_mmist(tmp_path / "in", tmp_path / "fed")
    file.write_bytes(b"nonsense")
    with pytest.raises(DataError, match="cannot be read as npz"):
        prepare_mmist(tmp_path / "in", tmp_path / "fed")
    file.unlink()
    with pytest.raises(DataError, match="no such features file, though"):
        prepare_mmist(tmp_path / "in", tmp_path / "fed")
    assert not (tmp_path / "fed").exists()


@pytest.mark.parametrize(
    ("options", "error", "sentence"),
    [
        pytest.param({"by": "city"}, StudyError, "--by is 'city', expected one of source, hospital", id="by"),
        pytest.param({"split": "random"}, StudyError, "--split is 'random'", id="split"),
        pytest.param({"cohort": "all"}, StudyError, "--cohort is 'all'", id="cohort"),
        pytest.param(
            {"without": ["pet"]}, StudyError, "--without is 'pet', expected one of ct, mri", id="without"
        ),
        pytest.param(
            {"without": ["ct", "mri", "wsi", "clinical"]}, StudyError, "leaves no modality", id="nothing"
        ),
        pytest.param(
            {"min_patients": 0}, StudyError, "--min-patients is 0, expected a whole number", id="min"
        ),
        pytest.param({"prompt_mode": "loud"}, StudyError, "--prompt-mode is 'loud'", id="mode"),
        pytest.param({"seed": -1}, StudyError, "seed must not be negative", id="seed"),
        pytest.param(
            {"cohort": "thesis"}, DataError, "thesis.s cohort excludes is not in the table", id="thesis"
        ),
        pytest.param(
            {"without": ["wsi", "clinical"]}, DataError, "has no modality, expected at least", id="none"
        ),
    ],
)
def test_invalid_settings_are_refused(tmp_path, options, error, sentence):
    small_release(tmp_path / "in")
    with pytest.raises(error, match=sentence):
        prepare_mmist(tmp_path / "in", tmp_path / "fed", **options)
    assert [entry.name for entry in tmp_path.iterdir()] == ["in"]


def test_other_folders_are_refused(tmp_path):
    with pytest.raises(DataError, match="no MMIST-ccRCC release, expected 'clinical"):
        prepare_mmist(tmp_path, tmp_path / "fed")
    with pytest.raises(DataError, match="no MMIST-ccRCC release"):
        prepare_mmist(tmp_path / "none", tmp_path / "fed")
