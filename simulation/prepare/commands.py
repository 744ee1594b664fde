"""``mmare-sim prepare``: turn data sets into federation folders.

pandas and scikit-learn are imported inside the commands, so that ``--help`` is fast.
"""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer
from rich.console import Console

from mmare.errors import StudyError
from mmare.host.console import must_exist
from mmare.study.choices import Kind, PromptMode
from simulation.prepare.embed_first import embedding_first
from simulation.prepare.flags import (
    Drivers,
    Mechanisms,
    Out,
    Overwrite,
    Patterns,
    Prompts,
    Rate,
    Seed,
    SiteMissing,
    Slope,
    Without,
    missingness,
)
from simulation.prepare.option_values import commas, named, number
from simulation.prepare.summary import show
from simulation.prepare.table_commands import EXAMPLE, table
from simulation.prepare.tcga_commands import BRCA_EXAMPLE, KIRC_EXAMPLE, tcga_brca, tcga_kirc
from sites.options import (
    Cohort,
    Exams,
    Grouping,
    IxiTask,
    Pattern,
    SplitScheme,
    SyntheticKind,
    SyntheticPattern,
)

__all__ = ["app"]

_MED3D = "med3d-resnet18"

app = typer.Typer(no_args_is_help=True, help="Make a federation folder: study.toml and one folder per site.")


@app.command(
    epilog="Example: mmare-sim prepare mmist --source ../shared/data/mmist --by hospital --out runs/mmist"
)
def mmist(  # noqa: PLR0913, PLR0917 - one parameter per flag
    source: Annotated[Path, typer.Option(help="Root of the release, or its folder datasets/ccRCC/Code.")],
    out: Out,
    by: Annotated[
        Grouping, typer.Option(help="Sites: TCGA and CPTAC, or TCGA's hospitals and CPTAC.")
    ] = Grouping.SOURCE,
    split: Annotated[
        SplitScheme, typer.Option(help="The release's test set, or 70/10/20 by label and presence.")
    ] = SplitScheme.STRATIFIED,
    cohort: Annotated[
        Cohort, typer.Option(help="All 618 patients, or the 617 of the thesis.")
    ] = Cohort.RELEASE,
    seed: Seed = 0,
    without: Without = None,
    min_patients: Annotated[
        int, typer.Option(help="Fewest patients of a hospital with its own site; the others form tcga-other.")
    ] = 30,
    prompt_mode: Prompts = PromptMode.OMIT,
    scans: Annotated[
        Exams, typer.Option(help="The exam that the release chose, or the mean of every CT and MRI exam.")
    ] = Exams.CHOSEN,
    mechanism: Mechanisms = None,
    missing_rate: Rate = None,
    driver: Drivers = None,
    slope: Slope = None,
    site_missing: SiteMissing = None,
    pattern: Patterns = Pattern.NATURAL,
    overwrite: Overwrite = False,
) -> None:
    """Turn the official MMIST-ccRCC release into a federation: CT, MRI, WSI and a clinical prompt."""
    must_exist(source, "the MMIST-ccRCC release")
    from sites.datasets.mmist import prepare_mmist

    missing = missingness(mechanism, missing_rate, driver, slope, site_missing, pattern)
    with embedding_first(out, Console(stderr=True)) as embed:
        prepared = prepare_mmist(
            source,
            out,
            by,
            split,
            cohort,
            seed,
            commas(without or []),
            min_patients,
            prompt_mode=prompt_mode,
            scans=scans,
            missing=missing,
            overwrite=overwrite,
            embed=embed,
        )
    show(prepared)


