"""The synthetic federation: deterministic, with the documented gaps and optimum."""

import numpy as np
import pandas as pd
import pytest
from sklearn.linear_model import LogisticRegression
from sklearn.metrics import roc_auc_score
from sklearn.preprocessing import StandardScaler

from mmare.errors import StudyError
from sites.datasets import synthetic
from sites.datasets.synthetic import draw_cohort, expected_auc, hospitals, prepare_synthetic
from sites.features import load_features
from sites.federation import site_folders
from sites.manifest import load_manifest
from sites.missing.plan import Missingness
from sites.options import SyntheticPattern


def test_three_hospitals_with_their_gaps(tmp_path):
    prepared = prepare_synthetic(out=tmp_path / "fed", patients=60, seed=1)
    assert [site.id for site in prepared.sites] == ["east", "north", "west"]
    for site in prepared.sites:
        assert site.n_patients == 60
        for name, rate in synthetic.MISSING[site.id].items():
            assert abs(site.present[name] / 60 - (1 - rate)) < 0.2
    configs = {site.id: site for site in site_folders(tmp_path / "fed")}
    assert set(configs["west"].modalities) == {"t1", "t2", "clinical"}  # no flair at all
    assert set(configs["east"].modalities) == {"t1", "t2", "flair", "clinical"}
    study = prepared.study
    assert [modality.name for modality in study.modalities] == ["t1", "t2", "flair", "clinical"]
    assert (study.seed, study.positive) == (1, "malignant")
    manifest = load_manifest(configs["north"].manifest, study, study.seed)
    assert {str(split): int((manifest.splits == split).sum()) for split in np.unique(manifest.splits)} == {
        "test": 12,
        "train": 42,
        "val": 6,
    }


def test_same_seed_same_patients(tmp_path):
    files = []
    for name, seed in (("a", 3), ("b", 3), ("c", 4)):
        prepare_synthetic(out=tmp_path / name, patients=20, seed=seed)
        files.append({path.name: path.read_bytes() for path in (tmp_path / name / "east").iterdir()})
    assert files[0] == files[1]
    assert files[0]["t1.npz"] != files[2]["t1.npz"]


@pytest.mark.slow
def test_the_oracle_has_the_documented_auc():
    auc = [expected_auc(n_causes) for n_causes in (1, 2, 3, 4)]
    assert auc == pytest.approx([0.69, 0.77, 0.83, 0.89], abs=0.006)
    causes = draw_cohort(3000, seed=0)
    ill = causes.manifest["label"] == "malignant"
    assert roc_auc_score(ill, causes.causes.sum(axis=1)) == pytest.approx(auc[3], abs=0.015)
    assert roc_auc_score(ill, causes.causes[:, 2]) == pytest.approx(auc[0], abs=0.02)


def blocks_of(cohort):
    """Features per modality, z-scored on the train rows that have it, zero where absent."""
    ids, train = cohort.manifest["patient_id"].tolist(), cohort.manifest["split"] == "train"
    for vectors in cohort.features.values():
        has = np.array([patient in vectors for patient in ids])
        block = np.zeros((len(ids), 512))
        block[has] = np.stack([vectors[patient] for patient in ids if patient in vectors])
        block[has] = StandardScaler().fit(block[has & train]).transform(block[has])
        yield block
    words = pd.get_dummies(cohort.manifest[["marker", "symptoms", "sex"]]).to_numpy(float)
    yield 5 * words  # few columns against 512: the same penalty must not silence them


def test_a_combination_beats_any_one_modality():
    """Logistic regression as an independent learner: all modalities together are better than the best one."""
    cohort = draw_cohort(500, seed=2)
    ill = (cohort.manifest["label"] == "malignant").to_numpy()
    train = (cohort.manifest["split"] == "train").to_numpy()
    test = (cohort.manifest["split"] == "test").to_numpy()

    def auc(block):
        model = LogisticRegression(C=1e-3, max_iter=300).fit(block[train], ill[train])
        return roc_auc_score(ill[test], model.decision_function(block[test]))

    blocks = list(blocks_of(cohort))
    single = [auc(block) for block in blocks]
    together = auc(np.hstack(blocks))
    assert all(0.52 < value < 0.75 for value in single)
    assert together > max(single) + 0.05
    assert 0.74 < together < expected_auc(4)


