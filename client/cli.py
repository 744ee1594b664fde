"""``mmare-site``: the hospital's side. Commands import what they run, so that ``--help`` is quick."""

from __future__ import annotations

import os
import sys
from enum import StrEnum
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer
from rich.console import Console

from client.console.commands import console
from client.encoders.files.commands import app as encoders_app
from client.membership.commands import app as kit_app
from client.prediction.commands import drift, predict
from client.privacy.commands import app as audit_app
from client.privacy.commands import budget
from mmare.errors import RunError
from mmare.host.console import must_exist, run_command, visible

if TYPE_CHECKING:
    from rich.progress import TaskID

    from mmare.study.study import Study
    from sites.config import SiteConfig

__all__ = ["Part", "app", "main"]

StudyOption = Annotated[
    Path | None,
    typer.Option(
        help="The study, a file or one that mmare-site studies lists; by default study.toml of the "
        "federation folder around the site."
    ),
]

app = typer.Typer(
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
    help="The hospital's side. Errors are one sentence and an exit code; --debug shows the traceback.",
)


class Part(StrEnum):
    """What ``mmare-site start`` starts."""

    ALL = "all"
    WORKER = "worker"
    RELAY = "relay"


@app.command(epilog="Example: mmare-site check runs/mmist/tcga/site.toml --study runs/mmist/study.toml")
def check(
    site: Annotated[Path, typer.Argument(help="The site's site.toml.")],
    study: StudyOption = None,
    *,
    network: Annotated[
        bool,
        typer.Option(
            "--network",
            help="Look at the way to the coordinator and at this machine instead; reads no data of patients.",
        ),
    ] = False,
    read_voxels: Annotated[
        bool,
        typer.Option(
            "--read-voxels",
            help="Read and preprocess every scan and mask as embed does, which takes about as long; finds "
            "empty, constant and non-finite volumes and masks that do not fit.",
        ),
    ] = False,
) -> None:
    """Read everything a study would use of this site and say what is there; nothing leaves."""
    config = _site(site)
    if network:
        _check_network(config, study)
        return
    found = _study(config, study)
    from client.data.check import check_site, report_table
    from client.data.progress import scan_progress

    with scan_progress(Console(stderr=True)) as bar:
        tasks: dict[str, TaskID] = {}

        def tell(modality: str, done: int, total: int) -> None:
            if modality not in tasks:
                tasks[modality] = bar.add_task(modality, total=total)
            bar.update(tasks[modality], completed=done)

        manifest, results = check_site(config, found, tell, read_voxels=read_voxels)
    Console().print(report_table(config, found, manifest, results), highlight=False)
    refused = sum(sum(result.refused.values()) for result in results)
    if refused:
        raise RunError(f"{config.manifest}: {refused} scans cannot be used and count as missing")


@app.command(epilog="Example: mmare-site convert /export/pacs --out scans")
def convert(
    source: Annotated[
        Path, typer.Argument(metavar="IN", help="Folder that a scanner or an archive exported; only read.")
    ],
    out: Annotated[Path, typer.Option(help="Folder for one NIfTI per usable series and report.json.")],
) -> None:
    """Turn a folder of DICOM files into volumes; what cannot be used is named with its reason.

    Exit code 1 when a series could not be used, were it only a localizer, or a file could not be read.
    """
    must_exist(source, "a folder to convert")
    from client.data.progress import scan_progress
    from client.ingest.convert import convert_folder
    from client.ingest.summary import converted_table

    console = Console(stderr=True)
    with scan_progress(console) as bar:
        task = bar.add_task("scan", total=None)

        def tell(stage: str, done: int, total: int) -> None:
            bar.update(task, description=stage, completed=done, total=total)

        report = convert_folder(source, out, progress=tell)
    Console().print(converted_table(report), highlight=False)
    typer.echo(f"report: {out / 'report.json'}")
    if not report.converted:
        raise RunError(
            f"{source}: no usable series among {report.n_files} files; {out / 'report.json'} says why"
        )
    if report.anything_refused:
        left_out = f"{len(report.refused)} series and {len(report.lost)} unreadable files"
        raise RunError(f"{source}: {left_out} are not among the volumes; {out / 'report.json'} says why")


