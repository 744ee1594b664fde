"""How busy and how full this machine's NVIDIA GPUs are, from the driver's own library (NVML).

Asking it starts nothing on a GPU: no CUDA context, no memory. Where there is no driver there is no answer.
"""

from __future__ import annotations

import ctypes
from dataclasses import dataclass
from typing import Final

__all__ = ["GpuReader", "GpuState"]

LIBRARY: Final = "libnvidia-ml.so.1"
MOST_GPUS: Final = 64
_OK: Final = 0


class _Memory(ctypes.Structure):
    """``nvmlMemory_t``."""

    _fields_ = (
        ("total", ctypes.c_ulonglong),
        ("free", ctypes.c_ulonglong),
        ("used", ctypes.c_ulonglong),
    )


class _Utilization(ctypes.Structure):
    """``nvmlUtilization_t``, in percent of the last moment."""

    _fields_ = (("gpu", ctypes.c_uint), ("memory", ctypes.c_uint))


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
    """Asks the driver's library; without one there are no GPUs.

    Args:
        library: Name or path of the library.

    Example:
        >>> GpuReader("no-such-library.so").read()
        []
    """

    def __init__(self, library: str = LIBRARY) -> None:
        self._library: ctypes.CDLL | None
        try:
            self._library = ctypes.CDLL(library)
            if self._library.nvmlInit_v2() != _OK:
                self._library = None
        except (OSError, AttributeError):
            self._library = None

    def read(self) -> list[GpuState]:
        """The GPUs as they are now; one that does not answer is left out."""
        if self._library is None:
            return []
        count = ctypes.c_uint()
        if self._library.nvmlDeviceGetCount_v2(ctypes.byref(count)) != _OK:
            return []
        found = (_state(self._library, number) for number in range(min(count.value, MOST_GPUS)))
        return [state for state in found if state is not None]


def _state(library: ctypes.CDLL, number: int) -> GpuState | None:
    device, memory, use = ctypes.c_void_p(), _Memory(), _Utilization()
    if library.nvmlDeviceGetHandleByIndex_v2(ctypes.c_uint(number), ctypes.byref(device)) != _OK:
        return None
    if library.nvmlDeviceGetMemoryInfo(device, ctypes.byref(memory)) != _OK:
        return None
    told = library.nvmlDeviceGetUtilizationRates(device, ctypes.byref(use)) == _OK
    return GpuState(number, memory.used, memory.total, use.gpu / 100 if told else None)
