"""Attack: a coordinator sends a bundle whose app reads what the relay's user can read."""

import hashlib
import os
import subprocess
import sys

import pytest
from flwr.cli.build import build_fab_from_disk

from client.relay.patch_points import CLIENTAPP, PatchPoint
from client.relay.programs import check_flower
from mmare.errors import InputError

pytestmark = pytest.mark.filterwarnings("ignore:GitWildMatchPattern")  # Flower's, with a newer pathspec

PROJECT = """
[project]
name = "foreign"
version = "1.0.0"
license = { file = "LICENSE" }
dependencies = ["flwr>=1.41,<1.43"]
[tool.hatch.build.targets.wheel]
packages = ["."]
[tool.flwr.app]
publisher = "someone"
fab-format-version = 1
flwr-version-target = "1.41.0"
fab-include = ["**/*.py", "LICENSE"]
[tool.flwr.app.components]
serverapp = "foreign.app:server"
clientapp = "foreign.app:app"
"""
APP = """
from pathlib import Path
from flwr.clientapp import ClientApp
from flwr.serverapp import ServerApp
Path({marker!r}).write_text("ran")
app, server = ClientApp(), ServerApp()
@app.query()
def read(message, context):
    raise SystemExit
"""
MESSAGE = """
import sys
from pathlib import Path
from flwr.app import ConfigRecord, Context, Message, RecordDict
from flwr.supercore.fab import Fab
from flwr.supercore.run import Run
from flwr.supercore.task_identity import TaskIdentity
from flwr.supernode.runtime import run_clientapp as stock

fab, how = Path(sys.argv[1]).read_bytes(), sys.argv[2]
run = Run.create_empty(1)
run.fab_id, run.fab_version = "someone/foreign", "1.0.0"
TaskIdentity.run_id, TaskIdentity.task_id, TaskIdentity.node_id = 1, 1, 7
message = Message(RecordDict({"mmare": ConfigRecord({"header": "hello"})}), 7, "query")
message.metadata.__dict__.update({"_message_id": "m", "_run_id": 1, "_src_node_id": 1})
context = Context(1, 7, {"site-factory": "nobody"}, RecordDict(), {})
stock.pull_task_input = lambda client: (message, context, run, Fab(sys.argv[3], fab, {}))
stock.push_task_output = lambda **rest: None
stock.push_message = lambda client, reply, context: print("ANSWER", reply.error.reason, flush=True)
"""
WAYS = {
    "stock": "stock.run_clientapp('127.0.0.1:1', 'token', insecure=True, runtime_dependency_install=False)",
    "relay": (
        "import os\nfrom client.relay.patched.clientapp import Task, run_task\n"
        "run_task(Task('127.0.0.1:1', 'token', os.getppid()))"
    ),
    "guard": (  # Flower's own steps, with nothing of ours but the last line of defence
        "import os\nfrom functools import partial\nfrom client.relay.patched.clientapp import _refuse_code\n"
        "sys.addaudithook(partial(_refuse_code, os.environ['FLWR_HOME'] + os.sep))\n"
        "stock.run_clientapp('127.0.0.1:1', 'token', insecure=True, runtime_dependency_install=False)"
    ),
}


@pytest.mark.slow
@pytest.mark.parametrize(("way", "runs"), [("stock", True), ("relay", False), ("guard", False)])
def test_code_that_arrives_does_not_run(tmp_path, way, runs):
    project, marker, home = tmp_path / "project", tmp_path / "marker", tmp_path / "home"
    (project / "foreign").mkdir(parents=True)
    home.mkdir()
    (project / "pyproject.toml").write_text(PROJECT)
    (project / "LICENSE").write_text("none")
    (project / "foreign" / "__init__.py").write_text("")
    (project / "foreign" / "app.py").write_text(APP.format(marker=str(marker)))
    (tmp_path / "fab").write_bytes(fab := build_fab_from_disk(project))
    command = [
        sys.executable,
        "-c",
        MESSAGE + WAYS[way],
        tmp_path / "fab",
        way,
        hashlib.sha256(fab).hexdigest(),
    ]
    environment = {**os.environ, "FLWR_HOME": str(home), "FLWR_TELEMETRY_ENABLED": "0"}
    done = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=60, check=False)
    assert marker.exists() is runs, done.stdout + done.stderr
    assert way != "relay" or not any(home.rglob("*.py"))
    assert way != "relay" or "<'S500'>" in done.stdout  # of our own app, whose site is nowhere


def test_a_flower_that_loads_the_app_otherwise_is_refused():
    """It would call nothing of what is replaced."""
    point = PatchPoint(CLIENTAPP, "push_message", "client, message, context", uses=("install_from_fab",))
    assert point.difference() == f"{CLIENTAPP}.push_message does not use install_from_fab"


@pytest.mark.slow
def test_a_site_starts_nothing_with_another_flower(monkeypatch):
    check_flower()
    monkeypatch.setattr("client.relay.programs.CHECK", "supernova")
    with pytest.raises(InputError):
        check_flower()
