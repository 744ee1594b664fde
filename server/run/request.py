"""What a run is asked to be: its study, and the keys of Flower's run configuration."""

from __future__ import annotations

from dataclasses import MISSING, dataclass, field, fields, replace
from importlib.metadata import entry_points
from pathlib import Path
from typing import TYPE_CHECKING, Final, cast

from mmare.errors import InputError
from mmare.package.start import find_start, read_start
from mmare.study.choices import Mode
from mmare.study.start import StartSpec
from mmare.study.study import STUDY_FILE, load_study

if TYPE_CHECKING:
    from collections.abc import Mapping

    from mmare.package.start import StartModel
    from mmare.study.study import Study

__all__ = ["PLAIN_SUMS", "RunRequest", "default_config"]

STUDY = "study"  # the one field that does not travel: its file and `set` do
PLAIN_SUMS: Final = "privacy.secure_sum=false"  # where there is nothing to hide


@dataclass(frozen=True)
class RunRequest:
    """What a run is asked to be; the study is read once, when the request is made.

    Args:
        federation: Folder with the study and one folder per site, or a study file alone; another one is
            another run.
        out: Run folder; by default ``runs/STUDY-MODE-seedSEED``.
        mode: Where the rows that train lie.
        set: ``section.key=value`` over the study.
        overwrite: Replace a run with other settings.
        trainer: Of a centralised run: the site that pools the others' rows.
        nodes: To wait for; 0 where unknown.
        backend: Who carries messages; noted, a run may be resumed on another.
        subsets: Test every subset of modalities, too.
        start_from: Package or finished run to start from; by default what lies beside a study that names one.
        study: Read from the federation, with `set` over it.

    Raises:
        InputError: If the study or the start model cannot be read, the study names another start model, or
            `set` holds a semicolon or changes what is not there.
    """

    federation: Path
    out: Path = Path()
    mode: Mode = Mode.FEDERATED
    set: tuple[str, ...] = ()
    overwrite: bool = False
    trainer: str = ""
    nodes: int = 0
    backend: str = "flower"
    subsets: bool = False
    start_from: Path = Path()
    study: Study = field(default=cast("Study", None), repr=False, compare=False)

    def __post_init__(self) -> None:
        for assignment in self.set:
            if ";" in assignment:
                raise InputError(f"--set {assignment!r}: a value must not hold a semicolon")
        if self.study is None:
            is_study = self.federation.is_file() or self.federation.suffix == ".toml"
            file = self.federation if is_study else self.federation / STUDY_FILE
            object.__setattr__(self, "study", load_study(file).override(self.set))
            self._find_start(file.parent)
        if self.study.privacy.secure_sum and self.mode is not Mode.FEDERATED:
            object.__setattr__(self, "set", (*self.set, PLAIN_SUMS))
            object.__setattr__(self, "study", self.study.override([PLAIN_SUMS]))
        if self.study.privacy.secure_sum and self.subsets:
            raise InputError("subsets: a study of secure sums tells no metrics of subsets of modalities")
        if self.study.privacy.dp is not None and self.subsets:
            raise InputError("subsets: a study with dp tells no metrics of subsets of modalities")
        usual = Path("runs", f"{self.study.name}-{self.mode}-seed{self.study.seed}")
        object.__setattr__(self, "out", (usual if self.out == Path() else self.out).absolute())

    def _find_start(self, beside: Path) -> None:
        """Enter the digest of the start model into the study, or find the one that the study names."""
        if self.start_from == Path() and self.study.start is not None:
            object.__setattr__(self, "start_from", find_start(beside) or Path())
        if self.start_from == Path():
            return
        digest = read_start(self.start_from).digest
        if self.study.start is None:
            object.__setattr__(self, "study", replace(self.study, start=StartSpec(digest)))
        self.start()

    def start(self) -> StartModel | None:
        """The start model, if the study names one.

        Raises:
            InputError: If it is not there, or is another.
        """
        wanted = self.study.start
        if wanted is None:
            return None
        if self.start_from == Path():
            raise InputError(
                f"the study starts from the model {wanted.digest[:12]}, which is not beside it; expected "
                "--start-from with its package or run"
            )
        found = read_start(self.start_from)
        if found.digest != wanted.digest:
            raise InputError(
                f"{self.start_from}: the start model {found.digest[:12]}, expected {wanted.digest[:12]}, "
                "which the study names"
            )
        return found

    @classmethod
    def from_config(cls, config: Mapping[str, object]) -> RunRequest:
        """From Flower's run configuration; an empty federation means the embedded one.

        Raises:
            InputError: If a value cannot be used.
        """
        given = {**default_config(), **config}
        if given["mode"] not in list(Mode):
            raise InputError(f"mode must be one of {', '.join(Mode)}, found {given['mode']!r}")
        assignments = (part.strip() for part in str(given["set"]).split(";"))
        return cls(
            federation=Path(str(given["federation"])) if given["federation"] else _embedded(),
            out=Path(str(given["out"])),
            mode=Mode(str(given["mode"])),
            set=tuple(part for part in assignments if part),
            overwrite=bool(given["overwrite"]),
            trainer=str(given["trainer"]),
            nodes=int(str(given["nodes"])),
            backend=str(given["backend"]),
            subsets=bool(given["subsets"]),
            start_from=Path(str(given["start_from"])),
        )

    def to_config(self) -> dict[str, str | int | bool]:
        """As Flower's run configuration, which holds plain values only; paths are absolute."""
        return {key: _plain(getattr(self, key)) for key in default_config()}


def default_config() -> dict[str, str | int | bool]:
    """Every key of Flower's run configuration, with what it is unless it is set."""
    return {each.name: _plain(each.default) for each in fields(RunRequest) if each.name != STUDY}


def _plain(value: object) -> str | int | bool:
    if value in (MISSING, Path()):
        return ""
    if isinstance(value, tuple):
        return ";".join(value)
    if isinstance(value, Path):
        return str(value.absolute())
    return value if isinstance(value, bool | int) else str(value)


def _embedded() -> Path:
    for entry in entry_points(group="mmare.embedded_federation"):
        folder: Path = entry.load()()
        return folder
    raise InputError("federation is empty and no embedded one is installed")
