"""``mmare-sim``: one machine, many sites. Commands import what they run, so that ``--help`` is quick."""

from __future__ import annotations

import sys
from contextlib import AbstractContextManager, nullcontext
from dataclasses import replace
from functools import partial
from pathlib import Path
from shutil import which
from typing import TYPE_CHECKING, Annotated, Any

import typer
from rich import box
from rich.console import Console
from rich.markup import escape
from rich.table import Table

from mmare.host.console import must_exist, run_command
from mmare.study.choices import Backend, Kind, Mode, TaskName
from server.release.commands import release
from server.run.options import StartFrom
from simulation.grid.file import ready_grids
from simulation.prepare import commands as prepare
from simulation.prepare.extend_commands import extend
from sites.options import SyntheticKind

if TYPE_CHECKING:
    from rich.progress import Progress, TaskID

    from mmare.study.study import Study
    from server.run.request import RunRequest

__all__ = ["app", "main"]

app = typer.Typer(
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
    help="Simulate a federation on this machine: prepare a folder, run it, read the report. "
    "Errors are one sentence and an exit code, 2 for bad input and 1 for a run that failed; "
    "--debug shows the traceback.",
)
app.add_typer(prepare.app, name="prepare")
app.command(epilog="Example: mmare-sim release runs/mmist-fed --out mmist.zip")(release)
app.command(epilog="Example: mmare-sim extend runs/kirc-fed --modality rna=rna.csv --out runs/kirc-rna")(
    extend
)

Settings = Annotated[
    list[str] | None, typer.Option("--set", help="section.key=value over the study; can be given many times.")
]
Overwrite = Annotated[bool, typer.Option("--overwrite", help="Replace a run with other settings.")]


@app.command(epilog="Example: mmare-sim run runs/mmist --out runs/mmist-fed --set training.rounds=50")
def run(  # noqa: PLR0913, PLR0917 - a command line's options
    federation: Annotated[Path, typer.Argument(help="Folder with study.toml and one folder per site.")],
    out: Annotated[Path, typer.Option(help="Run folder; run again with the same one to resume.")],
    mode: Annotated[
        Mode, typer.Option(help="Sites train together, all rows in one place, or each site alone.")
    ] = Mode.FEDERATED,
    backend: Annotated[
        Backend, typer.Option(help="In this process, or Flower's Ray engine; results are the same.")
    ] = Backend.INPROCESS,
    settings: Settings = None,
    overwrite: Overwrite = False,
    subsets: Annotated[
        bool,
        typer.Option(
            "--subsets", help="Test every subset of modalities, too: what the model does with each."
        ),
    ] = False,
    references: Annotated[
        bool,
        typer.Option(
            "--references",
            help="Test simple models on the same rows, too; the same command adds them to a finished run.",
        ),
    ] = False,
    start_from: StartFrom = Path(),
    metrics_port: Annotated[
        int | None,
        typer.Option(
            min=0,
            max=65535,
            help="Meanwhile serve what mmare-server export serves, on this port of this machine.",
        ),
    ] = None,
) -> None:
    """Run a federation: roll call, scaling, rounds, selection, test. Writes result, model, report."""
    console = Console(stderr=True)
    from server.run.request import RunRequest

    request = RunRequest(
        *(federation, out, mode, tuple(settings or ()), overwrite),
        backend=backend,
        subsets=subsets,
        start_from=start_from,
    )
    with _metrics(out, metrics_port):
        result = _run(request, console)
    _print_result(result, out)
    if references:
        _print_references(request)


@app.command(epilog="Example: mmare-sim report runs")
def report(
    folder: Annotated[
        Path, typer.Argument(help="A run folder, a folder of runs of one study to compare, or of a grid.")
    ],
) -> None:
    """Write report.html again, or a comparison of several runs side by side; of a grid, report.md, too."""
    from simulation.grid_report.records import is_grid
    from simulation.report.results import find_runs
    from simulation.report.run_report import write_comparison, write_report

    if is_grid(folder):
        from simulation.grid_report.report import write_grid_report

        for page in write_grid_report(folder):
            typer.echo(page)
        return
    runs = find_runs(folder)
    typer.echo(write_report(folder) if runs == [folder] else write_comparison(folder))


