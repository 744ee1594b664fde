"""Help, status, lists and the refusal of what was mistyped are quick: they import nothing slow."""

import contextlib
import importlib
import io
import json
import subprocess
import sys
from importlib.metadata import distribution
from pathlib import Path

import click
import typer

from mmare.host.console import run_command

SLOW = {  # a tenth of a second to some seconds of processor time, each
    *("torch", "torchvision", "numpy", "scipy", "pandas", "pyarrow", "sklearn", "monai", "transformers"),
    *("open_clip", "SimpleITK", "pydicom", "nibabel", "openslide", "PIL", "matplotlib", "jinja2", "flwr"),
    *("ray", "grpc", "google.protobuf", "httpx", "requests", "asyncio", "prometheus_client"),
}
FOR_KITS = {"cryptography"}  # needed to read a kit, not for its help
MAKES = {"out", "host"}  # options of commands that make something wherever they are told to


def programs():
    """Every console script as click's command."""
    for script in distribution("federated-mmare").entry_points.select(group="console_scripts"):
        yield script.name, typer.main.get_command(importlib.import_module(script.module).app)


def below(command, words=()):
    """A command and all its sub-commands, each with the words that lead to it."""
    yield words, command
    for name, inner in getattr(command, "commands", {}).items():
        yield from below(inner, (*words, name))


def nonsense(command):
    """All that a command needs, none of which exists; nothing where it only makes something."""
    needed = [param for param in command.params if param.required]
    if not {param.name for param in needed} <= MAKES:
        for param in needed:
            yield from [max(param.opts, key=len)] * isinstance(param, click.Option)
            yield param.type.choices[0] if isinstance(param.type, click.Choice) else "no/such"


def wrong(program, arguments, code, slow):
    """The exit code and the slow modules of a call, where they are not as they should be."""
    before = set(sys.modules)
    with contextlib.redirect_stdout(io.StringIO()), contextlib.redirect_stderr(io.StringIO()):
        try:
            found = run_command(program.main, arguments)
        except SystemExit as end:
            found = end.code
    loaded = sorted(slow & (sys.modules.keys() - before))
    return [[*arguments, found, *loaded]] if found != code or loaded else []


def walk(answers):
    """Print what is wrong, as JSON; for a process that has imported nothing yet.

    Args:
        answers: Calls of ``status`` and ``list``, as JSON: program, words, exit code.
    """
    all_programs, unasked = dict(programs()), set()
    found = [["import", *sorted((SLOW | FOR_KITS) & sys.modules.keys())]]
    for name, program in all_programs.items():
        for words, _ in below(program):
            found += wrong(program, [*words, "--help"], 0, SLOW | FOR_KITS)
            found += wrong(program, [*words, "--mistyped"], 2, SLOW | FOR_KITS)
            unasked |= {(name, *words)} if {"status", "list"} & {*words} else set()
    for program in all_programs.values():
        for words, command in below(program):
            if arguments := [*nonsense(command)]:
                found += wrong(program, [*words, *arguments], 2, SLOW)
    for name, words, code in json.loads(answers):
        found += wrong(all_programs[name], words, code, SLOW)
        unasked -= {(name, *words[:end]) for end in range(len(words))}
    sys.stdout.write(json.dumps([*found, *sorted(unasked)]))


def test_help_status_lists_and_refusals_import_nothing_slow(tmp_path):
    from server.membership.kit import init_kit
    from tests.kits import site_config
    from tests.server.journals import started, write

    site = site_config(tmp_path / "site").folder / "site.toml"
    kit = init_kit(tmp_path / "kit", "127.0.0.1").folder
    run = write(tmp_path / "run", [started()])
    answers = [
        ("mmare-site", ["status", str(site)], 1),
        ("mmare-site", ["encoders", "list", "--into", str(tmp_path)], 0),
        ("mmare-server", ["status", str(run)], 0),
        ("mmare-server", ["status", "--kit", str(kit)], 0),
        ("mmare-server", ["kit", "list", "--kit", str(kit)], 0),
        ("mmare-sim", ["grid", "mmist-vital12", "--out", "grid", "--dry-run"], 0),
    ]
    code = "import sys; from tests.test_quick import walk; walk(sys.argv[1])"
    done = subprocess.run(
        [sys.executable, "-c", code, json.dumps(answers)],
        cwd=tmp_path,
        env={"PYTHONPATH": str(Path(__file__).parents[1])},
        capture_output=True,
        text=True,
        check=False,
    )
    assert (done.returncode, done.stderr) == (0, "")
    assert json.loads(done.stdout) == [["import"]]
