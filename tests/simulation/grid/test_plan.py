"""GRID.toml: what is refused, which cells come of it, and the ready grids."""

import hashlib
import json
from dataclasses import replace
from pathlib import Path

import pytest
from typer.testing import CliRunner

from mmare.errors import InputError
from mmare.models.registry import MODELS, build_model, model_options
from mmare.study.choices import Mode
from mmare.study.study import Study, load_study
from simulation.grid.file import find_grid, load_grid, ready_grids, resolve
from simulation.grid.plan import select
from simulation.prepare.commands import app as prepare_app
from sites.datasets.ixi import IxiOptions, ixi_study
from sites.datasets.mmist import prepare_mmist
from sites.datasets.synthetic import prepare_synthetic
from tests.bench.cut_tables import main as cut_tables
from tests.data_folder import data_folder
from tests.properties import first_quick

SMALL = """
[grid]
name = "small"
seeds = [0, 1]
modes = ["federated", "local"]
set = ["training.rounds=2"]
skip = [{ model = "late-mean", mode = "local" }]
[sources]
here = "{MMARE_DATA}/x"
[[data]]
name = "a"
task = "t"
prepare = ["table", "--table", "{here}/a.csv"]
[[missing]]
[[missing]]
mechanism = "mcar"
rate = 0.2
[[model]]
name = "mmare"
label = "MMARE"
[[model]]
name = "late-mean"
[[strategy]]
name = "exposure"
[[strategy]]
name = "drift"
set = ["federation.strategy=fedavg", "federation.untouched=drift"]
"""


def grid_of(folder: Path, text: str = SMALL):
    path = folder / "grid.toml"
    path.write_text(text)
    return load_grid(path)


def test_cells_are_the_product_less_what_is_skipped(tmp_path):
    cells = grid_of(tmp_path).cells
    assert len(cells) == 2 * 2 * (2 + 1) * 2
    assert len({cell.id for cell in cells}) == len(cells)
    assert not any(cell.model.name == "late-mean" and cell.mode is Mode.LOCAL for cell in cells)
    assert [cell.seed for cell in cells] == [0] * 12 + [1] * 12  # whole tables first


def test_settings_of_a_line(tmp_path):
    cell = next(cell for cell in grid_of(tmp_path).cells if cell.missing.rate)
    assert cell.settings == {
        "data": "a",
        "task": "t",
        "mechanism": "mcar",
        "rate": 0.2,
        "missing_arguments": [],
        "model": "mmare",
        "label": "MMARE",
        "ablation": "",
        "strategy": "exposure",
        "mode": "federated",
        "seed": 0,
        "set": ["training.rounds=2", "model.name=mmare", "federation.strategy=exposure"],
    }
    assert json.loads(json.dumps(cell.settings)) == cell.settings
    assert cell.prepare == (
        *("table", "--table", "{here}/a.csv"),
        *("--mechanism", "mcar", "--missing-rate", "0.2", "--seed", "0"),
    )


def test_a_strategy_may_name_its_own(tmp_path):
    drift = next(cell for cell in grid_of(tmp_path).cells if cell.strategy.name == "drift")
    assert drift.assignments[-2:] == ("federation.strategy=fedavg", "federation.untouched=drift")


def test_the_id_depends_only_on_what_determines_the_result(tmp_path):
    cell = grid_of(tmp_path).cells[0]
    reworded = replace(cell, model=replace(cell.model, label="ours"), data=replace(cell.data, name="b"))
    assert (reworded.id, reworded.federation) == (cell.id, cell.federation)
    other_run = [
        replace(cell, mode=Mode.LOCAL),
        replace(cell, subsets=True),
        replace(cell, references=True),
        replace(cell, common=("training.rounds=3",)),
        replace(cell, model=replace(cell.model, set=("model.width=8",))),
    ]
    assert len({cell.id, *(other.id for other in other_run)}) == 6
    assert {other.federation for other in other_run} == {cell.federation}
    other_data = [
        replace(cell, seed=7),
        replace(cell, data=replace(cell.data, prepare=("table", "--table", "{here}/b.csv"))),
        replace(cell, missing=replace(cell.missing, arguments=("--pattern", "exclusive"))),
    ]
    assert len({cell.federation, *(other.federation for other in other_data)}) == 4


