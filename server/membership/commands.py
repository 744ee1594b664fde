"""``mmare-server kit``: make the coordinator's folder, and say which sites take part."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer
from rich.console import Console
from rich.table import Table

from mmare.errors import RunError
from server.membership.options import SERVER_DAYS, SUPERLINK_PORT

if TYPE_CHECKING:
    from server.membership.flower_nodes import Node
    from server.membership.kit import Kit
    from server.membership.records import Admitted

__all__ = ["app"]

SOON_DAYS = 30  # of a certificate: time to renew

KitOption = Annotated[Path, typer.Option("--kit", help="The coordinator's folder.")]
DaysOption = Annotated[int, typer.Option(help="How long the server's certificate is valid.")]

app = typer.Typer(
    no_args_is_help=True,
    help="The coordinator's folder: its certificates, and the sites that take part.",
)


@app.command(epilog="Example: mmare-server kit init --host join.example.org --name kidney")
def init(
    host: Annotated[str, typer.Option(help="Name or address under which sites reach this coordinator.")],
    kit: KitOption = Path("coordinator"),
    port: Annotated[int, typer.Option(help="Of the public door.")] = 443,
    name: Annotated[str, typer.Option(help="Of the federation.")] = "federation",
    superlink_port: Annotated[
        int, typer.Option(help="Of Flower's SuperLink, on this machine only.")
    ] = SUPERLINK_PORT,
    days: DaysOption = SERVER_DAYS,
) -> None:
    """Make the folder with a certificate authority, a server certificate and a secret; once.

    Every site will trust this authority. Its key, ca.key, is needed only to renew: a copy belongs in a safe
    place, and the folder may do without it in between.
    """
    from server.membership.kit import init_kit

    made = init_kit(kit, host, port, name, superlink_port, days)
    typer.echo(
        f"kit: {made.folder}\n{_authority(made)}\n{_certificate(made)}\n"
        f"sites reach it at {made.host}, port {made.port}\n"
        f"next: each site sends the request.json that mmare-site kit request SITE.toml makes; then "
        f"mmare-server kit admit request.json --kit {kit}"
    )


@app.command(epilog="Example: mmare-server kit admit request.json --study study.toml")
def admit(
    request: Annotated[Path, typer.Argument(help="The request.json that a site sent.")],
    kit: KitOption = Path("coordinator"),
    study: Annotated[Path | None, typer.Option(help="The study.toml that goes with the bundle.")] = None,
    out: Annotated[
        Path | None, typer.Option(help="The bundle's file; by default bundles/SITE.zip of the kit.")
    ] = None,
    *,
    replace: Annotated[
        bool, typer.Option("--replace", help="Take a new key for a site that has another one.")
    ] = False,
) -> None:
    """Let a site take part, and write the bundle that it gets; the bundle holds no secret.

    Admitted again with the same key, a site gets its bundle anew, such as with another study.
    """
    from importlib.metadata import version

    from mmare.wire.joining import read_request
    from server.membership.kit import load_kit
    from server.membership.records import admit as admit_site
    from server.membership.records import find

    loaded = load_kit(kit)
    site = read_request(request).site
    bundle = admit_site(loaded, request, study, out, replace_key=replace)
    record = find(loaded, site)
    own = version("federated-mmare")
    if record.software != own:
        typer.echo(
            f"{site} has version {record.software[:40]}, this coordinator {own}: a run refuses sites of "
            "another version",
            err=True,
        )
    typer.echo(
        f"admitted: {site}\nits key:  {record.fingerprint}\n{_authority(loaded)}\n"
        "compare both with the site by telephone: a request could have been changed on its way"
    )
    typer.echo(f"bundle: {bundle}")
    _bring_into_agreement(loaded, site)
    typer.echo(
        f"next: send {bundle.name} to {site}, which runs mmare-site kit install {bundle.name} "
        "--site SITE.toml"
    )


@app.command(epilog="Example: mmare-server kit revoke hospital-a")
def revoke(
    site: Annotated[str, typer.Argument(help="Its id, as mmare-server kit list shows it.")],
    kit: KitOption = Path("coordinator"),
) -> None:
    """Let a site take part no longer; its key is refused for ever, at once where the coordinator runs."""
    from server.membership.kit import load_kit
    from server.membership.records import revoke as revoke_site

    loaded = load_kit(kit)
    record = revoke_site(loaded, site)
    typer.echo(f"revoked: {record.site}, {record.fingerprint}")
    _bring_into_agreement(loaded, site)
    typer.echo(
        "next: nothing; to come back, the site makes a new key with mmare-site kit request --new-key and is "
        "admitted again"
    )


@app.command(epilog="Example: mmare-server kit renew")
def renew(
    kit: KitOption = Path("coordinator"),
    days: DaysOption = SERVER_DAYS,
    *,
    new_key: Annotated[
        bool, typer.Option("--new-key", help="Make a new private key, too, such as after it was seen.")
    ] = False,
) -> None:
    """Make a new server certificate with the same authority; sites need do nothing.

    Also after host was changed in kit.toml; then sites need a new bundle, too.
    """
    from server.membership.flower_nodes import superlink_answers
    from server.membership.kit import load_kit
    from server.membership.kit import renew as renew_certificate

    loaded = load_kit(kit, renewing=True)
    renew_certificate(loaded, days, new_key=new_key)
    typer.echo(_certificate(loaded))
    if superlink_answers(loaded):
        typer.echo(
            "next: stop mmare-server start and start it again when it suits; the programs that run keep the "
            "certificate they read, and a run goes on where it was"
        )
    else:
        typer.echo("next: mmare-server start, which takes it")


@app.command("list", epilog="Example: mmare-server kit list")
def list_(kit: KitOption = Path("coordinator")) -> None:
    """Which sites were admitted, with their keys, and how long the server's certificate is valid."""
    from server.membership.flower_nodes import registered, superlink_answers
    from server.membership.kit import load_kit
    from server.membership.records import listed

    loaded = load_kit(kit, renewing=True)
    running = superlink_answers(loaded)
    nodes = {node.node_id: node for node in registered(loaded)} if running else {}
    table = Table(box=None, padding=(0, 2), pad_edge=False)
    for heading in ("site", "admitted", "key", "state", "registered"):
        table.add_column(heading, overflow="fold")
    records = listed(loaded)
    for record in records:
        table.add_row(
            record.site,
            record.admitted[:10],
            record.fingerprint,
            _state(record),
            _registered(record, nodes, running=running),
        )
    console = Console()
    if records:
        console.print(table, highlight=False)
    else:
        typer.echo("no sites yet: mmare-server kit admit request.json")
    typer.echo(_authority(loaded))
    typer.echo(_certificate(loaded))


