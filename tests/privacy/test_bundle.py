"""What travels to a hospital in Flower's bundle, and what a relay can reach."""

import io
import shutil
import subprocess
import sys
import zipfile
from pathlib import Path

import pytest
from flwr.cli.build import build_fab_from_disk

ROOT = Path(__file__).parents[2]

pytestmark = pytest.mark.filterwarnings("ignore:GitWildMatchPattern")  # Flower's, with a newer pathspec


@pytest.fixture(scope="module")
def bundle(tmp_path_factory):
    """Made from a copy: Flower looks at every file below, those of a virtual environment too."""
    copy = tmp_path_factory.mktemp("bundle") / "project"
    shutil.copytree(ROOT, copy, ignore=shutil.ignore_patterns(".venv", ".git", "runs", ".*_cache"))
    return zipfile.ZipFile(io.BytesIO(build_fab_from_disk(copy)))


def test_the_bundle_holds_our_packages_and_nothing_else(bundle):
    names = [Path(name) for name in bundle.namelist()]
    assert {name.parts[0] for name in names} == {
        "client",
        "mmare",
        "server",
        "sites",
        "pyproject.toml",
        ".info",
    }
    assert {name.suffix for name in names if len(name.parts) > 1 and name.parts[0] != ".info"} == {".py"}
    assert Path("client/relay/app.py") in names
    assert Path("server/app.py") in names


def test_the_relay_imports_neither_torch_nor_a_reader_of_data():
    program = (
        "import sys, client.relay.app; "
        "print(sorted({name.split('.')[0] for name in sys.modules} & "
        "{'torch', 'monai', 'pandas', 'sklearn', 'sites', 'pydicom', 'SimpleITK', 'nibabel'}))"
    )
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"
