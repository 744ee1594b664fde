"""What the exporter says of a deployment, from a real kit, real processes and Flower's own database."""

import fcntl
import json
import shutil
import subprocess
import time
from contextlib import contextmanager
from dataclasses import replace

import pytest
from flwr.server.superlink.linkstate import LinkStateFactory
from flwr.supercore.object_store import ObjectStoreFactory
from flwr.superlink.federation import NoOpFederationManager
from hypothesis import given
from hypothesis import strategies as st
from prometheus_client import CollectorRegistry, generate_latest
from prometheus_client.parser import text_string_to_metric_families

from server.deployment.programs import write_record
from server.membership.certificates import new_authority
from server.membership.kit import init_kit
from server.membership.records import Admitted, SiteState, save
from server.monitoring.exporter import Exporter
from server.monitoring.flower_state import FlowerState, read_flower_state
from server.monitoring.kit_metrics import KIT_METRICS, NODE_STATUSES, RUN_STATUSES
from tests.properties import examples

pytestmark = pytest.mark.filterwarnings("ignore:No path_separator found:DeprecationWarning")  # of Flower's

DAY_S = 86400


@pytest.fixture
def kit(tmp_path):
    return init_kit(tmp_path / "coordinator", "localhost", days=20)


@pytest.fixture(scope="module")
def new_database(tmp_path_factory):
    """A database as Flower makes it, which takes longer than the tests."""
    path = tmp_path_factory.mktemp("flower") / "superlink.db"
    flower_state(path)
    return path


@pytest.fixture
def flower(kit, new_database):
    """Flower's own way to the kit's database."""
    shutil.copy(new_database, kit.database)
    return flower_state(kit.database)


def flower_state(database):
    made = LinkStateFactory(str(database), NoOpFederationManager(), ObjectStoreFactory(str(database)))
    return made.state()


def page(exporter):
    registry = CollectorRegistry()
    registry.register(exporter)
    return generate_latest(registry).decode()


def told(exporter):
    """Values of the metrics of the deployment: by name, by label value."""
    names = {metric.name for metric in KIT_METRICS}
    return {
        family.name: {next(iter(sample.labels.values()), ""): sample.value for sample in family.samples}
        for family in text_string_to_metric_families(page(exporter))
        if family.name in names
    }


def exported(kit, tmp_path):
    return told(Exporter(tmp_path, kit=kit.folder))


def admit(kit, site, node_id=None, state=SiteState.ADMITTED):
    save(kit, Admitted(site, "key", "fingerprint", "2026-01-01T00:00:00", "0.1.0", state, node_id))


def test_certificates_are_told_by_when_they_end(kit, tmp_path):
    found = exported(kit, tmp_path)["mmare_certificate_expiry_timestamp_seconds"]
    assert found["server"] - time.time() == pytest.approx(20 * DAY_S, abs=2 * 3600)
    assert found["authority"] - time.time() == pytest.approx(3653 * DAY_S, abs=2 * 3600)


def test_of_a_chain_the_first_to_end_counts(kit, tmp_path):
    shorter = exported(kit, tmp_path)["mmare_certificate_expiry_timestamp_seconds"]["server"]
    kit.certificate.write_bytes(new_authority("other").certificate + kit.certificate.read_bytes())
    assert exported(kit, tmp_path)["mmare_certificate_expiry_timestamp_seconds"]["server"] == shorter


@pytest.mark.parametrize("content", [b"", b"rubbish", b"-----BEGIN CERTIFICATE-----\nAA\n"])
def test_a_damaged_certificate_is_not_exported(kit, tmp_path, content):
    kit.certificate.write_bytes(content)
    assert set(exported(kit, tmp_path)["mmare_certificate_expiry_timestamp_seconds"]) == {"authority"}


def test_sites_are_counted_by_state(kit, tmp_path):
    assert exported(kit, tmp_path)["mmare_kit_sites"] == {"admitted": 0, "revoked": 0}
    for site, state in (("ash", "admitted"), ("birch", "admitted"), ("cedar", "revoked")):
        admit(kit, site, state=SiteState(state))
    assert exported(kit, tmp_path)["mmare_kit_sites"] == {"admitted": 2, "revoked": 1}


@contextmanager
def started(kit):
    """What ``mmare-server start`` holds while it runs."""
    with (kit.state / "start.lock").open("a+") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        yield


