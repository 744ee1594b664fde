"""Amputation of site tables: each site by its own rule, with a report."""

import json

import numpy as np
import pandas as pd
import pytest
from sklearn.metrics import roc_auc_score

from mmare.errors import StudyError
from mmare.study.choices import Kind, Scaling
from mmare.study.specs import ModalitySpec, PrivacySpec
from mmare.study.study import Study
from mmare.wire.messages import Split
from sites.federation import SiteTables, check_target, site_folders, write_federation
from sites.missing.amputate import take_away
from sites.missing.plan import Missingness

N = 300  # patients of each of three sites
KEYS = ("ost", "sud", "west")
STUDY = Study(
    name="tiny",
    classes=("healthy", "ill"),
    positive="ill",
    modalities=(
        ModalitySpec("lab", Kind.FEATURES, 3, scaling=Scaling.ZSCORE),
        ModalitySpec("scan", Kind.VOLUME, 512, "med3d-resnet18"),
        ModalitySpec("note", Kind.TEXT, 8, "hashing-text", Scaling.L2, prompt="Aged [{age}][ {sex}]."),
    ),
    privacy=PrivacySpec(min_count=0),
)


def tables(n_patients=N, seed=0):
    generator = np.random.default_rng(seed)
    ids = [f"p{row:04d}" for row in generator.permutation(3 * n_patients)]
    rows = pd.DataFrame(
        {
            "patient_id": ids,
            "label": generator.choice(STUDY.classes, 3 * n_patients),
            "split": generator.choice(list(Split), 3 * n_patients, p=[0.6, 0.2, 0.2]),
            "scan": [f"/scans/{patient}.nii.gz" for patient in ids],
            "age": generator.integers(20, 90, 3 * n_patients).astype(str),
            "sex": generator.choice(["female", "male"], 3 * n_patients),
            "site": np.repeat(["Ost", "West", "Sud"], n_patients),
        }
    )
    vectors = {patient: generator.standard_normal(3).astype(np.float32) for patient in ids}
    sites = [
        SiteTables(
            str(name),
            group[["patient_id", "label", "split", "scan", "age", "sex"]],
            {"lab": vectors},
            {"note": ("age", "sex")},
            {"scan": "scan"},
        )
        for name, group in rows.groupby("site", sort=True)
    ]
    return sites, rows.set_index("patient_id")


def take(sites, rows, plan, embed=None, default_driver=None, study=STUDY):
    return take_away(
        sites, study, plan, rows[["age", "sex", "site"]], default_driver=default_driver, embed=embed
    )


def lost(taken):
    """By site, a frame of what is gone: lab, scan, note."""
    frames = {}
    for site in taken.sites:
        ids = site.manifest["patient_id"]
        frames[site.name.lower()] = pd.DataFrame(
            {
                "lab": [patient not in site.features["lab"] for patient in ids],
                "scan": site.manifest["scan"].isna().to_numpy(),
                "note": site.manifest[["age", "sex"]].isna().all(axis=1).to_numpy(),
            }
        ).set_axis(ids)
    return frames


def embedded(_study, sites, names):
    """A stand-in for encoders: one informative number, from the patient id."""
    ids = [str(patient) for site in sites for patient in site.manifest["patient_id"]]
    return {
        name: {
            patient: (float(patient[1:]) * np.eye(1, 4, slot) + 1).astype(np.float32)[0] for patient in ids
        }
        for slot, name in enumerate(names)
    }


def test_an_inactive_plan_changes_nothing():
    sites, rows = tables(20)
    taken = take(sites, rows, Missingness())
    assert taken.sites == sites
    assert (taken.notes, taken.amputation) == ((), None)


