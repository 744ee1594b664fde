"""Both guides, typed line by line on one machine under a real systemd: a run comes out at the end."""

import csv
import json
import re
import tempfile
from pathlib import Path

import pytest

from tests.deploy.sandbox import installed, needs_sandbox, run_inside
from tests.federations import tiny_federation, tiny_study

pytestmark = [pytest.mark.system, pytest.mark.slow]

DEPLOY = Path(__file__).parents[2] / "deploy"

# What a guide leaves to people between its lines is marked by <<…>>.
SCRIPT = """
exec 2>&1
set -e
{installed}
set -x
echo 127.0.0.1 join.example.org >> /etc/hosts
cd /tmp

{coordinator_paths}
{coordinator_2}

{hospital_paths}
{hospital_2}
mkdir /srv/mmare && cp /out/federation/ash/*.csv /srv/mmare
chown -R root:mmare /srv/mmare && chmod -R u=rwX,g=rX,o= /srv/mmare
python3 - <<'EDIT'
import re
path = "/var/lib/mmare/site.toml"
text = open(path).read()
here = "".join(f'[modality.{{name}}]\\nfile = "/srv/mmare/{{name}}.csv"\\n' for name in ("ct", "wsi"))
open(path, "w").write(re.sub(r"\\[modality\\.ct\\].*?(?=\\[compute\\])", here, text, flags=re.DOTALL))
EDIT
{hospital_request}

install -o mmare-coordinator -m 600 /var/lib/mmare-relay/request-hospital-a.json \\
  /var/lib/mmare-coordinator/request-hospital-a.json
install -o mmare-coordinator -m 600 /out/federation/study.toml /var/lib/mmare-coordinator/study.toml
{coordinator_paths}
cd /var/lib/mmare-coordinator
{coordinator_3}
install -o mmare-relay -m 600 $KIT/bundles/hospital-a.zip /var/lib/mmare-relay/hospital-a.zip
{coordinator_4}

{hospital_paths}
{hospital_install}
{{ set +x; }} 2>/dev/null
for second in $(seq 150); do
  python3 -c "import socket; socket.create_connection(('127.0.0.1', 443), 1)" 2>/dev/null && break; sleep 1
done
set -x
yes | {{ {hospital_4}
}}
{hospital_5_start}

{{ set +x; }} 2>/dev/null
result=/var/lib/mmare-coordinator/kit/runs/first/result.json
for second in $(seq 200); do [ -f $result ] && break; sleep 1; done
runuser -u mmare-coordinator -- mmare-server queue --kit /var/lib/mmare-coordinator/kit
systemctl stop mmare-coordinator
set -x
{hospital_5_status}
systemctl show --property Result,ExecMainStatus mmare-coordinator > /out/coordinator.txt
systemctl is-active mmare-exporter mmare-worker mmare-relay > /out/active.txt
cp /var/lib/mmare-coordinator/kit/runs/first/result.json /out/
{coordinator_paths}
cd /var/lib/mmare-coordinator
{coordinator_5}
install -o mmare -m 600 kidney-model.zip /var/lib/mmare/model.zip
cp --preserve /srv/mmare/patients.csv /srv/mmare/new.csv
{hospital_paths}
cd /var/lib/mmare
{hospital_6}
cp new-predictions.csv drift.html /out/
cp /srv/mmare/new.csv /out/patients.txt
curl --silent http://127.0.0.1:9464/metrics > /out/coordinator.metrics
curl --silent http://127.0.0.1:9465/metrics > /out/site.metrics

# What each service sees and may do.
relay=$(systemctl show --property MainPID --value mmare-relay)
worker=$(systemctl show --property MainPID --value mmare-worker)
cat > /tmp/look.py <<'LOOK'
import os, sys
for path in sys.argv[1:]:
    try:
        found = os.listdir(path) if os.path.isdir(path) else open(path).readline()
        print(path, "seen")
    except OSError as error:
        print(path, error.strerror)
LOOK
inside() {{ nsenter --target $1 --mount --net -- runuser -u $2 -- /opt/mmare/bin/python "${{@:3}}"; }}
inside $relay mmare-relay - /srv/mmare/patients.csv /var/lib/mmare /var/lib/mmare/approved \\
  /var/lib/mmare/site.toml /var/lib/mmare-relay/kit/node.key < /tmp/look.py > /out/relay.txt
inside $worker mmare - /srv/mmare/patients.csv /var/lib/mmare/approved < /tmp/look.py > /out/worker.txt
inside $worker mmare -c "open('/srv/mmare/new', 'w')" >> /out/worker.txt 2>&1 || true
for process in $relay $worker; do
  grep -E "^(CapBnd|CapEff|NoNewPrivs|Seccomp):" /proc/$process/status >> /out/status.txt
done
runuser -u mmare-relay -- cat /srv/mmare/patients.csv > /out/plain.txt 2>&1 || true
systemctl stop mmare-relay mmare-worker
systemctl show --property Result mmare-relay mmare-worker > /out/stopped.txt
"""


