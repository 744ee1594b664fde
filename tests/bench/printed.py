"""What benchmarks share: where they measure, and how they say what they measured."""

import torch

__all__ = ["DEVICES", "report"]

DEVICES = ["cpu", *(["cuda"] if torch.cuda.is_available() else [])]


def report(title, **figures):
    print(f"\n{title}: " + ", ".join(f"{name} {value}" for name, value in figures.items()))  # noqa: T201 - a benchmark