def test_programs_are_told_whether_they_run(kit, tmp_path):
    exporter = Exporter(tmp_path, kit=kit.folder)
    assert told(exporter)["mmare_deployment_program_up"] == {}
    before = time.time()
    program = subprocess.Popen(["sleep", "60"])
    try:
        with started(kit):
            write_record(kit, dict.fromkeys(("superlink", "superexec", "proxy"), program.pid))
            found = told(exporter)
            assert found["mmare_deployment_program_up"] == dict.fromkeys(
                ("superlink", "superexec", "proxy"), 1
            )
            began = found["mmare_deployment_program_start_timestamp_seconds"]
            assert began["superlink"] == pytest.approx(before, abs=5)
            write_record(kit, dict.fromkeys(("superlink", "superexec"), program.pid))  # nginx has ended
            found = told(exporter)
            assert found["mmare_deployment_program_up"] == {"superlink": 1, "superexec": 1, "proxy": 0}
            assert set(found["mmare_deployment_program_start_timestamp_seconds"]) == {
                "superlink",
                "superexec",
            }
        found = told(exporter)  # nobody keeps them any more
    finally:
        program.kill()
        program.wait()
    assert found["mmare_deployment_program_up"] == dict.fromkeys(("superlink", "superexec", "proxy"), 0)
    assert found["mmare_deployment_program_start_timestamp_seconds"] == {}


def test_a_look_at_the_lock_does_not_keep_it(kit, tmp_path):
    with started(kit):
        write_record(kit, {"superlink": 1})
    exported(kit, tmp_path)
    with started(kit):
        pass


# Flower's database


def test_nodes_are_told_as_flower_has_them(kit, flower, tmp_path):
    nodes = {
        site: flower.create_node("owner", "owner", site.encode(), 30.0, name=site)
        for site in ("ash", "birch", "cedar", "dogwood")
    }
    for site in ("ash", "cedar", "dogwood"):
        flower.activate_node(nodes[site], 30.0)
    flower.deactivate_node(nodes["cedar"])
    flower.delete_node("owner", nodes["dogwood"])
    for site, node in nodes.items():
        state = SiteState.REVOKED if site == "dogwood" else SiteState.ADMITTED
        admit(kit, site, node, state)
    admit(kit, "elm")  # not registered yet
    found = exported(kit, tmp_path)
    assert found["mmare_flower_nodes"] == {**dict.fromkeys(NODE_STATUSES, 1), "other": 0}
    assert found["mmare_flower_node_online"] == {"ash": 1, "birch": 0, "cedar": 0}
    assert found["mmare_flower_run_status"] == {}


def test_a_node_that_stopped_to_call_is_offline_before_flower_notes_it(kit, flower):
    node = flower.create_node("owner", "owner", b"key", 30.0)
    flower.activate_node(node, 30.0)
    now = time.time()
    states = [read_flower_state(kit.database, now + later).nodes[node] for later in (0, 20, 1000)]
    assert states == ["online", "online", "offline"]


def test_the_run_has_the_state_that_flower_reports(kit, flower, tmp_path):
    def told():
        found = exported(kit, tmp_path)["mmare_flower_run_status"]
        assert set(found) == {*RUN_STATUSES, "other"}
        return [status for status, value in found.items() if value]

    def submitted():
        run = flower.create_run(None, None, "hash", {}, "@none/default", None, None, "serverapp")
        return flower.get_run_info(run_ids=[run])[0].primary_task_id

    first = submitted()
    states = [told()]
    flower.claim_task(first)
    states.append(told())
    flower.activate_task(first)
    states.append(told())
    flower.finish_task(first, "completed", "")
    states.append(told())
    second = submitted()
    states.append(told())
    flower.claim_task(second)
    flower.activate_task(second)
    flower.finish_task(second, "failed", "/home/patients/PAT-0001")
    states.append(told())
    assert states == [[name] for name in ("pending", "starting", "running", "completed", "pending", "failed")]
    assert "PAT-0001" not in page(Exporter(tmp_path, kit=kit.folder))


def test_unknown_tables_of_flower_are_not_exported(kit, flower, tmp_path):
    assert flower.create_node("owner", "owner", b"key", 30.0)
    with flower.session() as session:
        session.connection().exec_driver_sql("ALTER TABLE node RENAME COLUMN status TO state")
    assert read_flower_state(kit.database, time.time()) is None
    assert exported(kit, tmp_path)["mmare_flower_nodes"] == {}