def test_each_site_loses_by_its_own_mechanism():
    sites, rows = tables()
    plan = Missingness("mar", 0.4, ("age", "label"), sites=("west=mnar:0.6", "sud=mcar:0.2"))
    taken = take(sites, rows, plan)
    gone = lost(taken)
    score = {"age": rows["age"].astype(float), "ill": (rows["label"] == "ill").astype(float)}
    for name in ("lab", "scan", "note"):
        auc = {
            site: [roc_auc_score(frame[name], score[by].loc[frame.index]) for by in ("age", "ill")]
            for site, frame in gone.items()
        }
        assert auc["ost"][0] > 0.7
        assert auc["west"][1] > 0.7
        for chance in (auc["ost"][1], auc["west"][0], *auc["sud"]):
            assert 0.38 < chance < 0.62
    assert gone["ost"].mean().mean() == pytest.approx(0.4 - 0.4**3 / 3, abs=0.08)
    assert not any(frame.all(axis=1).any() for frame in gone.values())
    whole = sites[0].manifest.loc[:, ["patient_id", "label", "split"]]
    assert taken.sites[0].manifest[["patient_id", "label", "split"]].equals(whole)


def test_a_rule_for_one_site_keeps_the_masks_of_the_others():
    sites, rows = tables(60)
    plain = lost(take(sites, rows, Missingness("mar", 0.4), default_driver="age"))
    other = lost(take(sites, rows, Missingness("mar", 0.4, sites=("west=mcar:0.8",)), default_driver="age"))
    again = lost(take(sites, rows, Missingness("mar", 0.4), default_driver="age"))
    for site in KEYS:
        assert plain[site].equals(again[site])
        assert plain[site].equals(other[site]) == (site != "west")


def test_the_report_is_what_happened():
    sites, rows = tables(80)
    plan = Missingness("mcar", 0.5, slope=1.5, sites=("west=mar:0.7",))
    taken = take(sites, rows, plan, default_driver="sex")
    report = json.loads(json.dumps(taken.amputation))
    assert {key: report[key] for key in ("mechanism", "driver", "rate", "slope", "pattern", "seed")} == {
        "mechanism": "mcar",
        "driver": None,
        "rate": 0.5,
        "slope": 1.5,
        "pattern": "natural",
        "seed": 0,
    }
    west = report["sites"]["west"]
    assert (west["mechanism"], west["driver"], west["rate"], west["never"]) == ("mar", "sex", 0.7, [])
    gone = lost(taken)
    for site in KEYS:
        for name, cell in report["sites"][site]["modalities"].items():
            assert cell["patients"] == 80
            assert cell["target"] == (0.7 if site == "west" else 0.5)
            assert cell["mean_probability"] == pytest.approx(cell["target"], abs=1e-6)
            assert cell["achieved"] == pytest.approx(gone[site][name].mean())
            assert cell["drawn"] >= cell["achieved"]
        assert any(cell["drawn"] > cell["achieved"] for cell in report["sites"][site]["modalities"].values())
    (note,) = taken.notes
    share = np.mean([gone[site].to_numpy().mean() for site in KEYS])
    assert note.startswith(f"mcar at 0.5, west mar on sex at 0.7: {share:.3f} of the modalities were removed")


def test_mnar_is_driven_by_each_modality():
    sites, rows = tables()
    taken = take(sites, rows, Missingness("mnar", 0.4), embedded)
    assert taken.amputation["driver"] == "pc1"
    number = rows.index.str[1:].astype(float)
    marker = pd.Series(number, index=rows.index)
    for frame in lost(taken).values():
        auc = roc_auc_score(frame["scan"], marker.loc[frame.index])
        assert max(auc, 1 - auc) > 0.7  # the sign is that of the largest loading
        assert 0.35 < roc_auc_score(frame["lab"], marker.loc[frame.index]) < 0.65


def test_a_patient_without_a_vector_is_as_likely_to_lose_as_the_average():
    sites, rows = tables(30)
    whole = take(sites, rows, Missingness("mnar", 0.4), embedded)
    none = take(sites, rows, Missingness("mnar", 0.4), lambda *_: {})
    cell = none.amputation["sites"]["ost"]["modalities"]["scan"]
    assert cell["mean_probability"] == pytest.approx(0.4, abs=1e-6)
    assert none.amputation != whole.amputation


