"""What coordinator and hospital exchange, by people, before a hospital takes part: a request and a bundle.

::

    hospital: kit request ─► request.json ─► coordinator: kit admit ─► SITE.zip ─► hospital: kit install

Neither holds a secret: the site's private key never leaves it, the bundle holds the coordinator's certificate
authority, its address and the study.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from mmare.errors import InputError
from mmare.tables import TableError, read_toml

if TYPE_CHECKING:
    from pathlib import Path

__all__ = ["Coordinator", "SiteKit"]


@dataclass(frozen=True)
class Coordinator:
    """Where a site joins.

    Args:
        federation: Its name.
        host: Name or address of the coordinator, as in its certificate.
        port: Of the public door, TLS.
        site: The id under which the site was admitted.
    """

    federation: str
    host: str
    port: int
    site: str

    @property
    def address(self) -> str:
        """As Flower's SuperNode wants it."""
        return f"{self.host}:{self.port}"


@dataclass(frozen=True)
class SiteKit:
    """A site's folder of keys and addresses (``[coordinator] kit`` of ``site.toml``).

    Args:
        folder: Closed to other users, but to those who run the relay.
    """

    folder: Path

    @property
    def key(self) -> Path:
        """Private key of the node, OpenSSH format, made here and never sent."""
        return self.folder / "node.key"

    @property
    def public_key(self) -> Path:
        """Public key of the node, OpenSSH format."""
        return self.folder / "node.pub"

    @property
    def secret(self) -> Path:
        """That SuperNode and SuperExec of this site share."""
        return self.folder / "superexec.secret"

    @property
    def ca(self) -> Path:
        """Certificate of the coordinator's authority, PEM."""
        return self.folder / "ca.crt"

    @property
    def study(self) -> Path:
        """The study that came with the bundle."""
        return self.folder / "study.toml"

    @property
    def joined(self) -> Path:
        """Where the coordinator is; there once a bundle is installed."""
        return self.folder / "coordinator.toml"

    def coordinator(self) -> Coordinator:
        """Read where the coordinator is.

        Raises:
            InputError: If no bundle is installed, or the file cannot be used.
        """
        if not self.joined.exists():
            raise InputError(
                f"{self.joined}: not there; send the request that mmare-site kit request made to the "
                "coordinator, then install the bundle that comes back with mmare-site kit install"
            )
        try:
            found = read_toml(self.joined, "coordinator's address")
        except TableError as error:
            raise InputError(str(error)) from None
        return _coordinator(found, self.joined)


def _coordinator(found: dict[str, Any], path: Path) -> Coordinator:
    kinds = {"federation": str, "host": str, "port": int, "site": str}
    for key, kind in kinds.items():
        if type(found.get(key)) is not kind:
            raise InputError(f"{path}: {key} is {found.get(key)!r}, expected {kind.__name__}")
    return Coordinator(**{key: found[key] for key in kinds})
