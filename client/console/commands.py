"""``mmare-site console``."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

__all__ = ["console"]


def console(
    site: Annotated[Path, typer.Argument(help="The site's site.toml.")],
    port: Annotated[int, typer.Option(min=1, max=65535, help="Of 127.0.0.1.")] = 9466,
) -> None:
    """Serve a local web page: what runs and what is asked for, what left, and approval of studies.

    Only this machine reaches it, and only the browser that opens the printed link first. It runs as the user
    who runs the worker, keeps nothing of its own, and ends with Ctrl-C.
    """
    from sites.config import load_site

    config = load_site(site)
    from client.console.pages import SiteConsole
    from mmare.host.web import check_port, serve

    check_port(port)
    serve(SiteConsole(config, site).app(port), port, lambda link: typer.echo(f"open once: {link}"))
