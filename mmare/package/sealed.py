"""Files sealed by one digest, as a folder or the same as a zip; what was changed, cut or added is refused."""

from __future__ import annotations

import hashlib
import io
import json
import shutil
import uuid
import zipfile
import zlib
from collections.abc import Mapping
from contextlib import suppress
from dataclasses import asdict, dataclass, field, replace
from typing import TYPE_CHECKING, Any, Final

from mmare.errors import InputError
from mmare.host.files import replacing
from mmare.study.tables import TableError, from_table

if TYPE_CHECKING:
    from pathlib import Path

__all__ = [
    "FORMAT",
    "NOTICE",
    "SEAL",
    "Facts",
    "Sealed",
    "as_json",
    "check_free",
    "read_sealed",
    "seal",
    "write_folder",
    "write_sealed",
    "zipped",
]

FORMAT: Final = "mmare-package/1"
SEAL: Final = "package.json"
NOTICE: Final = "research use, not for clinical decisions"
_ZIP: Final = ".zip"
_EPOCH: Final = (1980, 1, 1, 0, 0, 0)  # of every entry, so that the same package is the same zip
_MOST: Final = 4 << 30  # bytes, unpacked


@dataclass(frozen=True)
class Facts:
    """Where a package comes from, and what its run did not tell."""

    study: str  # its name
    study_hash: str
    run: str
    mode: str
    trained: str  # when the run ended: ISO, UTC
    journal_sha256: str
    versions: Mapping[str, str]
    not_stated: Mapping[str, str] = field(default_factory=dict)  # part, and why it is not there
    notice: str = NOTICE


@dataclass(frozen=True)
class Sealed:
    """Files whose digests were checked."""

    source: str  # folder or zip, for messages
    digest: str
    facts: Facts
    files: Mapping[str, bytes]  # without the seal itself


def as_json(content: object) -> bytes:
    """JSON as packages hold it: the same content is the same bytes."""
    text = json.dumps(content, indent=1, sort_keys=True, ensure_ascii=False, allow_nan=False)
    return text.encode() + b"\n"


def seal(facts: Facts, files: Mapping[str, bytes]) -> Sealed:
    """Seal files; the digest is of the facts and of every file's name and SHA-256."""
    digest = hashlib.sha256(as_json(_content(facts, files))).hexdigest()
    return Sealed("", digest, facts, files)


def write_sealed(sealed: Sealed, out: Path) -> None:
    """Write a package, as a zip if ``out`` ends in ``.zip``, else as a folder; whole or not at all.

    The same package that is there already is left alone.

    Raises:
        InputError: If something else is there, or the folder around it is not.
    """
    if out.exists():
        with suppress(InputError):
            if read_sealed(out).digest == sealed.digest:
                return
    if out.suffix == _ZIP:
        check_free(out)
        with replacing(out) as partial:
            partial.write_bytes(zipped(sealed))
        return
    write_folder(out, {**sealed.files, SEAL: _seal_text(sealed)})


def check_free(out: Path) -> None:
    """Raise an `InputError` if something is at ``out``, or there is no folder to put it in."""
    if out.exists():
        raise InputError(f"{out}: holds something else; choose another name, or remove it")
    if not out.absolute().parent.is_dir():
        raise InputError(f"{out}: no folder {out.absolute().parent}")


def write_folder(out: Path, files: Mapping[str, bytes]) -> None:
    """Write files into a new folder, whole or not at all.

    Raises:
        InputError: If something is there already, or the folder around it is not.
    """
    check_free(out)
    folder = out.with_name(f".{uuid.uuid4().hex}")
    try:
        for name, content in files.items():
            (folder / name).parent.mkdir(parents=True, exist_ok=True)
            with replacing(folder / name) as partial:
                partial.write_bytes(content)
        folder.rename(out)
    finally:
        shutil.rmtree(folder, ignore_errors=True)


def read_sealed(path: Path) -> Sealed:
    """Read a package and check it against its seal.

    Raises:
        InputError: If it is no package of this format, or a byte was changed, or a file is missing or added.
    """
    try:
        files = _from_zip(path) if path.is_file() else _from_folder(path)
    except (OSError, EOFError, RuntimeError, NotImplementedError, zipfile.BadZipFile, zlib.error) as error:
        raise InputError(f"{path}: cannot be read as a package ({error})") from None
    if SEAL not in files:
        raise InputError(f"{path}: no model package, expected {SEAL} in a folder or at the top of a zip")
    text = files.pop(SEAL)
    try:
        content = json.loads(text)
    except ValueError:
        raise InputError(f"{path}: {SEAL} is not JSON") from None
    if not isinstance(content, dict) or content.get("format") != FORMAT:
        found = content.get("format") if isinstance(content, dict) else None
        raise InputError(f"{path}: {SEAL} has the format {found!r}, expected {FORMAT!r}")
    facts = {key: value for key, value in content.items() if key not in ("format", "files", "digest")}
    try:
        found = seal(from_table(Facts, facts, SEAL), files)
    except TableError as error:
        raise InputError(f"{path}: {error}") from None
    sealed = content.get("files")
    _compare(path, sealed if isinstance(sealed, dict) else {}, files)
    if _seal_text(found) != text:
        raise InputError(f"{path}: {SEAL} was changed after it was sealed; its digest is another")
    return replace(found, source=str(path))


def _content(facts: Facts, files: Mapping[str, bytes]) -> dict[str, Any]:
    digests = {name: hashlib.sha256(content).hexdigest() for name, content in files.items()}
    return {"format": FORMAT, **asdict(facts), "files": digests}


def _seal_text(sealed: Sealed) -> bytes:
    return as_json({**_content(sealed.facts, sealed.files), "digest": sealed.digest})


def _compare(path: Path, sealed: Mapping[str, object], files: Mapping[str, bytes]) -> None:
    """Name the first file that is not as it was sealed."""
    for name in sorted({*sealed, *files}):
        if name not in files:
            raise InputError(f"{path}: the file {name} is missing")
        if name not in sealed:
            raise InputError(f"{path}: the file {name} does not belong to the package")
        if hashlib.sha256(files[name]).hexdigest() != sealed[name]:
            raise InputError(f"{path}: the file {name} was changed after the package was sealed")


def _from_folder(folder: Path) -> dict[str, bytes]:
    if not (folder / SEAL).is_file():
        return {}
    found = sorted(path for path in folder.rglob("*") if not path.is_dir())
    _limit(sum(path.stat().st_size for path in found))
    return {path.relative_to(folder).as_posix(): path.read_bytes() for path in found}


def _from_zip(path: Path) -> dict[str, bytes]:
    with zipfile.ZipFile(path) as archive:
        entries = [entry for entry in archive.infolist() if not entry.is_dir()]
        _limit(sum(entry.file_size for entry in entries))
        files = {entry.filename: archive.read(entry) for entry in entries}
    if len(files) != len(entries):
        raise zipfile.BadZipFile("a file is in it twice")
    return files


def _limit(size: int) -> None:
    if size > _MOST:
        raise zipfile.BadZipFile(f"{size >> 20} MiB, expected at most {_MOST >> 20}")


def zipped(sealed: Sealed) -> bytes:
    """The package as a zip."""
    files = {**sealed.files, SEAL: _seal_text(sealed)}
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w") as archive:
        for name in sorted(files):
            archive.writestr(zipfile.ZipInfo(name, _EPOCH), files[name])
    return buffer.getvalue()
