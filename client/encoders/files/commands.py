"""``mmare-site encoders``: encoders that a site adds as folders."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from mmare.errors import InputError
from mmare.host.console import must_exist, visible

if TYPE_CHECKING:
    from client.encoders.files.folder import EncoderFolder

__all__ = ["app"]

Into = Annotated[Path, typer.Option(help="Folder of weights, which site.toml names in its table compute.")]

WEIGHTS = Path("weights")

app = typer.Typer(
    no_args_is_help=True,
    help="Encoders from folders: ONNX, transformers, timm, open_clip, torch.export. A study says file:NAME.",
)


@app.command(epilog="Example: mmare-site encoders add downloads/ct-fm --into weights")
def add(
    folder: Annotated[Path, typer.Argument(help="A sealed encoder: encoder.toml, weights, probe.")],
    into: Into = WEIGHTS,
    device: Annotated[str, typer.Option(help="Where its probe is run: auto, cpu, cuda:1 …")] = "auto",
) -> None:
    """Check an encoder's hashes, run its probe on this machine, and copy it.

    Nothing is copied if the probe gives another output here than where the folder was sealed.
    """
    must_exist(folder, "an encoder's folder")
    from client.encoders.files.store import add_encoder
    from client.encoders.registry import pick_device

    done = add_encoder(folder, into, pick_device(device))
    typer.echo(f"{_facts(done.folder)}\nprobe: largest difference {done.difference:.2g} of the largest value")
    name, width = done.folder.contract.name, done.folder.contract.output.width
    typer.echo(f'added: {done.folder.path}; in a study: encoder = "file:{name}", width = {width}')


@app.command(epilog="Example: mmare-site encoders seal downloads/ct-fm")
def seal(
    folder: Annotated[Path, typer.Argument(help="encoder.toml as you wrote it, and the files it needs.")],
    probe: Annotated[
        Path | None,
        typer.Option(
            help="Input of the probe: NIfTI, tiles as safetensors, lines of text. Drawn if not given."
        ),
    ] = None,
) -> None:
    """Make a folder that others can add: run a probe here, write its output and the hash of every file."""
    must_exist(folder, "an encoder's folder")
    if probe is not None:
        must_exist(probe, "the input of a probe")
    from client.encoders.files.store import seal_encoder

    typer.echo(f"{_facts(seal_encoder(folder, probe))}\nsealed: {folder}")


@app.command("list", epilog="Example: mmare-site encoders list --into weights")
def list_(into: Into = WEIGHTS) -> None:
    """List the encoders of a folder of weights; every file is compared with its hash."""
    must_exist(into, "a folder of weights")
    from client.encoders.files.folder import added_encoders

    found = added_encoders(into)
    for name, folder in found:
        typer.echo(f"{name}: {folder}" if isinstance(folder, InputError) else _facts(folder))
    if not found:
        typer.echo(f"{into}: no encoder was added")
    if any(isinstance(folder, InputError) for _, folder in found):
        raise typer.Exit(2)


@app.command(epilog="Example: mmare-site encoders remove ct-fm --into weights")
def remove(
    name: Annotated[str, typer.Argument(help="As list shows it.")],
    into: Into = WEIGHTS,
) -> None:
    """Remove an encoder that was added."""
    must_exist(into, "a folder of weights")
    from client.encoders.files.folder import remove_encoder

    remove_encoder(name, into)
    typer.echo(f"removed: {name}")


@app.command(epilog="Example: mmare-site encoders convert pytorch_model.bin --out model.safetensors")
def convert(
    file: Annotated[Path, typer.Argument(help="A published checkpoint, .bin or .pt or .pth.")],
    out: Annotated[Path, typer.Option(help="A new .safetensors file.")],
) -> None:
    """Turn a pickled checkpoint into safetensors; it is read as tensors only, so nothing in it can run."""
    must_exist(file, "a published checkpoint")
    from client.encoders.files.store import convert_checkpoint

    count = convert_checkpoint(file, out)
    typer.echo(f"{out}: {count} tensors; remove {file} from an encoder's folder")


def _facts(folder: EncoderFolder) -> str:
    contract = folder.contract
    source = f", {visible(contract.source)}" if contract.source else ""
    return (
        f"{contract.name}: {contract.format}, {contract.input.kind} to {contract.output.width} numbers, "
        f"licence {visible(contract.licence)}{source}\nfingerprint: {folder.fingerprint}"
    )
