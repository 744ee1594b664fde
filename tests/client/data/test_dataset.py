import numpy as np
import pytest
import torch

from client.data import dataset
from client.data.dataset import SiteData, load_data, modality_fingerprint
from client.encoders.hashing_text import encode_texts
from client.encoders.registry import check_encoders
from mmare.errors import DataError
from mmare.study.encoding import load_encoding
from mmare.wire.messages import Split
from sites.config import load_site
from sites.datasets.table import TableColumns, prepare_table
from tests.federations import tiny_data, tiny_study

TEXT = {
    "name": "clinical",
    "kind": "text",
    "width": 32,
    "encoder": "hashing-text",
    "scaling": "none",
    "prompt": "A patient[ aged {age}][, grade {grade}].",
}
CT = {"name": "ct", "kind": "features", "width": 3}
STUDY = tiny_study(modality=[CT, TEXT])

SITE = """
[site]
id = "ash"
[data]
manifest = "patients.csv"
[modality.ct]
file = "ct.csv"
[modality.clinical]
columns = ["age", "grade"]
"""
PATIENTS = """patient_id,label,split,age,grade
zoe,yes,train,70-79,G3
adam,no,val,,
mia,no,train,,G1
ben,yes,test,60-69,
"""
FEATURES = "patient_id,f0,f1,f2\nben,1,2,3\nadam,4,5,6\nstranger,9,9,9\nzoe,7,8,9\n"


@pytest.fixture
def folder(tmp_path):
    (tmp_path / "site.toml").write_text(SITE)
    (tmp_path / "patients.csv").write_text(PATIENTS)
    (tmp_path / "ct.csv").write_text(FEATURES)
    return tmp_path


@pytest.fixture
def site(folder):
    return load_site(folder / "site.toml")


def test_patients_stay_in_file_order_and_absent_rows_are_zero(site):
    data = load_data(site, STUDY)
    assert data.label.tolist() == [1, 0, 0, 1]
    assert data.present.tolist() == [[True, True], [True, False], [False, True], [True, True]]
    assert data.embedding[0].tolist() == [[7, 8, 9], [4, 5, 6], [0, 0, 0], [1, 2, 3]]
    assert data.embedding[1][1].abs().sum() == 0
    assert {split.value: rows.tolist() for split, rows in data.rows.items()} == {
        "train": [0, 2],
        "val": [1],
        "test": [3],
    }
    assert (data.embedding[0].dtype, data.label.dtype, data.present.dtype) == (
        torch.float32,
        torch.int64,
        torch.bool,
    )


def test_texts_are_worded_by_the_prompt_and_encoded(site):
    data = load_data(site, STUDY)
    texts = ["A patient aged 70-79, grade G3.", "A patient, grade G1.", "A patient aged 60-69."]
    np.testing.assert_array_equal(data.embedding[1][[0, 2, 3]].numpy(), encode_texts(texts, 32))


def test_ready_text_is_taken_as_it_is(folder):
    (folder / "site.toml").write_text(SITE.replace('columns = ["age", "grade"]', 'column = "grade"'))
    data = load_data(load_site(folder / "site.toml"), STUDY)
    assert data.present[:, 1].tolist() == [True, False, True, False]
    np.testing.assert_array_equal(data.embedding[1][[0, 2]].numpy(), encode_texts(["G3", "G1"], 32))


def test_a_modality_that_the_site_never_has_is_absent_for_all(folder):
    (folder / "site.toml").write_text(SITE.split("[modality.clinical]", maxsplit=1)[0])
    (folder / "ct.csv").write_text(FEATURES + "mia,1,1,1\n")
    data = load_data(load_site(folder / "site.toml"), STUDY)
    assert not data.present[:, 1].any()
    assert data.encoders.keys() == {"ct"}


def test_encoders_have_fingerprints(site):
    assert load_data(site, STUDY).encoders == {"ct": "given", "clinical": "hashing-text/1"}