@app.command(epilog="Example: mmare-sim grid mmist-vital12 --out runs/mmist-vital12 --jobs 8")
def grid(
    name: Annotated[
        str,
        typer.Argument(
            metavar="GRID",
            help=f"A TOML file, or the name of one that is ready: {', '.join(ready_grids())}.",
        ),
    ],
    out: Annotated[Path, typer.Option(help="Folder of the grid; run again with the same one to go on.")],
    jobs: Annotated[int, typer.Option(help="Cells that run at once, each in a thread of its own.")] = 1,
    only: Annotated[
        list[str] | None,
        typer.Option(metavar="KEY=VALUE", help="Cells with this setting, such as model=mmare; repeat."),
    ] = None,
    source: Annotated[
        list[str] | None, typer.Option(metavar="NAME=PATH", help="Where a source of the grid lies; repeat.")
    ] = None,
    weights: Annotated[
        Path | None, typer.Option(help="Folder of encoders' weights; ./weights where there is one.")
    ] = None,
    dry_run: Annotated[bool, typer.Option("--dry-run", help="List and count the cells; run none.")] = False,
    keep_models: Annotated[
        bool, typer.Option("--keep-models", help="Keep the model of every cell; some are large.")
    ] = False,
) -> None:
    """Many runs from one file; each that has ended is a line in results.jsonl. Goes on where it was."""
    from simulation.grid.cell import Workplace
    from simulation.grid.file import find_grid, load_grid
    from simulation.grid.scheduler import list_cells, run_grid

    cells = load_grid(find_grid(name))
    if dry_run:
        list_cells(cells, out, only or [])
        return
    place = Workplace.make(cells.sources, out, source or [], weights, keep_models=keep_models)
    done = run_grid(cells, place, Console(stderr=True), jobs=jobs, only=only or [])
    typer.echo(f"{done} cells: {out / 'results.jsonl'}")


@app.command(epilog="Example: mmare-sim gain runs/mmist-fed runs/mmist-local")
def gain(
    joined: Annotated[Path, typer.Argument(help="Run folder of mode federated.")],
    alone: Annotated[Path, typer.Argument(help="Run folder of mode local, of the same study and seed.")],
) -> None:
    """What each site gains by joining: both models on its own test rows, paired. Writes gain.json."""
    for folder in (joined, alone):
        must_exist(folder, "a run folder")
    from simulation.gain import compare_runs
    from simulation.report.run_report import GAIN

    found = compare_runs(joined, alone)
    view = Table(title=f"{found['metric']} on a site's own test rows", box=box.SIMPLE)
    for heading in ("site", "n", "joined", "alone", "gain", "95 % interval"):
        view.add_column(heading, justify="left" if heading == "site" else "right")
    for name, row in (*found["sites"].items(), ("all sites", found["pooled"])):
        if row["difference"] is None:
            view.add_row(escape(name), str(row["n"]), *["-"] * 4)
        else:
            numbers = [f"{row[key]:.3f}" for key in ("first", "second")]
            low, high = row["ci95"]
            view.add_row(
                escape(name),
                str(row["n"]),
                *numbers,
                f"{row['difference']:+.3f}",
                f"{low:+.3f} to {high:+.3f}",
            )
    console = Console(highlight=False)
    console.print(view)
    for site, reason in found["left_out"].items():
        console.print(f"left out: {escape(site)}: {escape(reason)}")
    typer.echo(f"written: {joined / GAIN}, {joined / 'report.html'}")


@app.command(epilog="Example: mmare-sim demo --out runs/demo")
def demo(
    out: Annotated[Path, typer.Option(help="Folder for the federation, its runs and the report.")] = Path(
        "runs/demo"
    ),
    kind: Annotated[
        SyntheticKind, typer.Option(help="Scans go through an encoder first; features are there already.")
    ] = SyntheticKind.SCANS,
    settings: Settings = None,
) -> None:
    """Three synthetic hospitals train together, in one place and each alone; then a chart and a report."""
    from mmare.study.study import STUDY_FILE
    from server.run.request import RunRequest
    from simulation.progress import live_rounds
    from simulation.report.results import MODES, find_runs, line_up, load_run
    from simulation.report.run_report import write_comparison
    from simulation.report.text_chart import auc_chart
    from simulation.run import run_federation
    from sites.datasets.synthetic import prepare_synthetic
    from sites.federation import site_folders

    console = Console(stderr=True, highlight=False)
    federation = out / "federation"
    if not (federation / STUDY_FILE).exists():
        console.print(f"three synthetic hospitals: {kind.value} are drawn, then trained on; about a minute")
        prepare_synthetic(kind, out=federation)
    request = RunRequest(federation, set=tuple(settings or ()))
    study = request.study
    for site in site_folders(federation):
        held = ", ".join(modality.name for modality in study.modalities if modality.name in site.modalities)
        console.print(f"  {site.id:6} has {held}")
    _embed(federation, study, console)
    for mode in Mode:
        with live_rounds(study.training.rounds, console, brief=True) as table:
            result = run_federation(replace(request, out=out / mode.value, mode=mode), (table,))
        console.print(f"{MODES[mode.value].lower()}: trained in {result['seconds']['total']:.0f} s")
    page = write_comparison(out)
    Console(highlight=False).print(
        "", auc_chart(line_up([load_run(run) for run in find_runs(out)])), "", sep="\n"
    )
    program = "mmare-sim" if which("mmare-sim") else sys.argv[0]
    typer.echo(f"report: {page}\nnext, with your own patients: {program} prepare table --help")


