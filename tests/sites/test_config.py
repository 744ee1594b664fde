"""Reading ``site.toml``."""

import pytest

from mmare.errors import DataError
from sites.config import ModalitySource, load_site

GOOD = """
[site]
id = "north"
[data]
manifest = "patients.csv"
[modality.ct]
file = "ct.npz"
[modality.t1]
column = "t1"
[modality.clinical]
columns = ["age", "sex"]
"""


def write(tmp_path, text):
    path = tmp_path / "site.toml"
    path.write_text(text, encoding="utf-8")
    return path


def test_paths_are_resolved_against_the_folder(tmp_path):
    site = load_site(write(tmp_path, GOOD))
    assert (site.id, site.folder, site.manifest) == ("north", tmp_path, tmp_path / "patients.csv")
    assert site.modalities == {
        "ct": ModalitySource(file=tmp_path / "ct.npz"),
        "t1": ModalitySource(column="t1"),
        "clinical": ModalitySource(columns=("age", "sex")),
    }
    assert (site.device, site.cache, site.threads, site.min_count) == ("auto", tmp_path / "cache", 1, 5)


def test_every_setting_is_read(tmp_path):
    more = '[compute]\ndevice = "cuda:1"\ncache = "/elsewhere"\nthreads = 3\n[policy]\nmin_count = 0\n'
    site = load_site(write(tmp_path, GOOD + more))
    assert (site.device, str(site.cache), site.threads, site.min_count) == ("cuda:1", "/elsewhere", 3, 0)


def test_metrics_and_coordinator_settings(tmp_path):
    plain = load_site(write(tmp_path, GOOD))
    assert (plain.metrics.port, plain.metrics.address) == (None, "127.0.0.1")
    assert (plain.coordinator.kit, plain.coordinator.runtime_port) == (tmp_path / "kit", 9094)
    more = '[metrics]\nport = 9465\naddress = "::"\n[coordinator]\nkit = "/etc/kit"\nruntime_port = 9194\n'
    site = load_site(write(tmp_path, GOOD + more))
    assert (site.metrics.port, site.metrics.address) == (9465, "::")
    assert (str(site.coordinator.kit), site.coordinator.runtime_port) == ("/etc/kit", 9194)


@pytest.mark.parametrize(
    ("old", "new", "sentence"),
    [
        pytest.param(
            "[data]", "[metrics]\nport = 70000\n[data]", "port is 70000, expected a port", id="port"
        ),
        pytest.param("[site]", "[sight]", "unknown table 'sight', expected one of site, data", id="table"),
        pytest.param("id =", "name =", r"\[site\] has an unknown key 'name'", id="key"),
        pytest.param("file =", "files =", r"\[modality\.ct\] has an unknown key 'files'", id="modality-key"),
        pytest.param('id = "north"', "", r"\[site\] lacks the key 'id'", id="no-id"),
        pytest.param('"north"', '"no/rth"', "id is 'no/rth', expected letters, digits", id="id-with-slash"),
        pytest.param('"north"', "3", r"\[site\] id is 3, expected text", id="id-is-number"),
        pytest.param('manifest = "patients.csv"', "", r"\[data\] lacks the key 'manifest'", id="no-manifest"),
        pytest.param('file = "ct.npz"', "", r"\[modality\.ct\] has 0 of the keys", id="empty-modality"),
        pytest.param('column = "t1"', 'column = "t1"\nfile = "x"', "has 2 of the keys", id="two-sources"),
        pytest.param('["age", "sex"]', "[]", r"columns is \[\], expected a list", id="no-columns"),
        pytest.param('["age", "sex"]', '"age"', "columns is 'age', expected a list", id="columns-is-text"),
        pytest.param('["age", "sex"]', '["age", "age"]', "names one column twice", id="column-twice"),
        pytest.param("[data]", "[[policy]]\n[data]", "policy must be a table", id="no-table"),
        pytest.param(
            "[modality.ct]", "[modality]\nct = 3\n[modality.x]", "must be a table, found 3", id="ct-is-3"
        ),
        pytest.param(
            "[data]", "[compute]\nthreads = 0\n[data]", "threads is 0, expected a whole", id="threads"
        ),
        pytest.param("[data]", "[policy]\nmin_count = -1\n[data]", "min_count is -1", id="min-count"),
        pytest.param(
            "[data]", "[policy]\nmin_count = true\n[data]", "min_count is True", id="min-count-bool"
        ),
        pytest.param("[data]", "[data", "not valid TOML", id="toml"),
    ],
)
def test_invalid_site_files_are_refused(tmp_path, old, new, sentence):
    path = write(tmp_path, GOOD.replace(old, new, 1))
    with pytest.raises(DataError, match=sentence) as caught:
        load_site(path)
    assert str(caught.value).startswith(f"{path}: ")


def test_a_site_needs_a_modality_and_a_file(tmp_path):
    with pytest.raises(DataError, match="a site needs at least one modality"):
        load_site(write(tmp_path, GOOD[: GOOD.index("[modality.ct]")]))
    with pytest.raises(DataError, match="modality must be"):
        load_site(write(tmp_path, "modality = 3\n" + GOOD[: GOOD.index("[modality.ct]")]))
    with pytest.raises(DataError, match="no such site file"):
        load_site(tmp_path / "none.toml")
    with pytest.raises(DataError, match="cannot be read"):
        load_site(tmp_path)


def test_an_encoding_stands_beside_a_file_only(tmp_path):
    path = tmp_path / "site.toml"
    text = '[site]\nid = "a"\n[data]\nmanifest = "p.csv"\n[modality.lab]\nencoding = "encoding.json"\n'
    path.write_text(text + 'file = "lab.csv"\n', encoding="utf-8")
    assert load_site(path).modalities["lab"].encoding == tmp_path / "encoding.json"
    path.write_text(text + 'column = "lab"\n', encoding="utf-8")
    with pytest.raises(DataError, match="encoding describes vectors, expected it beside file only"):
        load_site(path)


@pytest.mark.parametrize(("text", "keeps"), [("", False), ("end", False), ("keep", True)])
def test_what_a_changed_table_means_for_a_run(tmp_path, text, keeps):
    policy = f'[policy]\non_table_change = "{text}"\n' if text else ""
    assert load_site(write(tmp_path, GOOD + policy)).keep_table is keeps


def test_a_policy_that_is_none_is_refused(tmp_path):
    policy = '[policy]\non_table_change = "stop"\n'
    with pytest.raises(DataError, match="on_table_change is 'stop', expected one of end, keep"):
        load_site(write(tmp_path, GOOD + policy))
