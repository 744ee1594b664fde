"""How benchmarks say what they measured."""

__all__ = ["report"]


def report(title, **figures):
    print(f"\n{title}: " + ", ".join(f"{name} {value}" for name, value in figures.items()))  # noqa: T201 - a benchmark