def test_only_runs_of_one_model_have_references(tmp_path):
    cells = grid_of(tmp_path, SMALL.replace("[grid]", "[grid]\nreferences = true")).cells
    assert {(cell.mode.value, cell.references) for cell in cells} == {("federated", True), ("local", False)}


def test_the_id_is_the_hash_of_this_text(tmp_path):
    """Another hash would orphan the results of old grids."""
    text = (
        '{"mode":"federated","prepare":["table","--table","{here}/a.csv","--seed","0"],'
        '"set":["training.rounds=2","model.name=mmare","federation.strategy=exposure"],"subsets":false}'
    )
    assert grid_of(tmp_path).cells[0].id == hashlib.sha256(text.encode()).hexdigest()[:12]


@pytest.mark.parametrize(
    ("old", "new", "words"),
    [
        pytest.param("seeds =", "seed =", "[grid] has an unknown key 'seed'", id="grid key"),
        pytest.param('label = "MMARE"', "depth = 3", "[[model]] has an unknown key 'depth'", id="model key"),
        pytest.param("[sources]", "[source]", "the file has an unknown key 'source'", id="table"),
        pytest.param('mechanism = "mcar"', "mechanism = 3", "[[missing]] mechanism must be", id="kind"),
        pytest.param('"local"]', '"lonely"]', "must be one of federated, centralised, local", id="mode"),
        pytest.param("seeds = [0, 1]", "seeds = []", "must name at least one each", id="no seed"),
        pytest.param('mode = "local" }', 'mode = "centralised" }', "matches no cell", id="idle skip"),
        pytest.param("{ model =", "{ madel =", "unknown key 'madel'", id="skip key"),
        pytest.param(
            "{here}", "{there}", "the source 'there', expected one of here, MMARE_DATA", id="source"
        ),
        pytest.param('name = "late-mean"', 'name = "mmare"', "two cells have the same settings", id="twice"),
        pytest.param("[grid]", "[grid", "not valid TOML", id="toml"),
    ],
)
def test_bad_grids_are_refused_in_one_sentence(tmp_path, old, new, words):
    assert old in SMALL
    text = SMALL.replace(old, new)
    if words.startswith("two cells"):
        text = text.replace('skip = [{ model = "late-mean", mode = "local" }]\n', "")
    with pytest.raises(InputError) as caught:
        grid_of(tmp_path, text)
    assert words in str(caught.value)
    assert str(tmp_path / "grid.toml") in str(caught.value)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("missing", ["[grid]", "[[data]]", "[[model]]"])
def test_a_grid_needs_its_tables(tmp_path, missing):
    tables = {"[grid]": "[grid]\nname='x'\n", "[[data]]": "[[data]]\nname='d'\nprepare=['synthetic']\n"}
    tables["[[model]]"] = "[[model]]\nname='mmare'\n"
    assert len(grid_of(tmp_path, "".join(tables.values())).cells) == 1
    del tables[missing]
    with pytest.raises(InputError) as caught:
        grid_of(tmp_path, "".join(tables.values()))
    assert f"lacks {missing}" in str(caught.value)


def test_cells_are_selected_by_their_settings(tmp_path):
    cells = grid_of(tmp_path).cells
    assert select(cells, []) == cells
    assert {cell.seed for cell in select(cells, ["seed=1"])} == {1}
    both = select(cells, ["model=mmare", "rate=0.20", "mode=local", "mode=federated"])
    assert len(both) == 2 * 2 * 2
    assert {cell.missing.rate for cell in select(cells, ["rate=none"])} == {None}


@pytest.mark.parametrize(
    ("word", "expected"),
    [("model", "expected KEY=VALUE"), ("madel=x", "expected KEY=VALUE"), ("model=x", "mmare, late-mean")],
)
def test_a_selection_of_nothing_is_refused(tmp_path, word, expected):
    with pytest.raises(InputError) as caught:
        select(grid_of(tmp_path).cells, [word])
    assert expected in str(caught.value)


def test_sources_resolve_to_paths_of_this_machine(monkeypatch):
    monkeypatch.setenv("MMARE_DATA", "/data")
    assert resolve(["{a}/x", "{MMARE_DATA}"], {"a": "{MMARE_DATA}/ixi"}) == ["/data/ixi/x", "/data"]
    monkeypatch.delenv("MMARE_DATA")
    assert resolve(["{a}"], {"a": "{MMARE_DATA}/ixi"}) == ["../shared/data/ixi"]