@app.command(
    epilog="Example: mmare-sim prepare ixi --source data/IXI --task sex --with-clinical --seed 42 "
    "--mechanism mcar --missing-rate 0.4 --out runs/ixi-sex"
)
def ixi(  # noqa: PLR0913, PLR0917 - one parameter per flag
    source: Annotated[
        Path, typer.Option(help="Folder with IXI.xls and, in any subfolders, IXI012-HH-1211-T1.nii.gz, ….")
    ],
    task: Annotated[IxiTask, typer.Option(help="What is predicted: sex, or epoch of the life span.")],
    out: Out,
    with_clinical: Annotated[
        bool, typer.Option("--with-clinical", help="Add the clinical prompt as a fifth modality.")
    ] = False,
    mechanism: Mechanisms = None,
    missing_rate: Rate = None,
    driver: Drivers = None,
    slope: Slope = None,
    site_missing: SiteMissing = None,
    pattern: Patterns = Pattern.NATURAL,
    seed: Annotated[
        int, typer.Option(help="Seed of split, amputation and study; 42 splits as the thesis did.")
    ] = 0,
    prompt_mode: Prompts = PromptMode.OMIT,
    keep_incomplete: Annotated[
        bool,
        typer.Option(
            "--keep-incomplete", help="Take subjects with any contrast, not only those with all four."
        ),
    ] = False,
    encoder: Annotated[str, typer.Option(help="Encoder of the four contrasts.")] = _MED3D,
    weights: Annotated[
        Path | None,
        typer.Option(
            help="Folder of the encoder's weights, for mnar on pc1; by default ./weights, if it exists."
        ),
    ] = None,
    overwrite: Overwrite = False,
) -> None:
    """Turn the IXI brain scans into a federation of their three hospitals.

    Images are opened for mnar on pc1 only, which embeds all scans first.
    """
    must_exist(source, "a folder with IXI.xls and the IXI volumes")
    from sites.datasets.ixi import prepare_ixi

    missing = missingness(mechanism, missing_rate, driver, slope, site_missing, pattern)
    _check_encoder(encoder)
    if weights is None and Path("weights").is_dir():
        weights = Path("weights")
    with embedding_first(out, Console(stderr=True), weights) as embed:
        prepared = prepare_ixi(
            source,
            out,
            task,
            with_clinical,
            seed,
            missing,
            prompt_mode=prompt_mode,
            complete=not keep_incomplete,
            encoder=encoder,
            overwrite=overwrite,
            embed=embed,
        )
    show(prepared)


@app.command(epilog="Example: mmare-sim prepare synthetic --patients 200 --seed 0 --out runs/synthetic")
def synthetic(  # noqa: PLR0913, PLR0917 - one parameter per flag
    out: Out,
    kind: Annotated[
        SyntheticKind, typer.Option(help="Data of the hospitals: features, or NIfTI head phantoms.")
    ] = SyntheticKind.FEATURES,
    patients: Annotated[
        int | None, typer.Option(help="Patients per hospital; by default 200, of scans 130.")
    ] = None,
    sites: Annotated[int | None, typer.Option(help="Hospitals; by default three.")] = None,
    pattern: Annotated[
        SyntheticPattern,
        typer.Option(
            help="The hospitals' own gaps, no gaps, every hospital without a modality that another keeps, or "
            "flair at the first hospital only."
        ),
    ] = SyntheticPattern.NATURAL,
    signal: Annotated[
        list[str] | None,
        typer.Option(
            metavar="NAME=WEIGHT", help="Weight of a modality's cause in the disease; by default 1."
        ),
    ] = None,
    scanner: Annotated[
        float | None,
        typer.Option(
            help="How scanners differ: deviation of offsets, in units of the noise, and twice that of log "
            "gains; by default offsets of 0.5 and no gains."
        ),
    ] = None,
    without: Without = None,
    mechanism: Mechanisms = None,
    missing_rate: Rate = None,
    driver: Drivers = None,
    slope: Slope = None,
    site_missing: SiteMissing = None,
    seed: Seed = 0,
    overwrite: Overwrite = False,
) -> None:
    """Make hospitals with different scanners and gaps, and features or scans with a known answer."""
    from sites.datasets.synthetic import prepare_synthetic

    missing = missingness(mechanism, missing_rate, driver, slope, site_missing)
    weights = {name: number(text, "--signal") for name, text in named(signal or [], "--signal").items()}
    with embedding_first(out, Console(stderr=True)) as embed:
        prepared = prepare_synthetic(
            kind,
            out=out,
            patients=patients,
            seed=seed,
            n_sites=sites,
            pattern=pattern,
            signal=weights,
            scanner=scanner,
            without=commas(without or []),
            missing=missing,
            overwrite=overwrite,
            embed=embed,
        )
    show(prepared)


app.command(epilog=EXAMPLE)(table)
app.command(epilog=KIRC_EXAMPLE)(tcga_kirc)
app.command(epilog=BRCA_EXAMPLE)(tcga_brca)


def _check_encoder(name: str) -> None:
    """Raise `StudyError` for an encoder that cannot encode brain scans."""
    if name == _MED3D:  # the registry takes seconds to import
        return
    from client.encoders.registry import ENCODERS
    from sites.datasets.ixi import WIDTH

    fits = {key for key, entry in ENCODERS.items() if entry.kind is Kind.VOLUME and entry.width == WIDTH}
    known = sorted(key for key in fits if not ENCODERS[key].slides)
    if name not in known:
        raise StudyError(f"--encoder is {name!r}, expected one of {', '.join(known)}")
