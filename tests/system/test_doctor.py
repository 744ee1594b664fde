"""The doctor as a hospital types it: a real SuperLink, a firewall that drops, no look at patients."""

import os
import re
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from mmare.host.supervised import ProcessSupervisor, Program
from mmare.wire.joining import SiteKit
from sites.config import load_site
from tests.federations import tiny_federation
from tests.strange_servers import free_port
from tests.system.network import COORDINATOR, PUBLIC_PORT, Host, needs_namespaces, network

pytestmark = pytest.mark.system

BIN = Path(sys.executable).parent
SITE = "ash"
START_S = 60
LONGEST_S = 30


def call(*command: object) -> subprocess.CompletedProcess[str]:
    words, environment = [*map(str, command)], {**os.environ, "COLUMNS": "160"}
    return subprocess.run(words, capture_output=True, text=True, timeout=120, check=False, env=environment)


def good(*command: object) -> str:
    done = call(*command)
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


def doctor(site: Path, *before: str) -> tuple[subprocess.CompletedProcess[str], dict[str, str]]:
    """The command, and its verdicts by check, the worst of each."""
    done = call(*before, BIN / "mmare-site", "check", site, "--network")
    order = ("ok", "warning", "problem")
    worst: dict[str, str] = {}
    for verdict, check in re.findall(r"^(ok|warning|problem) +(\w+)", done.stdout, re.MULTILINE):
        worst[check] = max(worst.get(check, "ok"), verdict, key=order.index)
    return done, worst


def joined(folder: Path, host: str = "localhost", port: int = 443) -> tuple[Path, Path]:
    """A site with a bundle, by the commands of both sides; gives its ``site.toml`` and the kit."""
    federation = tiny_federation(folder / "federation")
    kit, site = folder / "coordinator", federation / SITE / "site.toml"
    good(BIN / "mmare-server", "kit", "init", "--kit", kit, "--host", host, "--port", port)
    good(BIN / "mmare-site", "kit", "request", site)
    bundle, request = folder / "ash.zip", site.parent / f"request-{SITE}.json"
    study = federation / "study.toml"
    good(BIN / "mmare-server", "kit", "admit", request, "--kit", kit, "--study", study, "--out", bundle)
    good(BIN / "mmare-site", "kit", "install", bundle, "--site", site)
    return site, kit


def set_port(site: Path, port: int) -> None:
    known = SiteKit(load_site(site).coordinator.kit).joined
    known.write_text(re.sub(r"port = \d+", f"port = {port}", known.read_text()))


@contextmanager
def superlink(kit: Path, folder: Path, host: Host | None = None) -> Iterator[int]:
    """Flower's SuperLink with a kit's certificate; gives its port.

    Args:
        kit: Of the coordinator.
        folder: For its log and files.
        host: Where it runs, on the public port; none for a free port of loopback.
    """
    address, port = ("127.0.0.1", free_port()) if host is None else (host.address, PUBLIC_PORT)
    command = (
        *(str(BIN / "flower-superlink"), "--host", address, "--port", str(port)),
        *("--ssl-ca-certfile", str(kit / "ca.crt"), "--ssl-certfile", str(kit / "server.crt")),
        *("--ssl-keyfile", str(kit / "server.key"), "--enable-supernode-auth"),
        *("--isolation", "process", "--superexec-auth-secret-file", str(kit / "superexec.secret")),
    )
    environment = {
        "FLWR_TELEMETRY_ENABLED": "0",
        "FLWR_DISABLE_UPDATE_CHECK": "1",
        "FLWR_DISABLE_RUNTIME_DEPENDENCY_INSTALLATION": "1",
        "FLWR_HOME": str(folder / "flwr-home"),
    }
    log = folder / "superlink.log"
    inside = command if host is None else host.inside(*command)
    with ProcessSupervisor() as processes:
        processes.keep(Program("superlink", inside, log, environment))
        processes.poll()
        end = time.monotonic() + START_S
        while "Uvicorn running" not in log.read_text():
            assert processes.pid("superlink"), log.read_text()
            assert time.monotonic() < end, log.read_text()
            time.sleep(0.1)
        yield port


def test_against_a_real_superlink_nothing_is_wrong(tmp_path):
    site, kit = joined(tmp_path)
    study = load_site(site).coordinator.kit / "study.toml"
    good(BIN / "mmare-site", "approve", study, "--site", site, "--yes")
    with superlink(kit, tmp_path) as port:
        set_port(site, port)
        done, worst = doctor(site)
    assert done.returncode == 0, done.stdout + done.stderr
    assert done.stderr == ""
    fine = ("bundle", "kit", "proxy", "name", "connection", "TLS", "coordinator", "clock", "fleet")
    assert {check: worst[check] for check in fine} == dict.fromkeys(fine, "ok")
    assert worst["worker"] == "warning"  # none runs
    assert worst["study"] == worst["encoders"] == worst["versions"] == worst["ports"] == "ok"


def test_it_opens_no_file_of_patients(tmp_path):
    """An audit hook in the process sees every file that Python opens."""
    site, kit = joined(tmp_path)
    program = (
        "import sys\n"
        "from pathlib import Path\n"
        "opened = []\n"
        "sys.addaudithook(lambda name, found: opened.append(str(found[0])) if name == 'open' else None)\n"
        "from client.doctor.examination import examine\n"
        "from sites.config import load_site\n"
        "examine(load_site(Path(sys.argv[1])))\n"
        "print(*sorted(opened), sep='\\n')\n"
    )
    opened = good(sys.executable, "-c", program, site).splitlines()
    under = [name for name in opened if name.startswith(str(site.parent))]
    assert str(site) in under
    assert any(name.endswith("kit/node.key") for name in under)
    names = {Path(name).relative_to(site.parent).parts[0] for name in under}
    assert names <= {"site.toml", "kit"}
    assert {path.name for path in site.parent.glob("*.csv")} == {"patients.csv", "ct.csv", "wsi.csv"}
    assert kit.exists()


def test_a_firewall_that_drops_is_told_within_half_a_minute(tmp_path):
    needs_namespaces()
    site, kit = joined(tmp_path, COORDINATOR, PUBLIC_PORT)
    with network(1) as hosts:
        (hospital,) = hosts.hospitals
        with superlink(kit, tmp_path, hosts.coordinator):
            before, worst = doctor(site, *hospital.inside())
            assert worst["fleet"] == "ok", before.stdout + before.stderr
            hospital.cut()
            began = time.monotonic()
            done, worst = doctor(site, *hospital.inside())
            assert time.monotonic() - began < LONGEST_S
    assert done.returncode == 1
    said = " ".join(done.stdout.split())
    assert f"no answer from {COORDINATOR}:443: packets are dropped" in said
    assert f"allow this machine to reach {COORDINATOR}, TCP port 443" in said
    assert {check for check, verdict in worst.items() if verdict == "problem"} == {"connection"}