def _bring_into_agreement(kit: Kit, site: str) -> None:
    """Tell SuperLink at once where it runs.

    Raises:
        RunError: If it does not take the site.
    """
    from server.membership.flower_nodes import register_admitted, superlink_answers

    if not superlink_answers(kit):
        typer.echo("SuperLink does not run; it is told when mmare-server start starts it")
        return
    done = register_admitted(kit)
    if site in done.refused:
        raise RunError(f"SuperLink does not take {site}: {done.refused[site]}")
    words = [f"registered {name}" for name in done.registered]
    words += [f"unregistered node {node}" for node in done.unregistered]
    typer.echo(f"SuperLink: {', '.join(words) or 'knew it already'}")


def _state(record: Admitted) -> str:
    from server.membership.records import SiteState

    if record.state is SiteState.REVOKED:
        return f"[red]revoked {(record.revoked or '')[:10]}[/]"
    return record.state.value


def _registered(record: Admitted, nodes: dict[int, Node], *, running: bool) -> str:
    """Whether SuperLink knows the site, as it says itself where it runs."""
    if record.node_id is None:
        return "not yet"
    if not running:
        return "yes, SuperLink does not run"
    node = nodes.get(record.node_id)
    return "not yet" if node is None else node.status


def _authority(kit: Kit) -> str:
    from server.membership.certificates import certificate_end, certificate_fingerprint

    shown = certificate_fingerprint(kit.ca_certificate.read_bytes())
    return f"authority: SHA-256 {shown}, valid until {certificate_end(kit.ca_certificate):%Y-%m-%d}"


def _certificate(kit: Kit) -> str:
    from server.membership.certificates import certificate_days_left, certificate_end, certificate_names

    left = certificate_days_left(kit.certificate)
    names = ", ".join(certificate_names(kit.certificate))
    until = f"{certificate_end(kit.certificate):%Y-%m-%d}"
    if left < 0:
        return f"server certificate: over since {until}; mmare-server kit renew makes a new one"
    advice = "; mmare-server kit renew makes a new one" if left < SOON_DAYS else ""
    return f"server certificate: for {names}, {left} days left (until {until}){advice}"
