"""A hospital whose data are on a cluster: the relay outside, embedding and worker as jobs without network."""

import os
import re
import tempfile
from pathlib import Path

import pytest

from client.relay.spool import SpoolLink
from sites.config import load_site
from sites.datasets.phantoms import prepare_synthetic_scans
from tests.federations import events, run_nodes, tiny_federation, tiny_study, weights
from tests.system.deployment import Coordinator, Hospital, command, free_ports, needs_nginx, until
from tests.system.slurm import Cluster

pytestmark = pytest.mark.system

SCRIPTS = Path(__file__).parents[2] / "deploy" / "slurm"
RUN_S = 600  # on a busy machine
ROUNDS = 8
BACK_S = 240


@pytest.fixture
def place():
    with tempfile.TemporaryDirectory(prefix="mmare-") as folder:
        yield Path(folder)


@needs_nginx
def test_a_run_goes_through_a_job_that_is_queued_again_in_the_middle(place, tmp_path):
    study = tiny_study(
        training={"rounds": ROUNDS, "patience": ROUNDS}, federation={"min_sites": 2, "deadline_s": 120}
    )
    federation = tiny_federation(place / "fed", study, sites=["ash", "birch"])
    coordinator = Coordinator(place / "kit")
    ash, birch = (
        Hospital(federation / name, port) for name, port in zip(("ash", "birch"), free_ports(2), strict=True)
    )
    coordinator.hospitals += [ash, birch]
    with ash.file.open("a") as file:
        file.write('\n[worker]\nspool = "spool"\n')
    link = SpoolLink(ash.site.worker.spool)
    for hospital in (ash, birch):
        hospital.join(coordinator, federation / "study.toml")
    with Cluster(place / "cluster", {"MMARE_SITE": str(ash.file)}) as cluster:
        coordinator.start(federation / "study.toml", place / "run")
        ash.start("relay")
        birch.start()
        try:
            assert "is its job in the queue" in command("mmare-site", "status", ash.file, expect=1)
            job = cluster.sbatch(SCRIPTS / "worker.sbatch")
            coordinator.until_round(place / "run", 2, RUN_S, "aggregated")
            first = link.status().pid
            cluster.near_its_limit(job)
            until(lambda: link.status() is None, "it ends", BACK_S, cluster.logs)
            until(lambda: link.status() is not None, "it is queued again", BACK_S, cluster.logs)
            assert link.status().pid != first
            network = Path(f"/proc/{link.status().pid}/ns/net")
            assert os.geteuid() != 0 or network.readlink() != Path("/proc/self/ns/net").readlink()
            coordinator.finish(RUN_S)
            assert "messages since the start: " in command("mmare-site", "status", ash.file)
            cluster.scancel(job)
        finally:
            ash.stop()
            birch.stop()
            coordinator.close()
        assert ((job / "code").read_text(), cluster.starts(job)) == ("0", 2)
        assert "Traceback" not in cluster.logs()
    assert events(place / "run", "site_left_out") == []
    run_nodes(federation, tmp_path / "plain")
    assert weights(place / "run") == weights(tmp_path / "plain")


def test_scans_are_embedded_by_a_job_that_goes_on_where_it_was(place):
    prepare_synthetic_scans(place / "fed", subjects=10)
    site, study = place / "fed" / "guys" / "site.toml", place / "fed" / "study.toml"
    with Cluster(place / "cluster", {"MMARE_SITE": str(site), "MMARE_STUDY": str(study)}) as cluster:
        job = cluster.sbatch(SCRIPTS / "embed.sbatch")
        cache = load_site(site).cache
        until(lambda: [*cache.rglob("[!.]*.npy")], "a scan is encoded", BACK_S, cluster.logs)
        cluster.near_its_limit(job)
        until((job / "code").exists, "the job ends", BACK_S, cluster.logs)
        said = cluster.logs()
        assert ((job / "code").read_text(), cluster.starts(job)) == ("0", 2), said
    before = re.search(r"(\d+) there before, 0 cannot be used", said)
    assert int(before[1]) > 0


def test_settings_that_are_wrong_end_the_job(place):
    with Cluster(place / "cluster", {"MMARE_SITE": str(place / "site.toml")}) as cluster:
        job = cluster.sbatch(SCRIPTS / "worker.sbatch")
        until((job / "code").exists, "the job ends", BACK_S, cluster.logs)
        assert (job / "code").read_text() == "2"
        assert "site.toml" in cluster.logs()
