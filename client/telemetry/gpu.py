"""Load and memory of this machine's NVIDIA GPUs, from the driver's own library (NVML).

Queries start nothing on a GPU: no CUDA context, no memory. Without a driver there are no GPUs.
"""

from __future__ import annotations

from contextlib import suppress
from dataclasses import dataclass

import pynvml

__all__ = ["GpuReader", "GpuState"]


@dataclass(frozen=True)
class GpuState:
    """One GPU, all programs on it together."""

    number: int  # the driver's, from 0
    used_bytes: int
    size_bytes: int
    busy: float | None  # share of the last sampling period in use, 0 to 1; None if not reported


class GpuReader:
    """Keeps NVML initialised."""

    def __init__(self) -> None:
        with suppress(pynvml.NVMLError):  # later calls then fail as well
            pynvml.nvmlInit()

    def read(self) -> list[GpuState]:
        """Current state of the GPUs; one that does not answer is left out."""
        found = []
        with suppress(pynvml.NVMLError):
            for number in range(pynvml.nvmlDeviceGetCount()):
                with suppress(pynvml.NVMLError):
                    found.append(_state(number))
        return found


def _state(number: int) -> GpuState:
    device = pynvml.nvmlDeviceGetHandleByIndex(number)
    memory = pynvml.nvmlDeviceGetMemoryInfo(device)
    busy = None
    with suppress(pynvml.NVMLError):
        busy = pynvml.nvmlDeviceGetUtilizationRates(device).gpu / 100
    return GpuState(number, memory.used, memory.total, busy)
