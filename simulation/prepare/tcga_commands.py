"""``mmare-sim prepare tcga-kirc`` and ``tcga-brca``: cancers with survival times and genomics."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Final

import typer

from mmare.host.console import must_exist
from simulation.prepare.flags import Out, Overwrite, Seed, Without
from simulation.prepare.option_values import commas
from simulation.prepare.summary import show
from sites.options import Grouping, KircTask

__all__ = ["BRCA_EXAMPLE", "KIRC_EXAMPLE", "tcga_brca", "tcga_kirc"]

KIRC_EXAMPLE: Final = (
    "Example: mmare-sim prepare tcga-kirc --mmist ../shared/data/mmist "
    "--omics ../shared/data/tcga-kirc/tcga_kirc_all_clean.csv.zip --task survival --out runs/kirc"
)
BRCA_EXAMPLE: Final = "Example: mmare-sim prepare tcga-brca --source ../shared/data/tcga-brca --out runs/brca"


def tcga_kirc(  # noqa: PLR0913, PLR0917 - one parameter per flag
    mmist: Annotated[Path, typer.Option(help="Root of the MMIST-ccRCC release, for images and texts.")],
    omics: Annotated[Path, typer.Option(help="tcga_kirc_all_clean.csv.zip of PORPOISE.")],
    out: Out,
    task: Annotated[
        KircTask, typer.Option(help="Time to death, or whether a patient lives for a year.")
    ] = KircTask.SURVIVAL,
    by: Annotated[Grouping, typer.Option(help="Sites: the hospitals, or all in one.")] = Grouping.HOSPITAL,
    seed: Seed = 0,
    without: Without = None,
    min_patients: Annotated[
        int, typer.Option(help="Fewest patients of a hospital with its own site; the others form other.")
    ] = 30,
    overwrite: Overwrite = False,
) -> None:
    """Turn TCGA-KIRC into a federation: CT, MRI, WSI, clinical text, age and sex, RNA, CNV, mutations."""
    must_exist(mmist, "the MMIST-ccRCC release")
    must_exist(omics, "the table of PORPOISE")
    from sites.datasets.tcga_kirc import prepare_kirc

    left_out = commas(without or [])
    show(prepare_kirc(mmist, omics, out, task, by, seed, left_out, min_patients, overwrite=overwrite))


def tcga_brca(
    source: Annotated[
        Path, typer.Option(help="Folder with brca.csv, centers.csv, train_test_split.csv and the omics.")
    ],
    out: Out,
    seed: Seed = 0,
    without: Without = None,
    overwrite: Overwrite = False,
) -> None:
    """Turn TCGA-BRCA into FLamby's six regions: clinical columns, RNA, CNV, mutations."""
    must_exist(source, "a folder with brca.csv")
    from sites.datasets.tcga_brca import prepare_brca

    show(prepare_brca(source, out, seed, commas(without or []), overwrite=overwrite))