def test_scanner_offsets_identify_the_hospital_not_the_disease():
    cohort = draw_cohort(200, seed=0)
    t1 = cohort.features["t1"]
    means = {
        site: np.mean([t1[p] for p in group["patient_id"] if p in t1], axis=0)
        for site, group in cohort.manifest.groupby("site")
    }
    apart = np.linalg.norm(means["east"] - means["west"]) / np.sqrt(512)
    assert apart == pytest.approx(0.5 * np.sqrt(2), rel=0.15)
    rates = (cohort.manifest["label"] == "malignant").groupby(cohort.manifest["site"]).mean()
    assert rates.between(0.4, 0.6).all()


def test_stronger_scanners_move_and_stretch_features_of_the_same_patients():
    usual, strong = draw_cohort(60, seed=0), draw_cohort(60, seed=0, scanner=2.0)
    assert draw_cohort(60, seed=0, scanner=0.5).manifest.equals(usual.manifest)
    east, west = (
        np.stack([rows for patient, rows in strong.features["t1"].items() if patient.startswith(site)])
        for site in ("east", "west")
    )
    apart = np.linalg.norm(east.mean(axis=0) - west.mean(axis=0)) / np.sqrt(512)
    assert apart == pytest.approx(2 * np.sqrt(2), rel=0.2)
    ratios = np.log(east.std(axis=0) / west.std(axis=0))
    assert ratios.std() == pytest.approx(np.sqrt(2), rel=0.15)
    patient = next(iter(usual.features["t1"]))
    assert not np.array_equal(usual.features["t1"][patient], strong.features["t1"][patient])


def test_every_patient_has_a_modality():
    cohort = draw_cohort(400, seed=5)
    having = set().union(*cohort.features.values())
    clinical = cohort.manifest.dropna(subset=["marker"])["patient_id"]
    assert having | set(clinical) == set(cohort.manifest["patient_id"])
    blank = cohort.manifest["marker"].isna()
    for column in ("sex", "age", "symptoms"):
        assert (cohort.manifest[column].isna() == blank).all()


@pytest.mark.parametrize(
    ("options", "sentence"),
    [
        ({"patients": 19}, "--patients is 19, expected at least 20"),
        ({"kind": "slides"}, "--kind is 'slides', expected one of features, scans"),
        ({"seed": -1}, "--seed is -1"),
        ({"scanner": -0.5}, "--scanner is -0.5, expected a number from 0 up"),
        ({"n_sites": 0}, "--sites is 0, expected at least one"),
        ({"pattern": "odd"}, "--pattern is 'odd', expected one of natural, complete, exclusive, rare"),
        ({"signal": {"ct": 2}}, "--signal names 'ct', expected one of t1, t2, flair, clinical"),
        ({"signal": {"t1": -2}}, "--signal of t1 is -2, expected a number from 0 up"),
        ({"signal": {"t1": float("inf")}}, "--signal of t1 is inf, expected"),
        ({"kind": "scans", "n_sites": 4}, "--kind scans has three hospitals with their own gaps"),
        ({"kind": "scans", "missing": Missingness("mcar", 0.2)}, "run prepare ixi --keep-incomplete"),
        ({"n_sites": 1, "pattern": "exclusive"}, "--pattern exclusive needs at least two sites"),
    ],
)
def test_settings_out_of_range_are_refused(tmp_path, options, sentence):
    with pytest.raises(StudyError, match=sentence):
        prepare_synthetic(out=tmp_path / "fed", **options)
    assert list(tmp_path.iterdir()) == []


def test_more_or_fewer_hospitals(tmp_path):
    prepared = prepare_synthetic(out=tmp_path / "fed", patients=20, n_sites=5)
    assert [site.id for site in prepared.sites] == ["east", "hospital-04", "hospital-05", "north", "west"]
    assert [site.n_patients for site in prepared.sites] == [20] * 5
    assert hospitals(6)["hospital-06"] == synthetic.MISSING["west"]
    assert list(hospitals(2)) == ["east", "north"]