@pytest.mark.parametrize("content", [None, b"", b"rubbish" * 1000])
def test_no_database_is_no_state(tmp_path, content):
    path = tmp_path / "superlink.db"
    if content is not None:
        path.write_bytes(content)
    assert read_flower_state(path, 0.0) is None


def test_looking_does_not_hold_flower_up(kit, flower):
    with flower.session() as session:
        session.connection().exec_driver_sql("BEGIN IMMEDIATE")  # a write that is under way
        assert read_flower_state(kit.database, time.time()) == FlowerState(None, {})
    before = {path.name for path in kit.state.iterdir()}
    read_flower_state(kit.database, time.time())
    assert {path.name for path in kit.state.iterdir()} == before


# Whatever the folder holds

ODD = st.recursive(
    st.one_of(
        st.none(), st.booleans(), st.integers(), st.floats(), st.text(max_size=80),
        st.sampled_from(["/home/patients/PAT-0001", 'a"b', "x" * 500, "ash", "admitted"]),
    ),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=20), inner, max_size=3),
    max_leaves=5,
)  # fmt: skip
SITES = st.fixed_dictionaries(
    {}, optional={"site": ODD, "state": st.just("admitted") | ODD, "node_id": st.integers(0, 2**64) | ODD}
)
PROCESS = st.fixed_dictionaries({}, optional={"pid": ODD, "started": st.just("1234") | ODD})


@pytest.fixture(scope="module")
def odd_database(tmp_path_factory):
    path = tmp_path_factory.mktemp("flower") / "superlink.db"
    state = flower_state(path)
    state.create_node("owner", "owner", b"key", 30.0, name="/home/patients/PAT-0001")
    state.create_run("PAT-0001", None, "hash", {}, "@none/default", None, None, "serverapp")
    return path


@examples(40)
@given(
    st.lists(SITES | ODD, max_size=3),
    st.dictionaries(st.sampled_from(["superlink", "proxy", "/home/patients"]), PROCESS | ODD) | ODD,
)
def test_an_odd_folder_breaks_nothing_and_leaks_nothing(tmp_path_factory, odd_database, sites, processes):
    folder = tmp_path_factory.mktemp("odd")
    (folder / "sites").mkdir()
    (folder / "state").mkdir()
    for number, content in enumerate(sites):
        (folder / "sites" / f"{number}.json").write_text(json.dumps(content))
    (folder / "state" / "processes.json").write_text(json.dumps(processes))
    for path in odd_database.parent.iterdir():  # with its write-ahead log
        shutil.copy(path, folder / "state")
    with (folder / "state" / "start.lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        text = page(Exporter(folder, kit=folder))
    closed = {
        "state": {"admitted", "revoked"},
        "program": {"superlink", "superexec", "proxy"},
        "status": {*RUN_STATUSES, *NODE_STATUSES, "other"},
    }
    for family in text_string_to_metric_families(text):
        for sample in family.samples:
            for label, value in sample.labels.items():
                assert len(value) <= 64
                assert value in closed.get(label, {value})
    assert 'mmare_flower_nodes{status="registered"} 1.0' in text
    for odd in ("/home", "patients", "PAT-0001"):
        assert odd not in text


def test_every_metric_is_well_formed_for_promtool(kit, flower, tmp_path):
    promtool = shutil.which("promtool")
    if promtool is None:
        pytest.skip("promtool is not installed")
    admit(kit, "ash", flower.create_node("owner", "owner", b"key", 30.0))
    done = subprocess.run(
        [promtool, "check", "metrics"],
        input=page(Exporter(tmp_path, kit=kit.folder)),
        capture_output=True,
        text=True,
        check=False,
        timeout=30,
    )
    assert (done.returncode, done.stdout + done.stderr) == (0, "")


def test_a_record_that_is_replaced_is_read_anew(kit, flower, tmp_path):
    node = flower.create_node("owner", "owner", b"key", 30.0)
    flower.activate_node(node, 30.0)
    admit(kit, "ash", node)
    exporter = Exporter(tmp_path, kit=kit.folder)
    states = []
    for _ in range(2):
        states.append("mmare_flower_node_online{" in page(exporter))
        record = json.loads((kit.sites / "ash.json").read_text())
        save(kit, replace(Admitted(**record), state=SiteState.REVOKED))
    assert states == [True, False]