@app.command(epilog="Example: mmare-site embed runs/scans/guys/site.toml")
def embed(
    site: Annotated[Path, typer.Argument(help="The site's site.toml.")],
    study: StudyOption = None,
) -> None:
    """Encode every scan once; killed and run again, it goes on where it was.

    Exit code 1 when a scan that the manifest names could not be used; each is listed with its row and reason.
    """
    config = _site(site)
    found = _study(config, study)
    from client.data.embed import embed_site
    from client.data.progress import scan_progress

    console = Console(stderr=True)
    with scan_progress(console) as bar:
        task = bar.add_task(config.id, total=None)
        report = embed_site(config, found, lambda done, total: bar.update(task, completed=done, total=total))
    for note in report.untrained:
        console.print(f"[yellow]{note}[/]")
    for refusal in report.refused:
        typer.echo(f"{refusal.modality}, data row {refusal.row + 1}: {refusal.sentence}")
    typer.echo(
        f"{report.encoded} encoded, {report.cached} there before, {len(report.refused)} cannot be used"
    )
    if report.refused:
        raise RunError(f"{config.manifest}: {len(report.refused)} scans cannot be used and count as missing")


@app.command(epilog="Example: mmare-site approve study.toml --site hospital/site.toml")
def approve(
    study: Annotated[
        Path,
        typer.Argument(help="Name or hash of a study that mmare-site studies lists, or a study.toml."),
    ],
    site: Annotated[Path, typer.Option(help="The site's site.toml.")],
    *,
    yes: Annotated[bool, typer.Option("--yes", help="Agree without being asked.")] = False,
    revoke: Annotated[bool, typer.Option("--revoke", help="Take an approval back.")] = False,
    seed: Annotated[
        list[int] | None,
        typer.Option(help="A seed that runs may have, beside the study's own; once for each."),
    ] = None,
) -> None:
    """Say in plain words what a study computes and what leaves, and record that you agree.

    A running worker knows at once. Approved again, the count of answers that may leave begins anew.
    """
    config = _site(site)
    from client.privacy.approvals import ApprovalFolder
    from client.privacy.approving import Approving

    wanted = _study(config, study)
    if revoke:
        ApprovalFolder(config.folder).revoke(wanted.hash)
        typer.echo(f"no longer approved: {visible(wanted.name)}, hash {wanted.hash}")
        return
    approving = Approving(config, wanted, seed or ())
    typer.echo(approving.words + "\n")
    if doubt := approving.doubt():
        typer.echo(f"The audit log does not verify: {doubt}. Approving goes on after what is there.\n")
    if not yes and not typer.confirm(f"Approve this for the site {config.id}?"):
        raise RunError(f"{study}: not approved")
    typer.echo(f"approved: {approving.approve()}")


@app.command(epilog="Example: mmare-site studies hospital/site.toml")
def studies(
    site: Annotated[Path, typer.Argument(help="The site's site.toml.")],
    forget: Annotated[
        str, typer.Option(metavar="NAME", help="Remove a proposal; it returns if it is asked for again.")
    ] = "",
) -> None:
    """List the studies that were proposed to this site, those that it approved, and those that have ended.

    A study that a coordinator asks for is kept to be read, and nothing of it runs before it is approved.
    """
    config = _site(site)
    from client.privacy.proposals import ProposalFolder
    from client.privacy.study_list import studies_text

    if forget:
        folder = ProposalFolder(config.folder)
        found = folder.find(forget)
        folder.forget(found.study.hash)
        typer.echo(f"forgotten: {visible(found.study.name)}, hash {found.study.hash}")
        return
    typer.echo(studies_text(config, site))


@app.command(epilog="Example: mmare-site install kidney.zip --site hospital/site.toml")
def install(
    package: Annotated[Path, typer.Argument(metavar="MODEL", help="A model package, a folder or a zip.")],
    site: Annotated[Path, typer.Option(help="The site's site.toml.")],
) -> None:
    """Check a model package against its digest, show its card, and keep a copy beside site.toml."""
    must_exist(package, "a model package")
    config = _site(site)
    from mmare.package.essentials import essentials
    from mmare.package.package import install_package, read_package

    found = read_package(package)
    typer.echo(essentials(found))
    typer.echo(f"installed: {install_package(found, config.folder)}")