def test_patterns_change_what_patients_lack_and_nothing_else():
    cohorts = {pattern: draw_cohort(40, 3, 4, pattern) for pattern in SyntheticPattern}
    natural = cohorts[SyntheticPattern.NATURAL]
    for cohort in cohorts.values():
        assert (cohort.causes == natural.causes).all()
        assert (cohort.manifest["label"] == natural.manifest["label"]).all()
        for name, vectors in natural.features.items():
            for patient in set(vectors) & set(cohort.features[name]):
                assert (vectors[patient] == cohort.features[name][patient]).all()


def test_complete_and_rare(tmp_path):
    for pattern in ("complete", "rare"):
        prepared = prepare_synthetic(out=tmp_path / pattern, patients=20, n_sites=4, pattern=pattern)
        for site in prepared.sites:
            lacks = {name for name, number in site.present.items() if number != 20}
            assert lacks == ({"flair"} if pattern == "rare" and site.id != "east" else set())
        named = [site.id for site in site_folders(tmp_path / pattern) if "flair" in site.modalities]
        assert len(named) == (1 if pattern == "rare" else 4)
        assert not (tmp_path / pattern / "amputation.json").exists()
    assert prepared.notes == ("rare: only east has flair, all else is complete",)


def test_exclusive(tmp_path):
    prepared = prepare_synthetic(out=tmp_path / "fed", patients=20, pattern="exclusive", seed=1)
    lacks = {
        site.id: {name for name, number in site.present.items() if not number} for site in prepared.sites
    }
    assert [len(names) for names in lacks.values()] == [1, 1, 1]
    assert len(set().union(*lacks.values())) == 3
    assert all(set(site.present.values()) == {0, 20} for site in prepared.sites)


def test_signal_weights_a_cause():
    weights = {"flair": 3.0, "t1": 0.0}
    cohort = draw_cohort(2000, seed=0, signal=weights)
    ill = cohort.manifest["label"] == "malignant"
    assert roc_auc_score(ill, cohort.causes[:, 2]) > 0.8
    assert roc_auc_score(ill, cohort.causes[:, 0]) == pytest.approx(0.5, abs=0.03)
    oracle = cohort.causes @ [0, 1, 3, 1]
    assert roc_auc_score(ill, oracle) == pytest.approx(expected_auc(4, signal=weights), abs=0.015)
    assert expected_auc(1, signal=weights) == pytest.approx(0.5, abs=0.01)


def test_mar_is_driven_by_the_marker(tmp_path):
    plan = Missingness("mar", 0.5)
    prepared = prepare_synthetic(out=tmp_path / "fed", patients=200, pattern="complete", missing=plan)
    assert {site["driver"] for site in prepared.amputation["sites"].values()} == {"marker"}
    marker = draw_cohort(200, 0, 3, SyntheticPattern.COMPLETE).manifest.set_index("patient_id")["marker"]
    high = marker.isin(["high", "very high"])
    for site in site_folders(tmp_path / "fed"):
        ids = load_manifest(site.manifest, prepared.study, 0).patient_ids
        held = load_features(site.modalities["t1"].file)
        lost = np.array([patient not in held for patient in ids])
        own = high.loc[list(ids)].to_numpy()
        assert lost[own].mean() > lost[~own].mean() + 0.3


def test_patients_without_another_modality_are_omitted_too(tmp_path):
    whole = prepare_synthetic(out=tmp_path / "whole", patients=40)
    left = prepare_synthetic(out=tmp_path / "left", patients=40, without=["clinical"])
    assert [modality.name for modality in left.study.modalities] == ["t1", "t2", "flair"]
    for before, after in zip(whole.sites, left.sites, strict=True):
        assert 0 < after.n_patients <= before.n_patients
    manifest = pd.read_csv(tmp_path / "left" / left.sites[0].id / "patients.csv")
    assert set(manifest.columns) == {"patient_id", "label", "split"}


@pytest.mark.parametrize(
    ("without", "sentence"),
    [
        (["pet"], "--without is 'pet', expected one of t1, t2, flair, clinical"),
        (["t1", "t2", "flair", "clinical"], "--without leaves no modality"),
    ],
)
def test_invalid_without_is_refused(tmp_path, without, sentence):
    with pytest.raises(StudyError, match=sentence):
        prepare_synthetic(out=tmp_path / "out", without=without)
