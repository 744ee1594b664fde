"""The result tables of the MMARE thesis (5.4 to 5.10), read from ``published_results.toml``."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path

from mmare.study.tables import from_table, read_toml

__all__ = ["PUBLISHED", "Published", "PublishedRow"]


@dataclass(frozen=True)
class PublishedRow:
    """A printed row.

    Args:
        name: As printed.
        model: Key of our registry.
        values: In the order of the table's columns.
        rate: Of MCAR; ``None`` where the data are as they are.
        clinical: Whether clinical data are among its modalities.
        conditioning: Of the ablation.
        fusion: Of the ablation.
        doubt: Footnote.
    """

    name: str
    model: str
    values: tuple[float, ...]
    rate: float | None = None
    clinical: bool = True
    conditioning: bool = True
    fusion: str = "pairwise"
    doubt: str = ""


@dataclass(frozen=True)
class Published:
    """A printed table.

    Args:
        number: In the thesis.
        title: What it is about.
        task: Of our data sets that it belongs to.
        measured: The data that the values are of.
        columns: Metric of ours -> heading, in printed order.
        rows: In printed order.
        ablation: Whether its rows are variants of MMARE.
    """

    number: str
    title: str
    task: str
    measured: str
    columns: Mapping[str, str]
    rows: tuple[PublishedRow, ...] = field(repr=False)
    ablation: bool = False


_TABLES = read_toml(Path(__file__).with_suffix(".toml"), "tables")["table"]
PUBLISHED: Mapping[str, Published] = {
    table["number"]: from_table(Published, table, f"table {table['number']}") for table in _TABLES
}
