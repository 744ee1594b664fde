"""A site's part in secure sums: its key, its masks, and which seeds it helped to open.

One rule carries the protection: of each answer a site masks one value only, for whatever group of sites it is
asked, and helps to open one group's sum only. Shares open a seed from a majority of the largest group on, so
no second sum, whose difference would be a site's own numbers, can be opened.
"""

from __future__ import annotations

import hashlib
import json
import logging
import secrets
from dataclasses import asdict, dataclass, field
from types import MappingProxyType
from typing import TYPE_CHECKING, Final

from mmare.errors import SiteCode, SiteError
from mmare.host.files import own_folder, write_whole
from mmare.study.sums_only import SECURE_SITES
from mmare.wire.masking import (
    MaskError,
    context_of,
    majority,
    mask,
    open_share,
    own_seed,
    public_key,
    seal_share,
    split_seed,
    to_fixed,
)
from mmare.wire.messages import Masked, Unmasked

if TYPE_CHECKING:
    from collections.abc import Mapping
    from pathlib import Path

    from torch import Tensor

    from mmare.study.study import Study
    from mmare.wire.messages import Request

__all__ = ["Masker"]

LOG = logging.getLogger(__name__)

KEY_FILE: Final = "secure-sum.key"
_KEY_BYTES: Final = 32
_PRIVATE: Final = 0o600


@dataclass
class _Answered:
    """What a site masked of one answer."""

    value: str = ""  # digest of the fixed-point vector
    most: int = 0  # sites in the largest group
    groups: list[str] = field(default_factory=list)  # digests
    opened: str = ""  # the group whose sum it helped to open


class Masker:
    """Masks a site's vectors; its key and its records are files of mode 0600.

    Args:
        site: Id.
        folder: Of the site, private to its worker; made if absent.
        peers: Keys that this hospital confirmed with the others, by site; sums with other sites or keys are
            refused. None are asked for if it is empty: a coordinator could then play all other sites.
    """

    def __init__(self, site: str, folder: Path, peers: Mapping[str, str] = MappingProxyType({})) -> None:
        self._site = site
        self._peers = peers
        self._folder = folder / "secure-sums"
        self._key = b""

    @property
    def public_key(self) -> str:
        """Of the site, as hex digits; what a hospital confirms with the others outside the coordinator."""
        return public_key(self._private())

    def protect(self, request: Request, study: Study, vector: Tensor) -> tuple[Masked, bytes]:
        """Mask a float64 vector for the group of sites that a request names.

        Raises:
            SiteError: If the group is too small or does not hold this site's key, a number is too large, or
                another value of this answer was masked before.
        """
        roster = self._checked(request, study)
        context = context_of(study.hash, request.run, _what(request), roster)
        try:
            steps = to_fixed(vector)
            record = self._note(request, steps, context, len(roster))
            masked = mask(self._private(), self._site, roster, context, steps)
            seed = own_seed(self._private(), context)
            shares = split_seed(seed, sorted(roster), majority(record.most))
            sealed = {
                site: seal_share(self._private(), roster[site], context, share)
                for site, share in shares.items()
            }
        except MaskError as error:
            raise _refused(str(error)) from None
        digest = hashlib.sha256(seed).hexdigest()
        return Masked(self._site, request.round, sealed, digest), masked.numpy().tobytes()

    def reveal(self, request: Request, study: Study) -> Unmasked:
        """The shares of the seeds of a group, for one group per answer only.

        Raises:
            SiteError: If this site masked nothing for the group, or helped another group.
        """
        roster = self._checked(request, study)
        context = context_of(study.hash, request.run, _what(request), roster)
        record = self._read(request)
        if context.hex() not in record.groups or record.opened not in ("", context.hex()):
            raise _refused("asked to open a sum that it masked nothing for, or a second one")
        if set(request.shares) != set(roster):
            raise _refused("asked to open a sum without the shares of all its sites")
        try:
            opened = {
                site: open_share(self._private(), roster[site], context, sealed).hex()
                for site, sealed in request.shares.items()
            }
        except MaskError as error:
            raise _refused(str(error)) from None
        record.opened = context.hex()
        self._write(request, record)
        return Unmasked(self._site, request.round, opened)

    def _checked(self, request: Request, study: Study) -> Mapping[str, str]:
        fewest = max(SECURE_SITES, study.federation.min_sites)
        if len(set(request.roster.values())) < fewest:
            raise _refused(
                f"a sum of {len(request.roster)} sites, expected at least {fewest} with keys of their own"
            )
        if request.roster.get(self._site) != self.public_key:
            raise _refused("a sum in which this site has another key")
        others = {site: key for site, key in request.roster.items() if site != self._site}
        if self._peers and not others.items() <= self._peers.items():
            raise _refused("a sum with a site or a key that [peers] in site.toml does not name")
        return request.roster

    def _note(self, request: Request, steps: Tensor, context: bytes, sites: int) -> _Answered:
        """Write down what is masked before it leaves."""
        value = hashlib.sha256(steps.numpy().tobytes()).hexdigest()
        record = self._read(request)
        if record.value not in ("", value):
            raise MaskError(
                "another value was masked for this answer; a second one would tell their difference"
            )
        if context.hex() not in record.groups:
            record.value, record.most = value, max(record.most, sites)
            record.groups.append(context.hex())
            self._write(request, record)
        return record

    def _path(self, request: Request) -> Path:
        name = hashlib.sha256(json.dumps([request.run, _what(request)]).encode()).hexdigest()
        return self._folder / f"{name}.json"

    def _read(self, request: Request) -> _Answered:
        try:
            return _Answered(**json.loads(self._path(request).read_text()))
        except FileNotFoundError:
            return _Answered()

    def _write(self, request: Request, record: _Answered) -> None:
        own_folder(self._folder)
        write_whole(self._path(request), json.dumps(asdict(record)).encode(), _PRIVATE)

    def _private(self) -> bytes:
        if not self._key:
            path = self._folder / KEY_FILE
            if not path.exists():
                own_folder(self._folder)
                write_whole(path, secrets.token_bytes(_KEY_BYTES), _PRIVATE)
            self._key = path.read_bytes()
        return self._key


def _what(request: Request) -> str:
    """The answer that is summed."""
    return f"{request.sum}/{request.round}"


def _refused(sentence: str) -> SiteError:
    LOG.error("secure sum refused: %s", sentence)
    return SiteError(SiteCode.SUM)
