"""Installing without internet: every version is fixed, a changed file is noticed, and the wheel runs."""

import os
import re
import shutil
import subprocess
import sys
import zipfile
from importlib.metadata import requires, version
from pathlib import Path

import pytest
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

ROOT = Path(__file__).parents[2]
GUIDE = (ROOT / "deploy" / "airgap.md").read_text()
PINS = {
    canonicalize_name(name): pin
    for name, _, pin in (
        line.partition("==")
        for line in (ROOT / "deploy" / "constraints.txt").read_text().splitlines()
        if line and not line.startswith("#")
    )
}


TOOLS = ("setuptools",)  # torch asks for it; a virtual environment brings its own


def needed(extras):
    """Every distribution that our own asks for, and theirs, on this machine."""
    found, todo = {}, [("federated-mmare", frozenset(extras))]
    seen = set()
    while todo:
        name, wanted = todo.pop()
        if (name, wanted) in seen:
            continue
        seen.add((name, wanted))
        for text in requires(name) or []:
            each = Requirement(text)
            marks = wanted or {""}
            if each.marker is None or any(each.marker.evaluate({"extra": extra}) for extra in marks):
                found.setdefault(canonicalize_name(each.name), []).append(each)
                todo.append((each.name, frozenset(each.extras)))
    return found


def test_every_version_is_fixed_and_is_the_tested_one():
    found = needed({"site", "simulation"})
    assert {"torch", "flwr", "grpcio", "cryptography", "jinja2", "matplotlib", "pandas"} <= set(found)
    for name, wishes in found.items():
        if name in ("federated-mmare", *TOOLS):
            continue
        assert name in PINS, f"{name} is not in deploy/constraints.txt"
        assert version(name).partition("+")[0] == PINS[name].partition("+")[0], name
        for wish in wishes:
            assert wish.specifier.contains(PINS[name], prereleases=True), f"{wish} against {PINS[name]}"


def commands(number):
    """Lines of a code block of the guide."""
    return re.findall(r"^```\n(.*?)^```", GUIDE, re.MULTILINE | re.DOTALL)[number]


def test_the_guide_fixes_versions_and_hashes():
    there, here = commands(0), commands(1)
    assert "PIP_CONSTRAINT=$PWD/deploy/constraints.txt" in there
    assert "--only-binary :all:" in there
    assert "--no-index --find-links wheelhouse --constraint deploy/constraints.txt" in here
    assert "sha256sum --check --strict" in here


@pytest.mark.system
def test_the_wheel_installs_without_an_index_and_runs(tmp_path):
    source, house = tmp_path / "source", tmp_path / "source" / "wheelhouse"
    tracked = ["pyproject.toml", "README.md", "LICENSE", "client", "mmare", "server", "simulation", "sites"]
    source.mkdir()
    for name in tracked:
        copy = shutil.copytree if (ROOT / name).is_dir() else shutil.copy
        copy(ROOT / name, source / name)
    build = [sys.executable, "-m", "pip", "wheel", "--quiet", "--no-deps", "--no-build-isolation"]
    run([*build, "--wheel-dir", "wheelhouse", "."], source)
    (wheel,) = house.glob("*.whl")
    names = zipfile.ZipFile(wheel).namelist()
    packages = {name.partition("/")[0] for name in names if not name.partition("/")[0].endswith(".dist-info")}
    assert packages == {"client", "mmare", "server", "simulation", "sites"}
    assert "simulation/report/templates/report_template.html.j2" in names

    sums = next(line for line in commands(0).splitlines() if "sha256sum" in line)
    check = next(line for line in commands(1).splitlines() if "sha256sum --check" in line)
    run(["bash", "-c", sums], source)
    run(["bash", "-c", check], source)

    venv = tmp_path / "opt"
    run([sys.executable, "-m", "venv", str(venv)], source)
    install = next(line for line in commands(1).splitlines() if "pip install" in line)
    assert install.startswith("/opt/mmare/bin/pip install --no-index --find-links wheelhouse ")
    offline = {**os.environ, "PIP_CONFIG_FILE": os.devnull, "PIP_NO_INDEX": "1"}
    offline = {
        name: value for name, value in offline.items() if name not in ("PIP_FIND_LINKS", "PIP_INDEX_URL")
    }
    pip = [str(venv / "bin" / "pip"), "install", "--quiet", "--no-index", "--find-links", "wheelhouse"]
    run([*pip, "--no-deps", "federated-mmare"], source, offline)
    # What it depends on is taken from here: half of it has gigabytes.
    site = next((venv / "lib").glob("python3*")) / "site-packages"
    paths = [path for path in sys.path if path.endswith("site-packages")]
    (site / "tested-set.pth").write_text("\n".join(paths) + "\n")
    for program in ("mmare-site", "mmare-server"):
        said = run([str(venv / "bin" / program), "--help"], tmp_path, offline)
        assert "Usage" in said
    where = run(
        [
            str(venv / "bin" / "python"),
            "-c",
            "import client.doctor; print(client.doctor.__file__)",
        ],
        tmp_path,
    )
    assert Path(where.strip()).is_relative_to(venv)

    with wheel.open("ab") as file:  # changed on its way
        file.write(b"\0")
    changed = subprocess.run(
        ["bash", "-c", f"set -e; {check}"],
        cwd=source,
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )
    assert changed.returncode != 0
    assert f"{wheel.name}: FAILED" in changed.stdout


def run(command, folder, environment=None):
    done = subprocess.run(
        command, cwd=folder, env=environment, capture_output=True, text=True, timeout=240, check=False
    )
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout
