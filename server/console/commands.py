"""``mmare-server console``."""

from __future__ import annotations

from typing import Annotated

import typer

from server.membership.commands import DEFAULT_KIT, KitOption

__all__ = ["console"]


def console(
    kit: KitOption = DEFAULT_KIT,
    port: Annotated[int, typer.Option(min=1, max=65535, help="Of 127.0.0.1.")] = 9467,
) -> None:
    """Serve a local web page: runs, rounds and sites, submit and abort, admit and revoke.

    Only this machine reaches it, and only the browser that opens the printed link first. It keeps nothing of
    its own, needs no running coordinator, and ends with Ctrl-C.
    """
    from server.membership.kit import load_kit

    loaded = load_kit(kit)
    from mmare.host.web import check_port, serve
    from server.console.pages import ServerConsole

    check_port(port)
    serve(ServerConsole(loaded).app(port), port, lambda link: typer.echo(f"open once: {link}"))
