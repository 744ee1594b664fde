"""A frame in, a frame out: as the command, without files."""

import numpy as np
import pandas as pd
import pytest

from client.prediction.notebook import load_package
from mmare.errors import DataError, RunError
from mmare.models.batch import Batch
from server.release.release import release_model
from tests.federations import tiny_data, tiny_study
from tests.packages import made_package, table_run


@pytest.fixture(scope="module")
def vectors(tmp_path_factory):
    folder = tmp_path_factory.mktemp("notebook")
    return load_package(str(made_package(folder / "model.zip", tiny_study())))


def frame_of(data, names):
    return pd.DataFrame(
        {
            name: [part[row].numpy() if data.present[row, slot] else None for row in range(len(data.present))]
            for slot, (name, part) in enumerate(zip(names, data.embedding, strict=True))
        },
        index=[f"p{row}" for row in range(len(data.present))],
    )


def test_vectors_in_cells_give_what_the_model_says_of_them(vectors):
    data = tiny_data(vectors.package.study, patients=12)
    found = vectors.predict(frame_of(data, ("ct", "wsi")))
    assert found["patient_id"].tolist() == [f"p{row}" for row in range(12)]
    wanted = vectors.package.model.predict(Batch(data.embedding, data.present))[:, 1]
    np.testing.assert_allclose(found["probability_yes"], wanted.numpy(), rtol=1e-6)
    shares = found["shapley_yes_ct"] + found["shapley_yes_wsi"]
    np.testing.assert_allclose(shares, found["probability_yes"] - found["prior_yes"], atol=1e-12)


def test_columns_of_a_table_and_a_site_give_the_same_and_only_the_site_logs(tmp_path):
    run = table_run(tmp_path)
    release_model(run, tmp_path / "model")
    package, site = load_package(tmp_path / "model"), tmp_path / "fed" / "ash" / "site.toml"
    raw = pd.read_csv(tmp_path / "patients.csv").rename(columns={"id": "patient_id"})
    ids = pd.read_csv(site.parent / "patients.csv")["patient_id"]
    columns = package.predict(raw[raw["patient_id"].isin(ids)])
    assert not (site.parent / "audit.jsonl").exists()
    stored = package.predict(pd.DataFrame({"patient_id": columns["patient_id"]}), site)
    pd.testing.assert_frame_equal(columns, stored, check_exact=True)
    assert len((site.parent / "audit.jsonl").read_text().splitlines()) == len(ids)


@pytest.mark.parametrize(
    ("frame", "error", "sentence"),
    [
        pytest.param(
            pd.DataFrame({"ct": [np.zeros(8), np.zeros(3)]}),
            DataError,
            "the frame, row 2: ct is .* expected a vector of 8 finite numbers",
            id="width",
        ),
        pytest.param(pd.DataFrame({"ct": [np.full(8, np.nan)]}), DataError, "row 1: ct is ", id="not finite"),
        pytest.param(pd.DataFrame({"ct": [3.0]}), DataError, "row 1: ct is '3.0'", id="no vector"),
        pytest.param(
            pd.DataFrame({"ct": [None]}), RunError, "none of 1 patients has any of ct", id="nothing"
        ),
        pytest.param(
            pd.DataFrame({"ct": [np.zeros(8)] * 2}, index=["a", "a"]),
            DataError,
            "'a' occurs twice",
            id="id twice",
        ),
    ],
)
def test_what_is_no_patient_is_refused(vectors, frame, error, sentence):
    with pytest.raises(error, match=sentence):
        vectors.predict(frame)