@app.command(epilog="Example: mmare-site start hospital/site.toml")
def start(
    site: Annotated[Path, typer.Argument(help="The site's site.toml.")],
    part: Annotated[
        Part, typer.Option(help="One part alone, where worker and relay run as users of their own.")
    ] = Part.ALL,
) -> None:
    """Run the site until it is told to stop (Ctrl-C or SIGTERM).

    The worker answers approved studies on the socket that the table worker of site.toml names, or by the
    spool that it names, a folder which it shares with a relay on another machine. Once a coordinator's bundle
    is installed (mmare-site kit install), Flower's SuperNode and SuperExec, the relay, run beside it; what
    ends is started again. Told to stop, the site takes no message more and finishes the
    one in hand.
    """
    import logging
    import time

    from client.start import has_joined, keep_site

    logging.Formatter.converter = time.gmtime  # as status and the audit log
    logging.basicConfig(
        level=logging.INFO,
        format="%(asctime)sZ %(levelname)s %(name)s: %(message)s",
        datefmt="%Y-%m-%d %H:%M:%S",
    )
    config = _site(site)
    if part is Part.RELAY or (part is Part.ALL and has_joined(config)):
        finished = keep_site(config, site, worker=part is Part.ALL)
    else:
        from client.worker import run_worker

        place = (config.worker.spool or config.worker.socket).absolute()
        finished = run_worker(config, lambda: typer.echo(f"site worker of {config.id}: {place}"))
    if not finished:
        typer.echo("stopped in the middle of its work; the server asks again", err=True)
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(1)  # a thread that is still at work would keep the process alive


@app.command(epilog="Example: mmare-site status hospital/site.toml")
def status(site: Annotated[Path, typer.Argument(help="The site's site.toml.")]) -> None:
    """Say what the worker and the relay do and what has left; exit code 1 when one of them does not run."""
    from datetime import UTC, datetime

    from client.relay.status_file import worker_status
    from client.status import relay_text, worker_text

    config, now = _site(site), datetime.now(UTC)
    found = worker_status(config.worker)
    typer.echo(worker_text(config.worker, found, now))
    relay = relay_text(config, now, found)
    if relay.lines:
        typer.echo("\n" + relay.lines)
    if found is None or not relay.runs:
        raise typer.Exit(1)


weights_app = typer.Typer(
    no_args_is_help=True, help="Weights of frozen encoders, which you download yourself."
)
app.add_typer(weights_app, name="weights")
app.add_typer(encoders_app, name="encoders")
app.add_typer(kit_app, name="kit")
app.add_typer(audit_app, name="audit")
app.command(epilog="Example: mmare-site predict kidney.zip --site hospital/site.toml --out new.csv")(predict)
app.command(epilog="Example: mmare-site drift hospital/site.toml --out drift.html")(drift)
app.command(epilog="Example: mmare-site budget hospital/site.toml")(budget)
app.command(epilog="Example: mmare-site console hospital/site.toml")(console)


@weights_app.callback()
def _weights() -> None:
    """Keeps ``import`` a command of its own while there is only one."""


@weights_app.command(
    "import", epilog="Example: mmare-site weights import resnet_18_23dataset.pth --into weights"
)
def import_(
    file: Annotated[Path, typer.Argument(help="A published checkpoint: MedicalNet or UniMed-CLIP.")],
    into: Annotated[
        Path, typer.Option(help="Folder of weights, which site.toml names in its table compute.")
    ] = Path("weights"),
) -> None:
    """Check a downloaded checkpoint, convert it once to safetensors, and pin its hash."""
    must_exist(file, "a published checkpoint")
    from client.encoders.weights import import_weights

    done = import_weights(file, into)
    typer.echo(f"{done.name}: {done.file}\nsha256 of the source    {done.source_sha256}")
    typer.echo(f"sha256 of the converted {done.sha256}")
    for path in done.lacking:
        typer.echo(f"still needed beside it: {path}")


def _check_network(site: SiteConfig, study: Path | None) -> None:
    """The rows of the doctor; an error where one of them is a problem."""
    if study is not None and not study.exists() and study.suffix != ".toml":
        from client.privacy.proposals import ProposalFolder

        study = ProposalFolder(site.folder).find(str(study)).path
    from client.doctor.examination import examine
    from client.doctor.findings import Verdict, findings_table

    with Console(stderr=True).status("looking"):
        findings = examine(site, study)
    Console().print(findings_table(findings), highlight=False)
    problems = sum(finding.verdict is Verdict.PROBLEM for finding in findings)
    if problems:
        raise RunError(
            f"{problems} problem{'s' * (problems > 1)}; the line below each says what to do about it"
        )


def _site(path: Path) -> SiteConfig:
    from sites.config import load_site

    return load_site(path)


def _study(site: SiteConfig, path: Path | None) -> Study:
    from client.privacy.study_list import named_study
    from mmare.study.study import STUDY_FILE

    return named_study(site, path or site.folder.parent / STUDY_FILE)


def main() -> None:
    """The console script."""
    sys.exit(run_command(lambda arguments: app(arguments, standalone_mode=True), sys.argv[1:]))


if __name__ == "__main__":
    main()
