"""A hospital with scans, and a package that fits it."""

import pytest

from client.data.dataset import modality_fingerprint
from mmare.package.package import read_package
from tests.client.data.test_embed import opened, write_scan, write_site
from tests.packages import made_package


@pytest.fixture
def scans(tmp_path):
    """A site whose patients have a file or a folder of DICOM files, and a package that fits it."""
    folder = write_site(tmp_path / "federation", [{"t1": "a.nii.gz"}, {"t1": "a.nii.gz", "t2": "b.nii.gz"}])
    write_scan(folder / "elm" / "a.nii.gz", 1)
    write_scan(folder / "elm" / "b.nii.gz", 2)
    site, study = opened(folder)
    marks = {each.name: modality_fingerprint(each, site) for each in study.modalities}
    package = read_package(made_package(tmp_path / "model", study, marks, {"no": 6, "yes": 2}))
    return site, package


def table_of(site, text, name="new.csv"):
    path = site.folder / name
    path.write_text(text)
    return path
