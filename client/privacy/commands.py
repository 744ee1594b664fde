"""``mmare-site audit``: the site's log of what left. ``mmare-site budget``: what of its privacy is spent."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Annotated

import typer

__all__ = ["app", "budget"]

app = typer.Typer(no_args_is_help=True, help="The log of everything that left this site.")


@app.callback()
def _audit() -> None:
    """Keeps ``verify`` a command of its own while there is only one."""


@app.command(epilog="Example: mmare-site audit verify hospital/site.toml")
def verify(site: Annotated[Path, typer.Argument(help="The site's site.toml.")]) -> None:
    """Read the whole audit log and say whether lines are missing or were changed; exit code 1 if so.

    Prints the head, number and digest of the last line: kept elsewhere, it shows later that this line and
    those before it are still the same.
    """
    from client.privacy.approvals import ApprovalFolder
    from client.privacy.records.audit_log import log_of
    from mmare.errors import RunError
    from sites.config import load_site

    config = load_site(site)
    log = log_of(config)
    chain, wrong = log.examine()
    if chain.before:
        held = "whose digest its first line holds" if chain.head.lines else "none of them protected"
        typer.echo(f"lines 1 to {chain.before} were written before the chain, {held}")
    if chain.earlier:
        typer.echo(
            f"line {chain.before + 1} began a new chain when a study was approved; before, {chain.earlier}"
        )
    for number in chain.cut:
        typer.echo(f"line {number} is cut short and counts as not written")
    for approval in ApprovalFolder(config.folder).all():
        name = approval.study.name if approval.study else "a study"
        wrong = wrong or log.examine(approval.head)[1].replace("an approval", f"the approval of {name}")
    if wrong:
        raise RunError(f"{log.path}: {wrong}")
    typer.echo(f"{log.path}: {chain.head.lines} lines in the chain, none missing or changed")
    typer.echo(f"head: {chain.head.text().strip()}")


def budget(
    site: Annotated[Path, typer.Argument(help="The site's site.toml.")],
    *,
    as_json: Annotated[bool, typer.Option("--json", help="For programs, with every run.")] = False,
) -> None:
    """Say how much of the site's budget of differential privacy each study spent and what is left.

    The limit is ``epsilon_limit`` of the table policy in site.toml. Exit code 1 if lines of the ledger are
    missing or were changed.
    """
    from client.privacy.records.audit_log import log_of
    from client.privacy.records.ledger import budget_table, budget_text, ledger_of
    from sites.config import load_site

    config = load_site(site)
    ledger = ledger_of(config)
    ledger.check(log_of(config).budget)
    found = budget_table(config.id, ledger)
    typer.echo(json.dumps(found, indent=2) if as_json else budget_text(found))
