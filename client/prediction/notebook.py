"""A released model in a notebook: a pandas frame of patients in, a frame of predictions out."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import pandas as pd

from client.data.site_secret import site_secret
from client.prediction.inputs import Vectors, site_inputs
from client.prediction.predict import predict
from client.prediction.run import audit_lines, log_predictions
from client.prediction.written.table import flat
from mmare.errors import DataError
from mmare.package.package import read_package
from sites.config import load_site
from sites.manifest import ID, patients_in
from sites.tabular import TextTable, cell_text

if TYPE_CHECKING:
    from mmare.package.package import Package
    from mmare.study.specs import ModalitySpec

__all__ = ["LoadedPackage", "load_package"]


@dataclass(frozen=True)
class LoadedPackage:
    """A model package that predicts frames."""

    package: Package

    def predict(self, frame: pd.DataFrame, site: str | Path | None = None) -> pd.DataFrame:
        """Predict one patient a row.

        Args:
            frame: Patient ids in the column ``patient_id``, else in the index. A modality is a column of its
                name whose cells are vectors (None: absent), or the columns of the package's encoding.
            site: A ``site.toml`` for texts, scans and vectors that a site holds, as `mmare-site predict`
                takes them; paths are relative to its folder, and its audit log gets a line a patient.

        Returns:
            The columns of the table that the command writes.

        Raises:
            MmareError: One sentence, as of `site_inputs`.
        """
        config = None if site is None else load_site(Path(site))
        named = frame if ID in frame.columns else frame.rename_axis(ID).reset_index()
        given = {
            each.name: _vectors(named[each.name], each)
            for each in self.package.study.modalities
            if each.name in named.columns and not _is_text(named[each.name])
        }
        source = Path("the frame") if config is None else config.folder / "the frame"
        text = named.drop(columns=list(given)).map(cell_text).astype("str")
        found = predict(
            self.package, site_inputs(self.package, config, patients_in(TextTable(source, text)), given)
        )
        if config is not None:
            log_predictions(found, config, audit_lines(found, site_secret(config.folder)))
        return flat(found)


def load_package(path: str | Path) -> LoadedPackage:
    """Read a package, a folder or a zip; an InputError if it was changed or is none."""
    return LoadedPackage(read_package(Path(path)))


def _is_text(column: pd.Series) -> bool:
    return all(isinstance(cell, str) for cell in column.dropna())


def _vectors(column: pd.Series, modality: ModalitySpec) -> Vectors:
    """The rows that have a vector, checked."""
    found: Vectors = []
    for row, cell in enumerate(column):
        if cell is None or (isinstance(cell, float) and np.isnan(cell)):
            continue
        try:
            vector = np.asarray(cell, dtype=np.float32)
        except (TypeError, ValueError):
            vector = np.zeros(0, dtype=np.float32)
        if vector.shape != (modality.width,) or np.isinf(vector).any() or np.isnan(vector).all():
            raise DataError(
                f"the frame, row {row + 1}: {modality.name} is {str(cell)[:40]!r}, expected a vector of "
                f"{modality.width} finite numbers, NaN where blank"
            )
        found.append((row, vector))
    return found
