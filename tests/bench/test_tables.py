"""Long and wide tables prepared: seconds beside those of the csv module's reading, which grow alike."""

import csv
import resource
import time

import numpy as np
import pytest

from sites.datasets.table import TableColumns, prepare_table
from tests.bench.printed import report
from tests.federations import run_nodes

pytestmark = [pytest.mark.bench, pytest.mark.filterwarnings("default")]


@pytest.mark.parametrize("codes", [(), ("-9", "?")], ids=["plain", "codes"])
@pytest.mark.parametrize(("n_rows", "width"), [(50_000, 6), (1_000, 5_000)], ids=["long", "wide"])
def test_prepare_table(tmp_path, n_rows, width, codes):
    draws = np.random.default_rng(0)
    values = draws.normal(size=(n_rows, width)).round(4).astype(object)
    for code in codes:
        values[draws.random((n_rows, width)) < 0.02] = code
    numbers = values.tolist()
    with (tmp_path / "t.csv").open("w", encoding="utf-8") as stream:
        writer = csv.writer(stream)
        writer.writerow(["id", "site", "y", *(f"c{column}" for column in range(width))])
        for row, cells in enumerate(numbers):
            writer.writerow([f"p{row}", "ab"[row % 2], "nm"[row % 3 == 0], *cells])
    start = time.perf_counter()
    with (tmp_path / "t.csv").open(encoding="utf-8") as stream:
        n_cells = sum(len(record) for record in csv.reader(stream))
    reading_s = time.perf_counter() - start
    start = time.perf_counter()
    columns = TableColumns("id", "site", "y", {"m": ["c*"]})
    prepare_table(tmp_path / "t.csv", tmp_path / "fed", columns, ("n", "m"), missing_values=codes)
    seconds = time.perf_counter() - start
    assert n_cells == (n_rows + 1) * (width + 3)
    report(
        f"prepare table, {n_rows} x {width}{' with missing codes' if codes else ''}",
        seconds=f"{seconds:.1f}",
        per_reading=f"{seconds / reading_s:.0f}",
    )


@pytest.mark.parametrize(("n_rows", "width"), [(50_000, 20), (500, 5_000)], ids=["long", "wide"])
def test_run_of_a_large_table(tmp_path, n_rows, width):
    draws = np.random.default_rng(0)
    values = draws.normal(size=(n_rows, width)).round(3)
    ill = draws.random(n_rows) < 1 / (1 + np.exp(-values[:, :10] @ np.linspace(1, -1, 10)))
    with (tmp_path / "t.csv").open("w", encoding="utf-8") as stream:
        writer = csv.writer(stream)
        writer.writerow(["id", "site", "y", *(f"c{column}" for column in range(width))])
        for row, cells in enumerate(values.tolist()):
            writer.writerow([f"p{row}", "abcde"[row % 5], ["no", "yes"][int(ill[row])], *cells])
    start = time.perf_counter()
    columns = TableColumns("id", "site", "y", {"m": ["c*"]})
    prepare_table(tmp_path / "t.csv", tmp_path / "fed", columns, ("no", "yes"))
    prepared = time.perf_counter()
    settings = ("training.recipe=robust", "model.numeric=piecewise", "model.clip=3", "training.rounds=10")
    result = run_nodes(tmp_path / "fed", tmp_path / "run", settings=settings)
    report(
        f"prepare and ten rounds, {n_rows} x {width}, five sites",
        prepare_s=f"{prepared - start:.1f}",
        run_s=f"{time.perf_counter() - prepared:.1f}",
        peak_mib=resource.getrusage(resource.RUSAGE_SELF).ru_maxrss // 1024,
        auc=f"{result['metrics']['test']['pooled']['auc']:.3f}",
    )
