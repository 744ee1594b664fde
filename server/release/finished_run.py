"""What a finished run's folder says about its model: study, roll calls, scaling, result."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

from mmare.errors import InputError
from mmare.package.package import EncoderFact, MomentsFact, PatternCount
from mmare.study.choices import Mode
from mmare.study.encoding import ENCODING_FILE, Encoding, load_encoding
from mmare.study.study import STUDY_FILE, load_study
from mmare.wire.messages import Split
from server.monitoring.followed_run import read_run
from server.store.journal import JOURNAL, RESULT
from server.store.states import parse_states

if TYPE_CHECKING:
    from mmare.study.study import Study
    from server.monitoring.run_state import RunState
    from server.store.events import RollCall
    from server.store.states import KeptStates

__all__ = ["FinishedRun", "find_encoding", "load_finished"]

_TABLE: Final = "given:"  # begins the fingerprint of vectors that an encoding made


@dataclass(frozen=True)
class FinishedRun:
    """The files of a run that ended with one model."""

    folder: Path
    study: Study
    state: RunState
    result: Mapping[str, Any]
    journal_sha256: str

    @property
    def calls(self) -> dict[str, RollCall]:
        """Roll calls of the sites that took part."""
        return {site: call for site, call in sorted(self.state.calls.items()) if call.accepted}

    @property
    def trainers(self) -> dict[str, RollCall]:
        """Of the sites whose rows trained: where one pooled the rows of all, of that one."""
        pooling = {site: call for site, call in self.calls.items() if "+" in site}
        return pooling if self.result["mode"] == Mode.CENTRALISED and pooling else self.calls

    def encoders(self) -> dict[str, EncoderFact]:
        """By modality, in slot order; the roll call admits no site whose fingerprint differs."""
        found = {}
        for modality in self.study.modalities:
            marks = {
                site: call.encoders[modality.name]
                for site, call in self.trainers.items()
                if modality.name in call.encoders
            }
            if marks:
                mark = next(iter(marks.values()))
                found[modality.name] = EncoderFact(modality.kind.value, modality.encoder, mark, tuple(marks))
        return found

    def moments(self) -> dict[str, MomentsFact]:
        """By modality, in slot order."""
        scaling = self.state.scaling
        return {
            each.name: MomentsFact(scaling[each.name].n, scaling[each.name].sites)
            for each in self.study.modalities
            if each.name in scaling
        }

    def states(self) -> dict[str, KeptStates]:
        """Metric states of the model by split; empty for a run of an earlier version."""
        return parse_states(self.state.states, len(self.study.classes))

    def patterns(self) -> dict[str, PatternCount] | None:
        """Train rows by presence pattern; ``None`` where a site told no counts."""
        found: dict[str, PatternCount] = {}
        for call in self.trainers.values():
            told = call.counts.get("patterns", {}).get(Split.TRAIN)
            if told is None:
                return None
            for name, n in told.items():
                before = found.get(name, PatternCount(0))
                found[name] = PatternCount(before.n + (n or 0), before.withheld + (n is None))
        return dict(sorted(found.items()))


def load_finished(folder: Path) -> FinishedRun:
    """Read a run folder.

    Raises:
        InputError: If it holds no run, or one that has not ended or has no model for others.
    """
    state = read_run(folder)
    if state.first is None:
        raise InputError(f"{folder}: no run here ({JOURNAL} is missing); expected a run folder")
    if not state.finished:
        raise InputError(f"{folder}: the run has not ended; run it again to its end first")
    study = load_study(folder / STUDY_FILE)
    try:
        result = json.loads((folder / RESULT).read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise InputError(f"{folder / RESULT}: cannot be read ({type(error).__name__})") from None
    if result["mode"] == Mode.LOCAL:
        raise InputError(f"{folder}: each site trained alone, expected a run with one model")
    if study.federation.local:
        kept = ", ".join(study.federation.local)
        raise InputError(f"{folder}: {kept} stay at the sites (federation.local), so no model is whole")
    journal = hashlib.sha256((folder / JOURNAL).read_bytes()).hexdigest()
    return FinishedRun(folder, study, state, result, journal)


def find_encoding(run: FinishedRun, given: Path | None) -> tuple[Encoding | None, str]:
    """The encoding of the tables that the sites used, else why there is none.

    Args:
        run: Its roll calls tell the fingerprints.
        given: Its file; by default the one beside the study that the run was started from.

    Raises:
        DataError: If the file that was given cannot be read, or is not the one that the sites used.
    """
    marks = {name: fact.fingerprint for name, fact in run.encoders().items()}
    wanted = {name: mark.removeprefix(_TABLE) for name, mark in marks.items() if mark.startswith(_TABLE)}
    if not wanted:
        return None, "no modality is a table that was encoded" if given is None else ""
    started = run.state.first
    source = Path(str(started.settings.get("federation", "") if started else ""))
    beside = (source if source.is_dir() else source.parent) / ENCODING_FILE
    path = given or beside
    if given is None and not path.is_file():
        return None, f"no {ENCODING_FILE} beside the study of the run; --encoding names one"
    encoding = load_encoding(path)
    for name, mark in wanted.items():
        found = encoding.fingerprint(name)
        if found != mark:
            raise InputError(
                f"{path}: encodes {name} otherwise than the sites did ({found}, expected {mark}); "
                "--encoding names another file"
            )
    return Encoding({name: encoding.modalities[name] for name in wanted}), ""
