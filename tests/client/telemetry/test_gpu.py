"""The driver's library: asked in its own binary interface, and absent without harm."""

import ctypes
import shutil
import subprocess

import pynvml
import pytest
import torch

from client.privacy.approvals import ApprovalFolder
from client.privacy.records.audit_log import AuditLog
from client.telemetry.endpoint import SiteMetrics
from client.telemetry.gpu import GpuReader, GpuState
from client.telemetry.seen import WorkerActivity
from sites.config import load_site
from tests.federations import tiny_federation

STAND_IN = """
#include <string.h>
typedef struct { unsigned long long total, free, used; } memory_t;
typedef struct { unsigned int gpu, memory; } utilization_t;
static int devices[3] = {0, 1, 2};
int nvmlInitWithFlags(unsigned int flags) { return INIT; }
int nvmlDeviceGetCount_v2(unsigned int *count) { *count = 3; return INIT; }
int nvmlDeviceGetHandleByIndex_v2(unsigned int i, void **device) {
  *device = &devices[i]; return i == 1 ? 15 : 0;
}
int nvmlDeviceGetMemoryInfo(void *device, memory_t *m) {
  m->total = 150ULL << 30; m->free = 100ULL << 30; m->used = 50ULL << 30; return 0;
}
int nvmlDeviceGetUtilizationRates(void *device, utilization_t *u) {
  u->gpu = 37; u->memory = 99; return *(int *)device == 2 ? 3 : 0;
}
"""


@pytest.fixture
def load(monkeypatch):
    """Have the real pynvml load another library than the driver's."""

    def instead(library):
        monkeypatch.setattr(pynvml, "CDLL", lambda _name: ctypes.CDLL(library))
        monkeypatch.setattr(pynvml, "nvmlLib", None)
        monkeypatch.setattr(pynvml, "_nvmlGetFunctionPointer_cache", {})

    return instead


@pytest.fixture
def driver(tmp_path, load):
    """A library of the documented interface (nvml.h): three GPUs, of which one is lost and one shy."""
    compiler = shutil.which("cc") or shutil.which("gcc")
    if compiler is None:
        pytest.skip("no C compiler is installed")

    def make(init=0):
        source, made = tmp_path / f"nvml{init}.c", tmp_path / f"libnvml{init}.so"
        source.write_text(STAND_IN)
        command = [compiler, "-shared", "-fPIC", f"-DINIT={init}", "-o", str(made), str(source)]
        subprocess.run(command, check=True, timeout=60)
        load(made)

    return make


def test_gpus_are_read_in_the_library_s_own_interface(driver):
    driver()
    assert GpuReader().read() == [
        GpuState(0, 50 << 30, 150 << 30, 0.37),
        GpuState(2, 50 << 30, 150 << 30, None),
    ]


def test_a_driver_that_does_not_answer_has_no_gpus(driver):
    driver(init=9)
    assert GpuReader().read() == []


@pytest.mark.parametrize("library", ["no-such-library.so", "libc.so.6"], ids=["absent", "without functions"])
def test_a_machine_without_a_driver_has_no_gpus(load, library):
    load(library)
    assert GpuReader().read() == []


@pytest.mark.gpu
def test_a_real_gpu_is_told_as_cuda_tells_it():
    states = GpuReader().read()
    held = torch.zeros(1 << 28, dtype=torch.uint8, device="cuda")
    after = GpuReader().read()
    assert len(states) == len(after) >= torch.cuda.device_count() > 0
    size = torch.cuda.get_device_properties(0).total_memory
    assert any(abs(state.size_bytes - size) < 0.05 * size for state in after)
    grown = [new.used_bytes - old.used_bytes for new, old in zip(after, states, strict=True)]
    assert max(grown) >= held.numel()
    assert all(state.busy is None or 0 <= state.busy <= 1 for state in after)


def test_gpus_are_told_to_prometheus(driver, tmp_path):
    site = load_site(tiny_federation(tmp_path / "fed", sites=("ash",)) / "ash" / "site.toml")
    driver()
    gpus = GpuReader()
    metrics = SiteMetrics(
        site, ApprovalFolder(site.folder), AuditLog(site.folder / "audit.jsonl"), WorkerActivity(), gpus
    )
    found = {
        (sample.name.removeprefix("mmare_site_worker_gpu_"), sample.labels["gpu"]): sample.value
        for family in metrics.collect()
        for sample in family.samples
        if "gpu" in sample.labels
    }
    assert found == {
        ("memory_used_bytes", "0"): 50 << 30,
        ("memory_used_bytes", "2"): 50 << 30,
        ("memory_size_bytes", "0"): 150 << 30,
        ("memory_size_bytes", "2"): 150 << 30,
        ("busy_ratio", "0"): 0.37,
    }
