"""What a site has for a study, before anything is trained: found, missing, per split and class."""

from __future__ import annotations

from typing import TYPE_CHECKING

from rich.console import Group
from rich.table import Table

from client.dataset import check_encoders, load_data
from mmare.exchange import Split

if TYPE_CHECKING:
    from mmare.study import Study
    from sites.config import SiteConfig

__all__ = ["check_site"]


def check_site(site: SiteConfig, study: Study) -> Group:
    """Read everything the study would use and count it.

    Raises:
        DataError: If something cannot be used; names file, row, found and expected.
    """
    check_encoders(study)
    data = load_data(site, study)
    rows = Table(title="patients", title_justify="left", box=None, padding=(0, 2))
    rows.add_column("split")
    for name in (*study.classes, "all"):
        rows.add_column(name, justify="right")
    for split in Split:
        labels = data.label[data.rows[split]].tolist()
        counts = [labels.count(index) for index in range(len(study.classes))]
        rows.add_row(split.value, *(str(count) for count in [*counts, len(labels)]))
    modalities = Table(title="modalities", title_justify="left", box=None, padding=(0, 2))
    modalities.add_column("modality")
    modalities.add_column("encoder")
    for heading in ("have it", "lack it", "share"):
        modalities.add_column(heading, justify="right")
    for slot, modality in enumerate(study.modalities):
        here = int(data.present[:, slot].sum())
        lacking = len(data.label) - here
        encoder = data.encoders.get(modality.name, "not at this site")
        modalities.add_row(modality.name, encoder, str(here), str(lacking), f"{here / len(data.label):.0%}")
    return Group(f"site {site.id}, study {study.name}", "", rows, "", modalities)
