"""Scaling moments over tables that differ by one patient, and tables that change (adversary A)."""

from dataclasses import replace

import numpy as np
import pandas as pd
import pytest

import client.training.service
from mmare.errors import SiteCode
from mmare.models.registry import build_model
from mmare.wire.messages import RollCall, Task, Update
from sites.features import load_features, write_features
from tests.federations import tiny_study
from tests.privacy.hospital import LIMIT, STUDY, Hospital


@pytest.fixture
def hospital(tmp_path):
    return Hospital(tmp_path / "federation", missing=0.0)


def admit(hospital, count, split="train", first=0):
    """New patients; their features of ct."""
    table = pd.read_csv(hospital.site.manifest, dtype=str)
    random = np.random.default_rng([7, first])
    ids = [f"new-{first + number}" for number in range(count)]
    new = pd.DataFrame({"patient_id": ids, "label": "no", "split": split})
    pd.concat([table, new]).to_csv(hospital.site.manifest, index=False)
    rows = {}
    for name, source in hospital.site.modalities.items():
        held = load_features(source.file)
        width = next(iter(held.values())).shape[-1]
        held |= {patient: random.normal(size=width).astype(np.float32) for patient in ids}
        write_features(source.file.parent, source.file.stem, held)
        rows[name] = np.stack([held[patient] for patient in ids])
    return rows["ct"]


def withdraw(hospital, count):
    """The first patients of the train split leave."""
    table = pd.read_csv(hospital.site.manifest, dtype=str)
    gone = table.index[table["split"] == "train"][:count]
    table.drop(index=gone).to_csv(hospital.site.manifest, index=False)


def moments(hospital, run, study=None):
    return hospital.ask(Task.STATISTICS, run=run, study=study).moments[0]


def difference(one, other):
    return np.subtract(other.total, one.total)


@pytest.mark.parametrize("restarted", [False, True])
@pytest.mark.parametrize("count", [1, LIMIT - 1])
def test_a_few_patients_more_do_not_show_in_the_moments(hospital, count, restarted):
    """The difference was the patient's embedding, at a cosine of 1.000000."""
    before = moments(hospital, "one")
    admit(hospital, count)
    if restarted:
        hospital.restart()
    assert moments(hospital, "two") == before
    withdraw(hospital, 2 * count if count == 1 else 1)
    assert moments(hospital, "three") == before or count > 1


def test_patients_who_leave_do_not_show_either(hospital):
    before = moments(hospital, "one")
    withdraw(hospital, 1)
    assert moments(hospital, "two") == before
    assert before.n == hospital.ask(Task.DESCRIBE, run="two").samples + 1


def test_enough_patients_give_new_moments_once(hospital):
    before = moments(hospital, "one")
    rows = admit(hospital, LIMIT)
    after = moments(hospital, "two")
    assert after.n == before.n + LIMIT
    assert np.allclose(difference(before, after), rows.astype(float).sum(axis=0))
    admit(hospital, 1, first=LIMIT)
    assert moments(hospital, "three") == after


def test_another_study_does_not_tell_the_difference(hospital):
    before = moments(hospital, "one")
    other = tiny_study(privacy={"min_count": 2}, training={"rounds": 9})
    hospital.approvals.record(other, None)
    admit(hospital, 1)
    assert moments(hospital, "two", other) == before


def test_a_corrected_features_file_gives_new_moments(hospital):
    before = moments(hospital, "one")
    file = hospital.site.modalities["ct"].file
    moved = {patient: value + 1 for patient, value in load_features(file).items()}
    write_features(file.parent, file.stem, moved)
    assert moments(hospital, "two") != before


def test_an_encoder_that_rounds_otherwise_does_not(hospital):
    before = moments(hospital, "one")
    admit(hospital, 1)
    file = hospital.site.modalities["ct"].file
    rounded = {patient: value * np.float32(1.0001) for patient, value in load_features(file).items()}
    write_features(file.parent, file.stem, rounded)
    assert moments(hospital, "two") == before


def test_moments_by_which_a_site_scales_for_itself_stay(tmp_path, monkeypatch):
    study = STUDY.override(["modality.ct.scaling=site", "modality.wsi.scaling=site"])
    hospital = Hospital(tmp_path / "own", study)
    assert {each.n for each in hospital.ask(Task.STATISTICS).moments} == {0}
    assert not (hospital.site.folder / "moments.json").exists()
    real = client.training.service.moments_of
    monkeypatch.setattr(
        "client.training.service.moments_of", lambda _study, *more: real(STUDY, *more)
    )  # a slip that the gate must hold back
    assert hospital.ask(Task.STATISTICS, run="again") is SiteCode.RELEASE


def test_what_is_kept_of_patients_names_nobody(hospital):
    moments(hospital, "one")
    file = hospital.site.folder / "moments.json"
    assert "ash-" not in file.read_text()
    assert file.stat().st_mode & 0o777 == 0o600


# The table changes while a run goes on


@pytest.mark.parametrize("restarted", [False, True])
def test_a_patient_who_leaves_ends_the_run_here(hospital, restarted):
    """Today it stayed in the run until a restart, and nobody knew."""
    assert isinstance(hospital.train(1), Update)
    withdraw(hospital, 1)
    if restarted:
        hospital.start()
    assert hospital.train(2) is SiteCode.TABLE
    assert hospital.train(3) is SiteCode.TABLE
    assert [line["run"] for line in hospital.lines("table changed")] == ["run"]
    assert [line["code"] for line in hospital.lines("refused")] == ["S206", "S206"]
    assert isinstance(hospital.ask(Task.DESCRIBE, run="next"), RollCall)  # with the table as it is
    assert hospital.ask(Task.DESCRIBE, run="next").samples == 23


def test_a_hospital_may_go_on_with_the_table_as_it_was(hospital):
    hospital.site = replace(hospital.site, keep_table=True)
    hospital.start()
    first = hospital.train(1)
    withdraw(hospital, 1)
    second = hospital.train(2)
    assert second.samples == first.samples == 24
    assert [line["run"] for line in hospital.lines("table changed")] == ["run"]
    hospital.start()  # what was in memory is gone
    assert hospital.train(3) is SiteCode.TABLE


def test_a_change_that_is_taken_back_is_none(hospital):
    content = hospital.site.manifest.read_bytes()
    hospital.train(1)
    withdraw(hospital, 1)
    assert hospital.train(2) is SiteCode.TABLE
    hospital.site.manifest.write_bytes(content)
    assert isinstance(hospital.train(2, build_model(STUDY)), Update)