def blocks(name, heading):
    """Code blocks under a heading of a guide that begins like this."""
    text = (DEPLOY / name).read_text()
    for section in re.split(r"^## ", text, flags=re.MULTILINE)[1:]:
        if section.startswith(heading):
            return re.findall(r"^```\n(.*?)^```", section, re.MULTILINE | re.DOTALL)
    raise AssertionError(heading)


def paths(name):
    """The line of the first step that the later ones rely on."""
    return next(line for line in blocks(name, "1.")[0].splitlines() if line.startswith("export"))


@pytest.fixture(scope="module")
def typed():
    """What came back, and all that was printed."""
    needs_sandbox()
    with tempfile.TemporaryDirectory(prefix="mmare-") as folder:
        out = Path(folder) / "out"
        out.mkdir()
        tiny_federation(out / "federation", tiny_study(federation={"min_sites": 1}))
        (request,), (install,) = (blocks("hospital.md", "3.")[index : index + 1] for index in (0, 1))
        start, status = blocks("hospital.md", "5.")
        script = SCRIPT.format(
            installed=installed(),
            coordinator_paths=paths("coordinator.md"),
            coordinator_2=blocks("coordinator.md", "2.")[0],
            coordinator_3=blocks("coordinator.md", "3.")[0],
            coordinator_4=blocks("coordinator.md", "4.")[0],
            coordinator_5=blocks("coordinator.md", "5.")[0],
            hospital_paths=paths("hospital.md"),
            hospital_2=blocks("hospital.md", "2.")[0],
            hospital_request=request,
            hospital_install=install,
            hospital_4=blocks("hospital.md", "4.")[0],
            hospital_5_start=start,
            hospital_5_status=status,
            hospital_6=blocks("hospital.md", "6.")[0],
        )
        code, said = run_inside(script, out)
        found = {path.name: path.read_text() for path in out.iterdir() if path.is_file()}
    assert code == 0, said[-6000:]
    return found, said


def test_a_run_comes_out_at_the_end(typed):
    found, said = typed
    assert found["coordinator.txt"].split() == ["Result=success", "ExecMainStatus=0"]
    assert json.loads(found["result.json"])["rounds_run"] == 4
    assert found["active.txt"].split() == ["active"] * 3
    assert re.search(r"^ok +TLS +TLSv1\.3", said, re.MULTILINE)
    assert re.search(r"^ok +fleet ", said, re.MULTILINE)
    assert not re.search(r"^problem ", said, re.MULTILINE)
    assert "mmare_rounds_finished_total" in found["coordinator.metrics"]
    assert 'site="hospital-a"' in found["site.metrics"]
    assert "Result=success" in found["stopped.txt"]


def test_the_model_that_is_handed_out_predicts(typed):
    found, said = typed
    assert re.search(r"^digest: [0-9a-f]{64}$", said, re.MULTILINE)
    rows = list(csv.DictReader(found["new-predictions.csv"].splitlines()))
    assert len(rows) == len(found["patients.txt"].splitlines()) - 1
    assert all(0 <= float(row["probability_yes"]) <= 1 for row in rows)
    assert "mmare_site_worker_predictions_total" in found["site.metrics"]
    assert f"<h2>Package <code>{rows[0]['model'][:12]}</code></h2>" in found["drift.html"]


def test_the_relay_sees_no_data_and_the_worker_changes_none(typed):
    found, _ = typed
    relay = dict(line.split(" ", 1) for line in found["relay.txt"].splitlines())
    assert relay["/var/lib/mmare/site.toml"] == relay["/var/lib/mmare-relay/kit/node.key"] == "seen"
    assert relay["/srv/mmare/patients.csv"] in ("Permission denied", "No such file or directory")
    assert relay["/var/lib/mmare/approved"] == "No such file or directory"
    assert "Permission denied" in found["plain.txt"]  # without the unit, too
    worker = found["worker.txt"]
    assert worker.count(" seen\n") == 2
    assert "Read-only file system: '/srv/mmare/new'" in worker


def test_restrictions_are_in_force(typed):
    lines = typed[0]["status.txt"].split("\n")
    values = [line.split(":")[1].strip() for line in lines if line]
    # both: no capability to have (CapEff) or to get (CapBnd), no new privileges, a filter of system calls
    assert values == ["0" * 16, "0" * 16, "1", "2"] * 2
