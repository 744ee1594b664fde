"""``mmare-site predict`` and ``drift``."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer
from rich.console import Console

from client.prediction.written.table_format import Format, format_of
from mmare.host.console import must_exist, visible

__all__ = ["drift", "predict"]


def predict(  # noqa: PLR0913 - a command line's options
    model: Annotated[Path, typer.Argument(metavar="MODEL", help="A model package, a folder or a zip.")],
    site: Annotated[Path, typer.Option(help="The site's site.toml: how it holds its modalities.")],
    out: Annotated[Path, typer.Option(help="Table to write, .csv, .jsonl or .parquet; the page gets .html.")],
    patients: Annotated[
        Path | None,
        typer.Option(
            help="Table with patient_id and the columns that site.toml names; default its manifest."
        ),
    ] = None,
    table_format: Annotated[
        Format | None, typer.Option("--format", help="Of the table, by default as OUT ends, else CSV.")
    ] = None,
    fhir: Annotated[
        Path | None, typer.Option(help="File for a FHIR R4B bundle; needs the extra fhir.")
    ] = None,
    dicom_sr: Annotated[
        Path | None,
        typer.Option(
            help="New folder for DICOM reports of those who came as DICOM; needs the extra dicom-sr."
        ),
    ] = None,
    labels: Annotated[
        Path | None,
        typer.Option(help="Table with patient_id and label: score the predictions that OUT holds instead."),
    ] = None,
    *,
    silent: Annotated[
        bool,
        typer.Option(
            "--silent", help="Keep predictions for --silent --labels; show none: OUT lists inputs, no page."
        ),
    ] = False,
) -> None:
    """Predict patients whose outcome is unknown, on this machine; nothing leaves it.

    Scans, DICOM folders, slides, texts, vectors and table columns pass the same steps as in training; what is
    cached is not encoded again. Exit code 1 when no patient has anything that the model knows.
    """
    must_exist(model, "a model package")
    must_exist(site, "a site's site.toml")
    from client.data.progress import scan_progress
    from client.prediction.run import page_beside, predict_site
    from mmare.package.package import read_package
    from sites.config import load_site

    config, package = load_site(site), read_package(model)
    form = format_of(out, table_format)
    if labels is not None:
        from client.prediction.score_log import log_scores
        from client.prediction.scores import score, scores_text
        from client.prediction.silent import kept_file

        saved, kind = (kept_file(package, config), Format.JSONL) if silent else (out, form)
        scores = score(package, saved, kind, labels)
        log_scores(package, scores, config)
        typer.echo(scores_text(scores))
        return
    console = Console(stderr=True)
    with scan_progress(console) as bar:
        task = bar.add_task(config.id, total=None)

        def tell(done: int, total: int) -> None:
            bar.update(task, completed=done, total=total)

        found = predict_site(
            package, config, patients, out, form, tell, fhir=fhir, dicom_sr=dicom_sr, silent=silent
        )
    for note in found.notes:
        console.print(f"[yellow]{visible(note)}[/]", highlight=False)
    warned = sum(bool(sentences) for sentences in found.warnings)
    typer.echo(f"{len(found.inputs.patients)} patients predicted, {warned} with a warning")
    typer.echo(f"table: {out}" if silent else f"table: {out}\npage: {page_beside(out)}")


def drift(
    site: Annotated[Path, typer.Argument(help="The site's site.toml.")],
    out: Annotated[Path, typer.Option(help="Page to write.")] = Path("drift.html"),
) -> None:
    """Write a page on how predicted patients differ from those of training, month by month; nothing leaves.

    Exit code 1 when nothing was predicted yet.
    """
    must_exist(site, "a site's site.toml")
    from client.prediction.drift import drift_page
    from client.prediction.places import check_places
    from mmare.host.files import replacing
    from sites.config import load_site

    config = load_site(site)
    check_places(config, {"the page": out})
    page = drift_page(config)
    with replacing(out, private=True) as partial:
        partial.write_text(page, encoding="utf-8")
    typer.echo(f"page: {out}")
