"""What the exporter costs: reading a long journal, a scrape, memory, and a round of a run that is watched."""

import json
import subprocess
import sys
import threading
import urllib.request

import pytest

from server.exporter import Exporter, serving
from simulation.run import run_federation
from tests.bench.printed import report
from tests.federations import tiny_federation, tiny_study
from tests.server.journals import a_round, called, started, validated, write

pytestmark = [pytest.mark.bench, pytest.mark.filterwarnings("default")]

ROUNDS = 10_000
BLOCKS = {f"adapter.m{number}": 4000 for number in range(10)}
READER = """
import json, pathlib, sys, time
from prometheus_client import CollectorRegistry, generate_latest
from server.exporter import Exporter

def memory(kind):
    lines = pathlib.Path("/proc/self/status").read_text().splitlines()
    return int(next(line for line in lines if line.startswith(kind)).split()[1]) * 1024

before = memory("VmRSS")
exporter, registry = Exporter(pathlib.Path(sys.argv[1])), CollectorRegistry()
began = time.perf_counter()
while exporter.read_on():
    pass
read = time.perf_counter() - began
registry.register(exporter)
scrapes = []
for _ in range(5):
    began = time.perf_counter()
    page = generate_latest(registry)
    scrapes.append(time.perf_counter() - began)
series = sum(not line.startswith(b"#") for line in page.splitlines())
began = time.perf_counter()
exporter.read_on()
idle = time.perf_counter() - began
print(json.dumps({"read": read, "scrape": min(scrapes), "idle": idle, "bytes": len(page), "series": series,
                  "memory": memory("VmHWM") - before}))
"""


def measure(folder):
    done = subprocess.run(
        [sys.executable, "-c", READER, str(folder)], capture_output=True, text=True, check=True, timeout=600
    )
    return json.loads(done.stdout)


def write_rounds(folder, names, first, last):
    """Rounds as a run writes them, made once and numbered anew."""
    scores = dict.fromkeys(names, (20, 0.7))
    lines = [*a_round(0, names, **BLOCKS), validated(0, 0.7, **scores)]
    text = "".join(json.dumps(line) + "\n" for line in lines)
    with (folder / "rounds.jsonl").open("a") as file:
        for number in range(first, last + 1):
            file.write(text.replace('"round": 0', f'"round": {number}'))


@pytest.mark.parametrize("sites", [3, 300])
def test_exporter_over_a_long_journal(sites, tmp_path):
    names = [f"site{number:03d}" for number in range(sites)]
    write(tmp_path, [started(), *(called(name) for name in names)])
    write_rounds(tmp_path, names, 1, ROUNDS // 100)
    short = measure(tmp_path)
    write_rounds(tmp_path, names, ROUNDS // 100 + 1, ROUNDS)
    size = (tmp_path / "rounds.jsonl").stat().st_size
    found = measure(tmp_path)
    report(
        f"exporter, {sites} sites, {ROUNDS} rounds",
        MB=f"{size / 1e6:.0f}",
        read_s=f"{found['read']:.1f}",
        scrape_ms=f"{found['scrape'] * 1e3:.1f}",
        idle_look_ms=f"{found['idle'] * 1e3:.2f}",
        series=found["series"],
        page_kB=f"{found['bytes'] / 1e3:.0f}",
        memory_MB=f"{found['memory'] / 1e6:.1f}",
        memory_MB_of_1_percent=f"{short['memory'] / 1e6:.1f}",
    )
    assert found["series"] == short["series"]
    (tmp_path / "rounds.jsonl").unlink()


def test_cost_of_metrics_to_a_round(tmp_path):
    federation = tiny_federation(tmp_path / "federation", tiny_study(training={"rounds": 60}))

    def seconds(out):
        return run_federation(federation, out)["seconds"]["rounds"] / 60

    seconds(tmp_path / "warm")
    plain, watched = [], []
    for turn in range(3):
        plain.append(seconds(tmp_path / f"plain{turn}"))
        stop = threading.Event()
        with serving(Exporter(tmp_path), 0, "127.0.0.1") as port:

            def scrape(port=port, stop=stop):
                while not stop.wait(1.0):
                    urllib.request.urlopen(f"http://127.0.0.1:{port}/metrics", timeout=5).read()

            scraper = threading.Thread(target=scrape)
            scraper.start()
            watched.append(seconds(tmp_path / f"watched{turn}"))
            stop.set()
            scraper.join()
    report(
        "one round of 3 tiny sites",
        plain_ms=f"{min(plain) * 1e3:.1f}",
        with_exporter_and_a_scrape_a_second_ms=f"{min(watched) * 1e3:.1f}",
    )
