"""``mmare-server kit``: create the coordinator's folder, admit and revoke sites, renew the certificate."""

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

SOON_DAYS = 30  # before a certificate expires, renewal is advised

DEFAULT_KIT = Path("coordinator")
KitOption = Annotated[Path, typer.Option("--kit", help="The coordinator's folder.")]
DaysOption = Annotated[int, typer.Option(help="Validity of the server certificate in days.")]

app = typer.Typer(
    no_args_is_help=True,
    help="The coordinator's folder: its certificates, and the sites that take part.",
)


@app.command(epilog="Example: mmare-server kit init --host join.example.org --name kidney")
def init(
    host: Annotated[str, typer.Option(help="Name or address under which sites reach this coordinator.")],
    kit: KitOption = DEFAULT_KIT,
    port: Annotated[int, typer.Option(help="Public port.")] = 443,
    name: Annotated[str, typer.Option(help="Name of the federation.")] = "federation",
    superlink_port: Annotated[
        int, typer.Option(help="Port of Flower's SuperLink, on this machine only.")
    ] = SUPERLINK_PORT,
    days: DaysOption = SERVER_DAYS,
) -> None:
    """Create the folder with a certificate authority, a server certificate and a secret.

    Every site will trust this authority. Its key, ca.key, is needed only for renewal: keep a copy in a safe
    place; it may be absent from the folder otherwise.
    """
    from server.membership.kit import init_kit

    made = init_kit(kit, host, port, name, superlink_port, days)
    typer.echo(
        f"kit: {made.folder}\n{_authority(made)}\n{_certificate(made)}\n"
        f"sites reach it at {made.host}, port {made.port}\n"
        f"next: each site sends the request-SITE.json that mmare-site kit request SITE.toml makes; then "
        f"mmare-server kit admit request-SITE.json --kit {kit}"
    )


@app.command(epilog="Example: mmare-server kit admit request-hospital-a.json --study study.toml")
def admit(
    request: Annotated[Path, typer.Argument(help="The request file that a site sent.")],
    kit: KitOption = DEFAULT_KIT,
    study: Annotated[Path | None, typer.Option(help="The study.toml that goes with the bundle.")] = None,
    out: Annotated[
        Path | None, typer.Option(help="The bundle's file; by default bundles/SITE.zip of the kit.")
    ] = None,
    *,
    replace: Annotated[
        bool, typer.Option("--replace", help="Accept a new key for a site that already has one.")
    ] = False,
) -> None:
    """Admit a site and write its bundle, which holds no secret.

    Admitting a site again with the same key rewrites its bundle, for example with another study.
    """
    from importlib.metadata import version

    from mmare.wire.joining import read_request
    from mmare.wire.versions import who_upgrades
    from server.membership.kit import load_kit
    from server.membership.records import admit as admit_site
    from server.membership.records import find

    loaded = load_kit(kit)
    site = read_request(request).site
    bundle = admit_site(loaded, request, study, out, replace_key=replace)
    record = find(loaded, site)
    own = version("federated-mmare")
    if who := who_upgrades(record.software, own):
        typer.echo(f"{site} has version {record.software[:40]}, this coordinator {own}: {who}", err=True)
    typer.echo(
        f"admitted: {site}\nits key:  {record.fingerprint}\n{_authority(loaded)}\n"
        "compare both with the site by telephone: the request could have been altered in transit"
    )
    typer.echo(f"bundle: {bundle}")
    _update_superlink(loaded, site)
    typer.echo(
        f"next: send {bundle.name} to {site}, which runs mmare-site kit install {bundle.name} "
        "--site SITE.toml"
    )


@app.command(epilog="Example: mmare-server kit revoke hospital-a")
def revoke(
    site: Annotated[str, typer.Argument(help="Its id, as mmare-server kit list shows it.")],
    kit: KitOption = DEFAULT_KIT,
) -> None:
    """Exclude a site; its key is refused for good, immediately if the coordinator is running."""
    from server.membership.kit import load_kit
    from server.membership.records import revoke as revoke_site

    loaded = load_kit(kit)
    record = revoke_site(loaded, site)
    typer.echo(f"revoked: {record.site}, {record.fingerprint}")
    _update_superlink(loaded, site)
    typer.echo(
        "next: nothing; to return, the site makes a new key with mmare-site kit request --new-key and is "
        "admitted again"
    )