def test_exclusive_sites_do_not_name_what_they_never_have(tmp_path):
    sites, rows = tables(40)
    taken = take(sites, rows, Missingness("mcar", 0.3, pattern="exclusive"))
    prepared = write_federation(tmp_path / "fed", STUDY, taken.sites, amputation=taken.amputation)
    written = json.loads((tmp_path / "fed" / "amputation.json").read_text())
    assert written == prepared.amputation == taken.amputation
    never = {key: site["never"] for key, site in written["sites"].items()}
    assert sorted(never.values()) == [["lab"], ["note"], ["scan"]]
    for site, config in zip(prepared.sites, site_folders(tmp_path / "fed"), strict=True):
        (gone,) = never[site.id]
        assert set(config.modalities) == {"lab", "scan", "note"} - {gone}
        assert site.present[gone] == 0
        assert gone not in written["sites"][site.id]["modalities"]
    assert taken.notes[0].startswith("exclusive: ost never has ")
    check_target(tmp_path / "fed", overwrite=True)  # the report is ours to replace


def test_exclusive_leaves_every_patient_a_modality():
    sites, rows = tables(40)
    first = sites[0].manifest["patient_id"].tolist()
    bare = sites[0].manifest.copy()
    bare.loc[bare["patient_id"] == first[0], ["scan", "age", "sex"]] = None  # has lab alone
    bare.loc[bare["patient_id"] == first[1], ["age", "sex"]] = None
    held = {
        patient: v for patient, v in sites[0].features["lab"].items() if patient != first[1]
    }  # scan alone
    poor = SiteTables("Ost", bare, {"lab": held}, sites[0].columns, sites[0].scans)
    taken = take([poor, *sites[1:]], rows, Missingness(pattern="exclusive"))
    assert taken.amputation["sites"]["ost"]["never"] == ["note"]
    bare.loc[bare["patient_id"] == first[2], "scan"] = None
    poor = SiteTables(
        "Ost",
        bare,
        {"lab": {p: v for p, v in held.items() if p != first[2]}},
        sites[0].columns,
        sites[0].scans,
    )
    with pytest.raises(StudyError, match="some patients have only one modality"):
        take([poor, *sites[1:]], rows, Missingness(pattern="exclusive"))


def test_a_modality_that_nobody_has_at_a_site_is_not_reported():
    sites, rows = tables(30)
    without = SiteTables("Ost", sites[0].manifest, {}, sites[0].columns, sites[0].scans)
    taken = take([without, *sites[1:]], rows, Missingness("mcar", 0.3))
    assert set(taken.amputation["sites"]["ost"]["modalities"]) == {"scan", "note"}


@pytest.mark.parametrize(
    ("plan", "sentence"),
    [
        pytest.param(
            Missingness("mar", 0.2, ("agee",)),
            r"'agee' \(did you mean 'age'\?\), expected a column: age, sex",
            id="column",
        ),
        pytest.param(Missingness("mar", 0.2), "mar needs --driver, expected one of age, sex", id="none"),
        pytest.param(
            Missingness("mar", 0.2, ("same",)), "'same', but all patients have the same value", id="constant"
        ),
        pytest.param(
            Missingness("mcar", 0.2, sites=("wset=0.1",)),
            r"no site 'wset' \(did you mean 'west'\?\), expected one of ost, sud, west",
            id="site",
        ),
        pytest.param(
            Missingness("mnar", 0.2),
            "pc1 needs embeddings of scan, note, .* choose --driver label",
            id="embed",
        ),
    ],
)
def test_plans_that_contradict_the_data_are_refused(plan, sentence):
    sites, rows = tables(20)
    with pytest.raises(StudyError, match=sentence):
        take_away(sites, STUDY, plan, rows[["age", "sex"]].assign(same="x"))
