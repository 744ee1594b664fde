"""What the test of a run says of patients with the same examinations."""

import pytest

from client.prediction.evidence import Evidence, evidence_of, one_more
from mmare.package.package import read_package
from tests.federations import tiny_study
from tests.packages import made_package


def metrics(n, auc, ends):
    return {"n": n, "auc": auc, "ci95": {"auc": ends}}


@pytest.fixture
def package_of(tmp_path):
    def make(**patterns):
        results = {"metrics": {"test": {"patterns": patterns}}, "notes": [], "left_out": []}
        name = f"model-{len(list(tmp_path.iterdir()))}"
        return read_package(made_package(tmp_path / name, tiny_study(), results=results))

    return make


def test_a_pattern_has_its_own_auc_and_interval(package_of):
    package = package_of(**{"10": metrics(30, 0.7, [0.6, 0.8]), "01": metrics(9, None, None)})
    assert evidence_of(package, "10") == Evidence(30, 0.7, 0.6, 0.8)
    assert evidence_of(package, "01") is None
    assert evidence_of(package, "11") is None


def test_one_more_is_told_where_the_test_supports_it_only(package_of):
    better = metrics(40, 0.9, [0.8, 0.95])
    package = package_of(**{"10": metrics(30, 0.7, [0.6, 0.8]), "11": better})
    assert one_more(package, "10") == ("wsi", Evidence(40, 0.9, 0.8, 0.95))
    assert one_more(package, "11") is None  # nothing is absent
    assert one_more(package, "01") is None  # nobody like that was tested
    wide = package_of(**{"10": metrics(30, 0.7, [0.6, 0.8]), "11": metrics(40, 0.9, [0.65, 0.95])})
    assert one_more(wide, "10") is None
    few = package_of(**{"10": metrics(30, 0.7, [0.6, 0.8]), "11": metrics(5, 1.0, [1.0, 1.0])})
    assert one_more(few, "10") is None


def test_a_package_without_a_test_says_nothing(tmp_path):
    package = read_package(made_package(tmp_path / "model", tiny_study()))
    assert evidence_of(package, "10") is None
    assert one_more(package, "10") is None