@app.command(epilog="Example: mmare-server kit renew")
def renew(
    kit: KitOption = DEFAULT_KIT,
    days: DaysOption = SERVER_DAYS,
    *,
    new_key: Annotated[
        bool, typer.Option("--new-key", help="Also make a new private key, for example after a leak.")
    ] = False,
) -> None:
    """Make a new server certificate with the same authority, which sites trust without doing anything.

    Needed also after changing host in kit.toml; sites then need a new bundle, too. A running coordinator
    restarts SuperLink and nginx with it within a minute; a run goes on.
    """
    from mmare.host.locks import is_held
    from server.membership.certificates import certificate_names
    from server.membership.kit import load_kit
    from server.membership.kit import renew as renew_certificate

    loaded = load_kit(kit, renewing=True)
    known = loaded.certificate.exists() and loaded.host in certificate_names(loaded.certificate)
    renew_certificate(loaded, days, new_key=new_key)
    typer.echo(_certificate(loaded))
    if is_held(loaded.start_lock):
        typer.echo(
            "next: nothing here: mmare-server start is running and restarts SuperLink and nginx with the new "
            "certificate within a minute; an nginx of your own needs nginx -s reload"
        )
    else:
        typer.echo("next: nothing until mmare-server start, which will use it")
    if not known:
        typer.echo(
            f"the host is new, {loaded.host}: run mmare-server kit admit again for every site and send it "
            "the bundle; until it installs that, it cannot connect"
        )


@app.command("list", epilog="Example: mmare-server kit list")
def list_(kit: KitOption = DEFAULT_KIT) -> None:
    """List the admitted sites with their keys, and the validity of the server certificate."""
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
    if records:
        Console().print(table, highlight=False)
    else:
        typer.echo("no sites yet: mmare-server kit admit request-SITE.json")
    typer.echo(_authority(loaded))
    typer.echo(_certificate(loaded))


def _update_superlink(kit: Kit, site: str) -> None:
    """Apply the kit's records to SuperLink if it is running.

    Raises:
        RunError: If SuperLink rejects the site.
    """
    from server.membership.flower_nodes import register_admitted, superlink_answers

    if not superlink_answers(kit):
        typer.echo("SuperLink is not running; mmare-server start will register the change")
        return
    changes = register_admitted(kit)
    if site in changes.refused:
        raise RunError(f"SuperLink rejects {site}: {changes.refused[site]}")
    words = [f"registered {name}" for name in changes.registered]
    words += [f"unregistered node {node}" for node in changes.unregistered]
    typer.echo(f"SuperLink: {', '.join(words) or 'already up to date'}")


def _state(record: Admitted) -> str:
    from server.membership.records import SiteState

    if record.state is SiteState.REVOKED:
        return f"[red]revoked {(record.revoked or '')[:10]}[/]"
    return record.state.value


def _registered(record: Admitted, nodes: dict[int, Node], *, running: bool) -> str:
    """The site's status at SuperLink, as far as it is known."""
    if record.node_id is None:
        return "not yet"
    if not running:
        return "yes, SuperLink is not running"
    node = nodes.get(record.node_id)
    return "not yet" if node is None else node.status


def _authority(kit: Kit) -> str:
    from server.membership.certificates import certificate_end, certificate_fingerprint

    fingerprint = certificate_fingerprint(kit.ca_certificate.read_bytes())
    return f"authority: SHA-256 {fingerprint}, valid until {certificate_end(kit.ca_certificate):%Y-%m-%d}"


def _certificate(kit: Kit) -> str:
    from server.membership.certificates import certificate_days_left, certificate_end, certificate_names

    left = certificate_days_left(kit.certificate)
    names = ", ".join(certificate_names(kit.certificate))
    until = f"{certificate_end(kit.certificate):%Y-%m-%d}"
    if left < 0:
        return f"server certificate: expired on {until}; mmare-server kit renew makes a new one"
    advice = "; mmare-server kit renew makes a new one" if left < SOON_DAYS else ""
    return f"server certificate: for {names}, {left} days left (until {until}){advice}"