@pytest.mark.parametrize(
    ("file", "change", "sentence"),
    [
        pytest.param(
            "patients.csv", ("mia,no,train,,G1", "mia,no,train,,"), "data row 3 has none", id="none"
        ),
        pytest.param("patients.csv", (",age,", ",years,"), "needs the column 'age'", id="column"),
        pytest.param("patients.csv", ("mia,no", "zoe,no"), "zoe", id="twice"),
        pytest.param("patients.csv", ("mia,no", "mia,maybe"), "maybe", id="label"),
        pytest.param("ct.csv", ("4,5,6", "nan,nan,nan"), "every cell is blank", id="nan"),
        pytest.param("ct.csv", ("ben,1,2,3\n", ""), None, id="one-less-is-fine"),
    ],
)
def test_data_that_cannot_be_used_are_named(site, tmp_path, file, change, sentence):
    text = (tmp_path / file).read_text()
    assert change[0] in text
    (tmp_path / file).write_text(text.replace(*change))
    if sentence is None:
        assert load_data(site, STUDY).present[3].tolist() == [False, True]
        return
    with pytest.raises(DataError, match=sentence):
        load_data(site, STUDY)


def test_features_without_a_file_are_refused(folder):
    (folder / "site.toml").write_text(SITE.replace('file = "ct.csv"', 'column = "age"'))
    with pytest.raises(DataError, match="modality ct needs a features file"):
        load_data(load_site(folder / "site.toml"), STUDY)


@pytest.mark.parametrize(
    "modality",
    [
        pytest.param({**TEXT, "encoder": "clip-text"}, id="unknown-text-encoder"),
        pytest.param({**CT, "encoder": "hashing-text"}, id="text-encoder-for-features"),
        pytest.param({"name": "ct", "kind": "volume", "width": 8, "encoder": "med3d"}, id="volume"),
    ],
)
def test_an_encoder_that_this_software_lacks_is_named_with_the_known_ones(modality):
    with pytest.raises(DataError, match=f"{modality['encoder']!r}, expected one of"):
        check_encoders(tiny_study(modality=[modality]))


def test_pooled_rows_are_the_sites_rows():
    study = tiny_study()
    parts = [tiny_data(study, patients, seed) for seed, patients in enumerate((12, 20, 8))]
    pooled = SiteData.pooled(parts)
    assert len(pooled.label) == 40
    for split in Split:
        rows = pooled.rows[split]
        assert torch.equal(pooled.label[rows], torch.cat([part.label[part.rows[split]] for part in parts]))
        assert torch.equal(
            pooled.present[rows], torch.cat([part.present[part.rows[split]] for part in parts])
        )
        for slot, embedding in enumerate(pooled.embedding):
            wanted = torch.cat([part.embedding[slot][part.rows[split]] for part in parts])
            assert torch.equal(embedding[rows], wanted)


def test_one_site_pooled_is_the_site():
    data = tiny_data(tiny_study())
    pooled = SiteData.pooled([data])
    assert torch.equal(pooled.embedding[0], data.embedding[0])
    assert all(torch.equal(pooled.rows[split], data.rows[split]) for split in Split)


def test_the_encoding_that_modalities_share_is_read_once(tmp_path, monkeypatch):
    rows = [f"{row},a,{'ny'[row % 2]},{row},{row % 7},{row % 5}" for row in range(20)]
    (tmp_path / "t.csv").write_text("\n".join(["id,site,y,u,v,w", *rows]), encoding="utf-8")
    groups = {"one": ("u",), "two": ("v",), "three": ("w",)}
    columns = TableColumns("id", "site", "y", groups)
    prepared = prepare_table(tmp_path / "t.csv", tmp_path / "fed", columns, ("n", "y"))
    read = []
    monkeypatch.setattr(dataset, "load_encoding", lambda path: read.append(path) or load_encoding(path))
    site = load_site(tmp_path / "fed" / "a" / "site.toml")
    marks = load_data(site, prepared.study).encoders
    assert read == [tmp_path / "fed" / "a" / "encoding.json"]
    assert len(set(marks.values())) == 3
    assert marks == {spec.name: modality_fingerprint(spec, site) for spec in prepared.study.modalities}
