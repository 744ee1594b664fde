"""How busy and how full this machine's NVIDIA GPUs are, from the driver's own library (NVML).

Asking it starts nothing on a GPU: no CUDA context, no memory. Without a driver there are no GPUs.
"""

from __future__ import annotations

from contextlib import suppress
from dataclasses import dataclass

import pynvml

__all__ = ["GpuReader", "GpuState"]


@dataclass(frozen=True)
class GpuState:
    """One GPU, all programs on it together.

    Args:
        number: As the driver counts, from 0.
        used_bytes: Of its memory.
        size_bytes: Of its memory.
        busy: Share of the last moment in which it computed, 0 to 1; none where the driver does not say it.
    """

    number: int
    used_bytes: int
    size_bytes: int
    busy: float | None


class GpuReader:
    """Keeps the driver's library open."""

    def __init__(self) -> None:
        with suppress(pynvml.NVMLError):  # then every later call fails as well
            pynvml.nvmlInit()

    def read(self) -> list[GpuState]:
        """The GPUs as they are now; one that does not answer is left out."""
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
