"""A site's tables in memory, and what becomes of a run when its files change."""

from __future__ import annotations

import logging
from typing import TYPE_CHECKING, Final

from client.data.latest import Latest
from client.encoders.registry import check_encoders
from client.privacy.records.moments_record import MomentsRecord
from mmare.errors import DataError, SiteCode, SiteError
from mmare.wire.messages import Split

if TYPE_CHECKING:
    from collections.abc import Callable

    from client.data.dataset import SiteData
    from mmare.study.study import Study

__all__ = ["SiteTable"]

LOG = logging.getLogger(__name__)

MOST_STUDIES: Final = 2  # whose tables stay in memory: as many as a coordinator has under way by default


class SiteTable:
    """Reads the site's data once per study and version.

    Args:
        load: Reads them for a study.
        version: Changes with the content of the files.
        keep: Whether a run goes on with the table that it began with, as long as that is in memory; if not,
            the site's part in it ends.
        record: Of the moments released.
        secret: Of the site, for the record.
    """

    def __init__(
        self,
        load: Callable[[Study], SiteData],
        version: Callable[[], str] = str,
        *,
        keep: bool = False,
        record: MomentsRecord | None = None,
        secret: Callable[[], bytes] = bytes,
    ) -> None:
        self._load = load
        self._version = version
        self._keep = keep
        self.record = record or MomentsRecord(None)
        self.secret = secret
        self._tables: Latest[tuple[str, int, str], SiteData] = Latest(MOST_STUDIES)  # by study, seed, version
        self._last: tuple[str, int] = ("", 0)  # version and train rows of the data used last
        self._noticed = ""

    @property
    def version(self) -> str:
        """Of the data used last; empty if the files are not watched."""
        return self._last[0]

    @property
    def train_rows(self) -> int:
        """Of the data used last."""
        return self._last[1]

    def change(self, begun: str) -> str:
        """The version of the files, the first time that it is another than ``begun`` or the one before."""
        present, before = self._version(), begun or self._noticed
        self._noticed, noticed = present, self._noticed
        return present if before not in ("", present) and noticed != present else ""

    def data(self, study: Study, begun: str = "") -> SiteData:
        """The data of a study.

        Args:
            study: Whose modalities are read.
            begun: The version with which its run began; empty for the present one.

        Raises:
            DataError: If they cannot be used.
            SiteError: If the run began with another version and its part ends.
        """
        present = self._version()
        key = (study.hash, study.seed, begun or present)
        data = self._tables.get(key) if self._keep or key[2] == present else None
        if data is None and key[2] != present:
            LOG.error("the table changed since the run began; this site's part in the run ends")
            raise SiteError(SiteCode.TABLE)
        if data is None:
            check_encoders(study)
            self._tables.make_room()
            data = self._load(study)
            if not any(len(rows) for rows in data.rows.values()):
                raise DataError("no rows")
            self._tables.put(key, data)
        self._last = key[2], len(data.rows[Split.TRAIN])
        return data
