"""Public tables cut into hospitals of unequal size that lack groups of columns, for the grid `small-sites`.

``python -m tests.bench.cut_tables --out FOLDER [--brca FOLDER]`` writes a CSV per table and number of sites.
"""

import argparse
import csv
from pathlib import Path

import numpy as np
from sklearn.datasets import load_breast_cancer, load_diabetes

SITES = (5, 34, 100)
SMALLEST = (5, 8, 20)  # patients of the first sites
ABSENT = 0.3  # of the groups of columns, at random
BRCA_DAYS = {"brca-12-months": 365, "brca-5-years": 1825}
FEWEST = 5  # patients of a region; the smaller ones are left out


def breast_cancer():
    """Four of the ten means, of which logistic regression does not know everything; 569 rows."""
    data = load_breast_cancer()
    columns = {"texture": [1], "surface": [4], "shape": [8, 9]}
    return data.data, data.target, columns


def diabetes():
    """Whether the disease progresses by more than the median; 442 rows."""
    data = load_diabetes(scaled=False)
    return (
        data.data,
        data.target > np.median(data.target),
        {"person": [0, 1], "exam": [2, 3], "serum": [4, 5, 6, 7, 8, 9]},
    )


def thresholds():
    """Steps and absolute values in normal columns, two of nine without any part; 2,500 rows."""
    random = np.random.default_rng(31)
    x = random.normal(size=(2500, 9))
    steps = 3 * (x[:, 0] > 0.5) + 2.5 * (np.abs(x[:, 1]) < 0.7) - 3 * (np.abs(x[:, 2]) > 1)
    score = steps + 2 * np.abs(x[:, 3]) + 2 * (x[:, 4] < -0.3) + 0.8 * x[:, 5] + (x[:, 6] > 0) * 0.8
    ill = random.random(2500) < 1 / (1 + np.exp(-2.5 * (score - np.median(score))))
    return x, ill, {"a": [0, 1, 2], "b": [3, 4, 5], "c": [6, 7, 8]}


def cut(patients, sites, random):
    """The site of each patient: the first have 5, 8 and 20, the others at least 2, unequally."""
    few = SMALLEST if sites > len(SMALLEST) + 1 else ()
    shares = random.dirichlet(np.full(sites - len(few), 2.0))
    sizes = 2 + np.floor(shares * (patients - sum(few) - 2 * len(shares))).astype(int)
    sizes[sizes.argmax()] += patients - sum(few) - sizes.sum()
    return random.permutation(np.repeat(np.arange(sites), [*few, *sizes]))


def write(path, values, label, groups, sites, random):
    absent = random.random((len(label), len(groups))) < ABSENT
    absent[absent.all(axis=1), 0] = False
    cells = values.astype(str)
    for gone, columns in zip(absent.T, groups.values(), strict=True):
        cells[np.ix_(gone, columns)] = ""
    names = {column: f"{group}_{column}" for group, columns in groups.items() for column in columns}
    with path.open("w", encoding="utf-8", newline="") as stream:
        writer = csv.writer(stream)
        writer.writerow(["id", "site", "y", *names.values()])
        writer.writerows(
            [f"p{row}", f"s{site}", ["no", "yes"][int(label[row])], *cells[row, list(names)]]
            for row, site in enumerate(sites)
        )


def write_brca(source, out):
    """Clinical columns of FLamby's breast cancers, whether the patient died within some days, by region."""
    with (source / "centers.csv").open(encoding="utf-8") as stream:
        regions = {row["TSS Code"]: row["Region"] for row in csv.DictReader(stream)}
    with (source / "brca.csv").open(encoding="utf-8") as stream:
        rows = list(csv.DictReader(stream))
    names = [name for name in rows[0] if name not in {"pid", "E", "T"}]
    tumour = [at for at, name in enumerate(names) if name.startswith(("ajcc", "tumor"))]
    kind = [at for at, name in enumerate(names) if name.startswith(("primary", "prior", "synch", "treat"))]
    person = [at for at in range(len(names)) if at not in {*tumour, *kind}]
    for name, days in BRCA_DAYS.items():
        known = [row for row in rows if float(row["T"]) > days or float(row["E"])]
        homes = [regions[row["pid"].split("-")[1]] for row in known]
        large = [at for at, home in enumerate(homes) if homes.count(home) >= FEWEST]
        values = np.array([[float(known[at][column]) for column in names] for at in large])
        dead = np.array([float(known[at]["T"]) <= days and float(known[at]["E"]) > 0 for at in large])
        groups = {"person": person, "tumour": tumour, "kind": kind}
        sites = [homes[at].lower() for at in large]
        write(out / f"{name}.csv", values, dead, groups, sites, np.random.default_rng(0))


def main(arguments=None):
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--brca", type=Path, help="folder with brca.csv and centers.csv")
    asked = parser.parse_args(arguments)
    asked.out.mkdir(parents=True, exist_ok=True)
    for table, counts in ((breast_cancer, SITES), (diabetes, SITES), (thresholds, SITES[:1])):
        values, label, groups = table()
        for sites in counts:
            name = f"{table.__name__.replace('_', '-')}-{sites}.csv"
            random = np.random.default_rng(sites)
            write(asked.out / name, values, label, groups, cut(len(label), sites, random), random)
    if asked.brca is not None:
        write_brca(asked.brca, asked.out)


if __name__ == "__main__":
    main()