def _run(request: RunRequest, console: Console) -> dict[str, Any]:
    from server.run.folder import check_run
    from simulation.progress import live_rounds
    from simulation.run import run_federation

    _embed(request.federation, request.study, console)
    if request.study.start is not None:
        for line in check_run(request).words():
            console.print(line, highlight=False, markup=False)
    with live_rounds(request.study.training.rounds, console) as table:
        return run_federation(request, listeners=(table,))


def _metrics(out: Path, port: int | None) -> AbstractContextManager[object]:
    """Serves the metrics of a run folder, where a port is given."""
    if port is None:
        return nullcontext()
    from server.monitoring.exporter import Exporter, serving

    return serving(Exporter(out), port, "127.0.0.1")


def _embed(federation: Path, study: Study, console: Console) -> None:
    """Encode the scans of all sites that are not encoded yet, where everybody can see it."""
    if not any(modality.kind is Kind.VOLUME for modality in study.modalities):
        return
    from client.data.embed import embed_site
    from client.data.progress import scan_progress
    from sites.federation import site_folders

    notes: dict[str, None] = {}
    encoded = 0
    with scan_progress(console) as bar:
        for site in site_folders(federation):
            task = bar.add_task(f"scans of {site.id}", total=None)
            report = embed_site(site, study, partial(_advance, bar, task))
            notes.update(dict.fromkeys(report.untrained))
            encoded += report.encoded
            if report.refused:
                console.print(
                    f"[yellow]{site.id}: {len(report.refused)} scans cannot be used, see mmare-site embed[/]"
                )
    if encoded:
        console.print(f"{encoded} scans encoded")
    for note in notes:
        console.print(f"[yellow]features: {note}[/]")


def _advance(bar: Progress, task: TaskID, done: int, total: int) -> None:
    bar.update(task, completed=done, total=total)


def _print_references(request: RunRequest) -> None:
    """Simple models beside the run, also in its report."""
    from simulation.references import measure_references
    from simulation.report.run_report import write_report

    found = measure_references(request)
    write_report(request.out)
    table = Table(title=f"on the {found['n']} test rows", title_justify="left", box=None, padding=(0, 2))
    metric = found.get("metric", "auc")
    others = ("balanced_accuracy", "macro_f1") if metric == "auc" else ()
    titles = {"auc": "AUC", "macro_f1": "macro F1", "balanced_accuracy": "balanced accuracy"}
    for heading in ("", metric, "difference", *others):
        table.add_column(titles.get(heading, heading), justify="right" if heading else "left")
    for row, (name, scores) in enumerate(found["models"].items()):
        low, high = scores["ci95"]
        table.add_row(
            name,
            f"{scores[metric]:.3f}",
            f"{scores['difference']:+.3f} ({low:+.3f} to {high:+.3f})" if row else "",  # the run is the first
            *(f"{scores[other]:.3f}" for other in others),
        )
    Console().print(table)
    if found["note"]:
        Console().print(f"[bold yellow]{found['note']}[/]", highlight=False)


def _print_result(result: dict[str, Any], out: Path) -> None:
    """The result in a few lines on stdout."""
    from mmare.study.outcome import TASKS
    from server.store.journal import RESULT

    title = f"{result['study']}, {result['model']}, {result['mode']}, seed {result['seed']}"
    table = Table(title=title, title_justify="left", box=None, padding=(0, 2))
    shown = TASKS[TaskName(result.get("task", TaskName.CLASSIFICATION))].shown
    for heading in ("test rows of", "n", *shown.values()):
        table.add_column(heading, justify="left" if heading == "test rows of" else "right")
    if "metrics" in result:
        test = result["metrics"]["test"]
        rows = [("all sites", test["pooled"]), *test["sites"].items()]
    else:
        rows = [
            (f"all sites, {site} alone", entry["metrics"]["test"]["pooled"])
            for site, entry in result["local"].items()
        ]
    for name, metrics in rows:
        values = [metrics[key] for key in shown]
        table.add_row(
            name, str(metrics["n"]), *("-" if value is None else f"{value:.3f}" for value in values)
        )
    console = Console()
    console.print(table)
    point = result.get("metrics", {}).get("test", {}).get("operating_point")
    if point is not None:
        scores = [
            f"{name} {point['pooled'][key]:.3f}"
            for key, name in (
                ("accuracy", "accuracy"),
                ("balanced_accuracy", "balanced accuracy"),
                ("f1", "F1"),
            )
            if point["pooled"][key] is not None
        ]
        console.print(
            f"called positive from a probability of {point['threshold']:.3f} on, chosen on validation: "
            f"{', '.join(scores)}",
            highlight=False,
        )
    seconds = result["seconds"]["total"]
    console.print(
        f"{result['rounds_run']} rounds, best {result['best_round']}, {seconds:.1f} s", highlight=False
    )
    for note in result.get("notes", []):
        console.print(f"[bold yellow]{note}[/]")
    typer.echo(f"result: {out / RESULT}\nreport: {out / 'report.html'}")


def main() -> None:
    """The console script."""
    sys.exit(run_command(lambda arguments: app(arguments, standalone_mode=True), sys.argv[1:]))
