"""Rules of the layout that import-linter does not know."""

import ast
import importlib
import subprocess
from collections import Counter
from functools import cache
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
PACKAGES = ("mmare", "sites", "client", "server", "simulation")
FLOWER = {
    "client/relay/app.py",
    "client/relay/patched/superexec.py",  # these make Flower's own processes of a site quick
    "client/relay/patched/lost_replies.py",
    "client/relay/patched/supernode.py",
    "server/deployment/superexec.py",  # keeps a token out of the list of processes
    "client/relay/patched/__main__.py",
    "client/relay/patched/clientapp.py",
    "server/app.py",
    "server/rounds/flower_fleet.py",
    "server/aggregation/strategies.py",
    "simulation/engine.py",
}
SOURCES = sorted(
    path for package in PACKAGES for path in (ROOT / package).rglob("*.py") if path.parent.name != "worker_pb"
)  # less what a program wrote


def holding(word):
    """Sources whose text has a word."""
    return [path for path in SOURCES if word in text_of(path)]


@cache
def text_of(path):
    return path.read_text(encoding="utf-8")


def nodes(path):
    return ast.walk(ast.parse(text_of(path)))


def imported(path):
    for node in nodes(path):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            yield node.module or ""


def test_flower_is_imported_where_the_layout_says_only():
    found = {
        str(path.relative_to(ROOT))
        for path in holding("flwr")
        if any(name.split(".")[0] == "flwr" for name in imported(path))
    }
    assert found == FLOWER


@pytest.mark.parametrize("name", ["rounds.jsonl", "result.json", "study.toml"])
def test_the_files_of_a_run_are_spelt_once(name):
    found = [
        str(path.relative_to(ROOT))
        for path in holding(name)
        for node in nodes(path)
        if isinstance(node, ast.Constant) and node.value == name
    ]
    assert len(found) == 1, found


def test_public_names_are_listed_and_exist():
    for path in SOURCES:
        if path.name != "__init__.py":
            name = ".".join(path.relative_to(ROOT).with_suffix("").parts)
            module = importlib.import_module(name)
            assert [name for name in module.__all__ if not hasattr(module, name)] == [], name


def test_the_init_of_a_package_holds_its_sentence_only():
    for path in SOURCES:
        if path.name == "__init__.py":
            body = ast.parse(text_of(path)).body
            assert [type(node) for node in body] == [ast.Expr], path


def test_no_client_file_asks_whether_it_is_simulated():
    for path in (ROOT / "client").rglob("*.py"):
        assert "if simulat" not in path.read_text(encoding="utf-8").lower()


def test_no_tracked_file_names_a_machine_or_a_registry():
    words = ["/wor" + "k/", "/roo" + "t/", "pypi" + ".org", "python" + "hosted", "deb.deb" + "ian"]
    tracked = subprocess.run(["git", "ls-files", "-z"], cwd=ROOT, capture_output=True, text=True, check=False)
    if tracked.returncode != 0:
        pytest.skip("not a git checkout")
    for name in filter(None, tracked.stdout.split("\0")):
        path = ROOT / name
        if path.is_file():
            content = path.read_text(encoding="utf-8", errors="replace")
            assert not [word for word in words if word in content], name


def test_a_folder_holds_at_most_fifteen_files_beside_its_init():
    files = Counter(path.parent for path in SOURCES if path.name != "__init__.py")
    assert {str(folder.relative_to(ROOT)): n for folder, n in files.items() if n > 15} == {}
