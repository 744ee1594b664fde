"""Attack: another user of the machine reads the files of a run, whatever umask the run was started with."""

import os
import stat
from dataclasses import replace

import pytest

from client.data.cache import EmbeddingCache
from mmare.errors import RunError
from mmare.study.choices import Mode
from server.run.folder import Journal
from simulation.run import run_federation
from tests.federations import request_of, tiny_federation
from tests.properties import first_quick

SETTINGS = ("training.rounds=2",)


@pytest.fixture(params=[0o000, 0o077], ids=oct)
def umask(request):
    before = os.umask(request.param)
    yield request.param
    os.umask(before)


def modes(*folders):
    """Files and folders whose mode is not that of the owner alone, and how many were looked at."""
    found = {path: stat.S_IMODE(path.stat().st_mode) for each in folders for path in (each, *each.rglob("*"))}
    return {str(path): oct(mode) for path, mode in found.items() if mode & 0o077}, len(found)


@pytest.mark.usefixtures("umask")
@pytest.mark.parametrize("mode", first_quick(Mode.FEDERATED, Mode.LOCAL))
def test_only_the_user_reads_what_a_run_leaves(tmp_path, mode):
    federation, out = tiny_federation(tmp_path / "federation"), tmp_path / "runs" / "run"
    seen = set()

    def look(_entry):
        seen.update(path.parent.name for path in out.rglob("*.bin"))
        assert modes(out)[0] == {}

    run_federation(request_of(federation, out, mode, SETTINGS), (look,))
    sites = [path / "cache" for path in sorted(federation.iterdir()) if path.is_dir()]
    opened, number = modes(out, *sites)
    assert opened == {}
    assert number > 20
    assert seen == {"spool"}
    assert {path.suffix for path in out.rglob("*") if path.is_file()} >= {".jsonl", ".json", ".toml", ".html"}
    assert any(path.name == "audit.head" for path in sites[0].iterdir())


@pytest.mark.usefixtures("umask")
def test_a_run_that_fails_leaves_no_more(tmp_path):
    out = tmp_path / "run"
    request = request_of(tiny_federation(tmp_path / "federation"), out, settings=SETTINGS)

    def fail(entry):
        if entry["event"] == "aggregated":
            raise RunError("the disk is full")

    with pytest.raises(RunError):
        run_federation(request, (fail,))
    assert list(out.rglob("*.bin"))
    assert modes(out)[0] == {}


@pytest.mark.usefixtures("umask")
def test_embeddings_are_closed_too(tmp_path):
    cache = EmbeddingCache(tmp_path / "cache")
    cache.save_index()
    assert modes(tmp_path / "cache")[0] == {}


def test_a_folder_that_was_there_keeps_the_mode_that_somebody_gave_it(tmp_path):
    out = tmp_path / "run"
    out.mkdir()
    out.chmod(0o750)
    run_federation(replace(request_of(tiny_federation(tmp_path / "federation"), out, settings=SETTINGS)))
    assert modes(out)[0] == {str(out): "0o750"}
    (out / "rounds.jsonl").chmod(0o640)
    Journal(out / "rounds.jsonl", "run")
    assert modes(out)[0] == {str(out): "0o750", str(out / "rounds.jsonl"): "0o640"}