def test_a_grid_is_a_path_or_a_ready_one(tmp_path):
    assert find_grid("ixi-sex") == ready_grids()["ixi-sex"]
    (tmp_path / "own.toml").write_text(SMALL)
    assert find_grid(str(tmp_path / "own.toml")) == tmp_path / "own.toml"
    with pytest.raises(InputError, match="ready ones are ablation-ixi, ablation-mmist"):
        find_grid("ixi-sexx")


@pytest.fixture(scope="module")
def studies(tmp_path_factory) -> dict[tuple[str, ...], Study]:
    """Studies as `prepare` writes them, by the data set and the flags that change a study."""
    folder = tmp_path_factory.mktemp("studies")
    prepare_synthetic(out=folder / "synthetic", patients=20)
    found = {("synthetic",): load_study(folder / "synthetic" / "study.toml")}
    for task in ("sex", "epoch"):
        found["ixi", task] = ixi_study(IxiOptions(task))
        found["ixi", task, "clinical"] = ixi_study(IxiOptions(task, with_clinical=True))
    return found


def _study_of(arguments, studies):
    if arguments[0] != "ixi":
        return studies.get((arguments[0],))
    clinical = ("clinical",) if "--with-clinical" in arguments else ()
    return studies["ixi", arguments[arguments.index("--task") + 1], *clinical]


@pytest.mark.parametrize("name", ready_grids())
def test_ready_grids_have_valid_studies(name, studies):
    grid = load_grid(find_grid(name))
    assert grid.head.name == name
    checked = 0
    for cell in {cell.study_key: cell for cell in grid.cells}.values():
        study = _study_of(cell.data.prepare, studies)
        if study is not None and cell.model.name in MODELS:
            model_options(study.override(cell.assignments))
            checked += 1
        assert cell.model.name in MODELS
    assert checked or {cell.data.prepare[0] for cell in grid.cells} <= {"mmist", "table", "tcga-kirc"}


def test_the_grid_of_small_sites_prepares_the_tables_that_are_cut_for_it(tmp_path):
    cut_tables(["--out", str(tmp_path / "cut")])
    grid = load_grid(find_grid("small-sites"))
    cells = {cell.data.name: cell for cell in grid.cells if cell.seed == 0}
    sizes = {}
    for sites in (34, 100):
        words = resolve(cells[f"diabetes, {sites} sites"].prepare, {"cut": str(tmp_path / "cut")})
        out = tmp_path / str(sites)
        made = CliRunner().invoke(prepare_app, [*words, "--out", str(out)])
        assert made.exit_code == 0, made.output
        assert load_study(out / "study.toml").training.recipe == "table"
        tables = [site / "patients.csv" for site in out.iterdir() if site.is_dir()]
        sizes[sites] = [len(file.read_text().splitlines()) - 1 for file in tables]
        assert len(tables) == sites
    assert sum(sizes[34]) == sum(sizes[100]) == 442
    assert all({5, 8, 20} <= set(found) for found in sizes.values())


def test_hypermm_of_the_ready_grids_fits_its_scans(studies):
    cell = next(cell for cell in load_grid(find_grid("ixi-epoch")).cells if cell.model.name == "hypermm")
    assert build_model(studies["ixi", "epoch"].override(cell.assignments)).classes == 3


@pytest.mark.data
@pytest.mark.parametrize(
    "name", first_quick("mmist-vital12", "ablation-mmist", "aggregation", "future-work", "recipes-mmist")
)
def test_ready_grids_on_mmist_have_valid_studies(name, tmp_path):
    source = data_folder("mmist")
    for without in ((), ("clinical",)):
        prepare_mmist(source, tmp_path / str(len(without)), without=without)
    checked = 0
    for cell in {cell.study_key: cell for cell in load_grid(find_grid(name)).cells}.values():
        if cell.data.prepare[0] == "mmist":
            prepared = tmp_path / ("1" if "--without" in cell.data.prepare else "0")
            model_options(load_study(prepared / "study.toml").override(cell.assignments))
            checked += 1
    assert checked
