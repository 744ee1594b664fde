"""Our commands as they stand in unit files, compose files and guides: does what is typed there exist?"""

import re
import shlex
from pathlib import Path

import click
import typer

from client.cli import app as site_app
from server.cli import app as server_app
from simulation.cli import app as simulation_app

PROGRAMS = {
    "mmare-site": typer.main.get_command(site_app),
    "mmare-server": typer.main.get_command(server_app),
    "mmare-sim": typer.main.get_command(simulation_app),
}
ENDS = ("&&", "||", ";", "|", "…", "--network`")


def commands_of(text: str) -> list[list[str]]:
    """Every call of a program of ours in a text, as words; a line that ends in a backslash goes on."""
    text = re.sub(r"\\\n[#\s]*", " ", text)
    found = []
    for line in text.splitlines():
        for match in re.finditer(
            r"(?<![\w/.-])(?:/opt/mmare/bin/)?(mmare-(?:site|server|sim)) ([^`#]+)", line
        ):
            words = shlex.split(f"{match[1]} {match[2]}".rstrip("\\"), posix=True)
            ends = [index for index, word in enumerate(words) if word in ENDS or word.endswith(";")]
            found.append(words[: ends[0]] if ends else words)
    return found


def unknown_words(words: list[str]) -> list[str]:
    """What of a call does not exist: the subcommand, or options of it."""
    command: click.Command = PROGRAMS[Path(words[0]).name]
    rest = words[1:]
    while isinstance(command, click.Group):
        if not rest or rest[0] not in command.commands:
            return rest[:1] or ["(no subcommand)"]
        command, rest = command.commands[rest[0]], rest[1:]
    known = {option for each in command.params for option in (*each.opts, *each.secondary_opts)} | {"--help"}
    return [word for word in rest if word.startswith("--") and word.partition("=")[0] not in known]


def arguments_missing(words: list[str]) -> list[str]:
    """Arguments and options that a call needs and has not."""
    command: click.Command = PROGRAMS[Path(words[0]).name]
    rest = words[1:]
    while isinstance(command, click.Group):
        command, rest = command.commands[rest[0]], rest[1:]
    try:
        command.make_context("check", list(rest), resilient_parsing=False)
    except click.MissingParameter as error:
        return [str(error.param and error.param.name)]
    except click.UsageError:  # of a path that is not on this machine
        return []
    return []
