"""``mmare-site kit``: join a federation."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

__all__ = ["app"]

app = typer.Typer(
    no_args_is_help=True, help="Join a federation: send a request, install the coordinator's bundle."
)


@app.command(epilog="Example: mmare-site kit request hospital/site.toml")
def request(
    site: Annotated[Path, typer.Argument(help="The site's site.toml.")],
    out: Annotated[
        Path | None, typer.Option(help="Output file; by default request-SITE.json beside site.toml.")
    ] = None,
    *,
    new_key: Annotated[bool, typer.Option("--new-key", help="Replace the old key.")] = False,
) -> None:
    """Generate this site's key, which never leaves it, and write the request for the coordinator.

    Run again, it writes the same request.
    """
    from client.membership.kit import make_request, own_fingerprint
    from sites.config import load_site

    config = load_site(site)
    written = make_request(config, out, new_key=new_key)
    typer.echo(f"key of {config.id}: {own_fingerprint(config)}\nrequest: {written}")
    replace = " --replace" if new_key else ""
    typer.echo(
        f"next: send {written.name} to the coordinator, who runs mmare-server kit admit {written.name}"
        f"{replace}; compare the key above by telephone"
    )


@app.command(epilog="Example: mmare-site kit install hospital-a.zip --site hospital/site.toml")
def install(
    bundle: Annotated[Path, typer.Argument(help="The zip that the coordinator sent.")],
    site: Annotated[Path, typer.Option(help="The site's site.toml.")],
) -> None:
    """Check and install the coordinator's bundle: an address, a certificate and perhaps a study.

    Nothing in a bundle is executed, and a study does not run before it is approved.
    """
    from client.membership.kit import authority_fingerprint, install_bundle
    from mmare.host.console import visible
    from mmare.study.study import load_study
    from mmare.wire.joining import SiteKit
    from sites.config import load_site

    config = load_site(site)
    coordinator = install_bundle(bundle, config)
    typer.echo(
        f"joined: {coordinator.federation} at {coordinator.address} as {coordinator.site}\n"
        f"authority: SHA-256 {authority_fingerprint(config)}; compare it with the coordinator by telephone"
    )
    study = SiteKit(config.coordinator.kit).study
    if study.exists():
        typer.echo(f"study: {visible(load_study(study).name)}")
        typer.echo(f"next: mmare-site approve {study} --site {site}, then mmare-site start {site}")
    else:
        typer.echo(
            f"next: mmare-site start {site}; approve a study.toml of the coordinator with mmare-site approve"
        )
