"""Where predictions may be written: never over what they are made of, nor over each other."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

from client.privacy.records.audit_log import log_of
from mmare.errors import InputError

if TYPE_CHECKING:
    from mmare.package.package import Package
    from sites.config import SiteConfig

__all__ = ["check_places"]


def check_places(
    site: SiteConfig, outputs: dict[str, Path], table: Path | None = None, package: Package | None = None
) -> None:
    """Refuse places that cannot be taken.

    Args:
        site: Whose settings, patients, vectors and audit log stay.
        outputs: Places by what they are to hold, as messages name it.
        table: The patients, if they are not those of the site's manifest.
        package: The model; a file more in its folder would break its seal.

    Raises:
        InputError: If there is no folder around one, it is a folder, holds one of these, or is given twice.
    """
    held = {log_of(site).path: "the audit log", site.manifest: "the patients"}
    held |= dict.fromkeys(site.folder.glob("*.toml"), "the settings of the site")
    for name, source in site.modalities.items():
        held |= dict.fromkeys(filter(None, (source.file, source.table, source.encoding)), name)
    held |= {} if table is None else {table: "the patients"}
    taken = {path.resolve(): what for path, what in held.items()}
    model = Path(package.sealed.source).resolve() if package is not None else None
    for what, out in outputs.items():
        place = out.resolve()
        if not place.parent.is_dir():
            raise InputError(f"{out}: no folder {out.absolute().parent}")
        there = "the model" if model in (place, *place.parents) else taken.get(place)
        if there or place.is_dir():
            raise InputError(f"{out}: {f'holds {there}' if there else 'is a folder'}; choose another name")
        taken[place] = what
