"""What a run's journal says so far, folded event by event into a state of fixed size.

The exporter and ``mmare-server status --watch`` show this state. Names that sites made up, sentences and
counts of few patients do not get into it: see `mmare.host.metric_labels`, `server.store.reasons` and
`min_count`.
"""

from __future__ import annotations

import math
from collections import Counter, deque
from collections.abc import Mapping
from dataclasses import dataclass, field
from datetime import datetime
from typing import Any, Final

from mmare.host.metric_labels import OTHER, Names, run_label, safe, slug
from server.monitoring.tally import Tally
from server.store.reasons import Ending, ending_of, reason_of

__all__ = ["LOSSES", "PHASES", "POOLED_SCORES", "SITE_SCORES", "RunState", "SiteState"]

LOSSES: Final = ("log_loss", "balanced_log_loss", "brier", "ece")  # the smaller, the better
SITE_SCORES: Final = ("balanced_accuracy", "auc", "log_loss", "ece")  # also told per site
POOLED_SCORES: Final = (
    *("accuracy", "balanced_accuracy", "auc", "f1", "precision", "recall"),
    *("macro_f1", "macro_precision", "macro_recall", *LOSSES),
)
PHASES: Final = ("wait", "evaluate", "aggregate", "checkpoint")
MODES: Final = ("federated", "centralised", "local")
BACKENDS: Final = ("inprocess", "ray", "flower")
PACKAGES: Final = ("federated-mmare", "flwr", "numpy", "torch", "python")
LATE: Final = ("late", "S402")  # the second where the site says it itself
MOST_SITES: Final = 1000
MOST_BLOCKS: Final = 256
IMPROVEMENTS: Final = 64  # best rounds that a resume can step back over


@dataclass
class SiteState:
    """What is known of a site that takes part.

    Args:
        last_seen: Seconds since the epoch of its last accepted answer.
        holds: Modalities of the study that it has.
        samples: Train rows; nothing where they are too few to be told.
        modality_samples: Train rows that have a modality, where neither they nor the others are too few.
        norm: Of its last update.
        train_loss: Of its last update.
        missed: Rounds in a row that it was left out of.
        left_out: Per reason, when it was last left out.
        scores: Per split and metric, over enough rows.
    """

    last_seen: float = 0.0
    holds: frozenset[str] = frozenset()
    samples: int | None = None
    modality_samples: dict[str, int] = field(default_factory=dict)
    norm: float | None = None
    train_loss: float | None = None
    missed: int = 0
    left_out: dict[str, float] = field(default_factory=dict)
    scores: dict[str, dict[str, float]] = field(default_factory=dict)


class RunState:
    """The state of one run.

    Args:
        min_count: Numbers of patients below this are not kept; a study's own limit counts where it is higher.
        tally: Gets what is counted over runs.
        history: Rounds of which `curves` keeps the score and the loss.
        studies: Labels of studies, shared by runs so that there are not too many.
    """

    def __init__(
        self,
        min_count: int,
        tally: Tally | None = None,
        history: int = 0,
        studies: Names | None = None,
    ) -> None:
        self._floor = self.min_count = min_count
        self._tally = tally or Tally()
        self._studies = studies or Names(most=1)
        self._site_names, self._block_names = Names(MOST_SITES), Names(MOST_BLOCKS)
        self.study, self.run, self.mode = OTHER, OTHER, OTHER
        self.info: dict[str, str] = {}
        self.modalities: tuple[str, ...] = ()
        self.planned_rounds = self.min_sites = 0
        self.deadline_s = 0.0
        self.started = self.last_event = 0.0
        self.active = False
        self.failed: str | None = None
        self.round = 0
        self.round_started: float | None = None  # of the round under way
        self.sites: dict[str, SiteState] = {}
        self.members: set[str] = set()
        self.not_admitted: Counter[str] = Counter()
        self.answered: dict[str, int] = {}  # train samples of the round, by site
        self.late: set[str] = set()
        self.refused: Counter[str] = Counter()
        self.exposure: dict[str, int] = {}
        self.starved: dict[str, int] = {}
        self.absent = Counter[str]()
        self.scores: dict[str, dict[str, float]] = {}
        self._improved: deque[tuple[int, float]] = deque(maxlen=IMPROVEMENTS)
        self.checkpoint: tuple[float, float] | None = None  # time, bytes
        self.curves: dict[str, deque[tuple[int, float]]] = {
            name: deque(maxlen=history) for name in ("score", "loss")
        }

    @property
    def best(self) -> tuple[int, float] | None:
        """Round and value of the best pooled validation balanced accuracy."""
        return self._improved[-1] if self._improved else None

    @property
    def finished(self) -> bool:
        """Whether the run came to its end."""
        return self.started > 0 and not self.active and self.failed is None

    def worst(self, split: str, metric: str) -> tuple[str, float, float] | None:
        """The site where a metric is worst, its value, and how far it is from the best site's."""
        told = {
            name: site.scores[split][metric]
            for name, site in self.sites.items()
            if metric in site.scores.get(split, {})
        }
        if not told:
            return None
        sign = -1.0 if metric in LOSSES else 1.0
        name = min(told, key=lambda each: (sign * told[each], each))
        return name, told[name], max(told.values()) - min(told.values())

    def take(self, event: Mapping[str, Any]) -> bool:
        """Take one event of the journal; whether it was as it should be. One that was not does no harm."""
        handler = getattr(self, f"_on_{event.get('event')}", None)
        try:
            time = datetime.fromisoformat(str(event["time"])).timestamp()
            if handler is not None:
                handler(event, time)
        except (ArithmeticError, AttributeError, LookupError, RecursionError, TypeError, ValueError):
            return False
        self.last_event = max(self.last_event, time)
        return True

    # What a run is

    def _on_run_started(self, event: Mapping[str, Any], time: float) -> None:
        self._end_round(Ending.STOPPED)
        settings = event["settings"]
        study, federation = settings["study"], settings["federation"]
        federation = federation if isinstance(federation, Mapping) else {}  # or the folder of the sites
        self.study = self._studies(slug(study["name"]))
        self.run = run_label(event["run"])
        self.mode = _of(MODES, event.get("mode"))
        self.modalities = tuple(safe(modality["name"]) for modality in settings["modality"])
        self.planned_rounds = _count(settings["training"]["rounds"]) or 0
        self.min_sites = _count(federation.get("min_sites")) or 0
        self.deadline_s = _number(federation.get("deadline_s")) or 0.0
        own = _count(settings.get("privacy", {}).get("min_count")) or 0
        self.min_count = max(self._floor, own)
        versions = event.get("versions", {})
        self.info = {
            "mode": self.mode,
            "backend": _of(BACKENDS, event.get("backend")),
            "model": safe(settings["model"]["name"]),
            "strategy": safe(federation.get("strategy")),
            **{name.replace("-", "_"): safe(versions.get(name)) for name in PACKAGES},
        }
        self.started = self.started or time
        self.active, self.failed = True, None
        self.members.clear()
        self.not_admitted.clear()
        self._tally.add("mmare_runs_started_total", (self.study,))
        self._begin_counting()

    def _begin_counting(self) -> None:
        """Counters begin at nothing, or Prometheus sees no increase when they first count."""
        for name in (
            *("mmare_runs_finished_total", "mmare_rounds_started_total", "mmare_rounds_finished_total"),
            "mmare_checkpoints_damaged_total",
        ):
            self._tally.add(name, (self.study,), 0.0)
        for ending in Ending:
            self._tally.add("mmare_rounds_failed_total", (self.study, ending.value), 0.0)
            if ending is not Ending.STOPPED:  # nobody is left to say it
                self._tally.add("mmare_runs_failed_total", (self.study, ending.value), 0.0)

    def _on_run_finished(self, _: Mapping[str, Any], __: float) -> None:
        self._end_round(None)
        self.active, self.failed = False, None
        self._tally.add("mmare_runs_finished_total", (self.study,))

    def _on_run_failed(self, event: Mapping[str, Any], _: float) -> None:
        ending = ending_of(event["reason"])
        self._end_round(ending)
        self.active, self.failed = False, ending
        self._tally.add("mmare_runs_failed_total", (self.study, ending))

    def _on_resumed(self, event: Mapping[str, Any], _: float) -> None:
        self._end_round(Ending.STOPPED)
        self.round = number = _count(event["resumed_from"]) or 0
        for series in (self._improved, *self.curves.values()):
            while series and series[-1][0] > number:
                series.pop()

    # Who takes part

    def _on_roll_call(self, event: Mapping[str, Any], time: float) -> None:
        if not event["accepted"]:
            self.not_admitted[reason_of(event["reason"])] += 1
            return
        name = self._site_names(event["site"])
        site = self.sites.setdefault(name, SiteState())
        self.members.add(name)
        site.last_seen = max(site.last_seen, time)
        site.holds = frozenset(event["encoders"]) & set(self.modalities)
        samples = _count(event["samples"]) or 0
        site.samples = samples if samples >= self.min_count else None
        patterns = event["counts"]["patterns"].get("train", {})
        site.modality_samples = {}
        for slot, modality in enumerate(self.modalities):
            told = [_count(n) or 0 for pattern, n in patterns.items() if pattern[slot : slot + 1] == "1"]
            if self._may_tell(sum(told), samples) and modality != OTHER:
                site.modality_samples[modality] = sum(told)

    def _may_tell(self, part: int, whole: int) -> bool:
        """Whether neither a group nor what it leaves of the whole is a small one."""
        return part >= self.min_count and not 0 < whole - part < self.min_count

    def _site(self, event: Mapping[str, Any]) -> tuple[str, SiteState]:
        """A member by its name; whoever was not at the roll call shares one place."""
        name = safe(event["site"])
        name = name if name in self.members else OTHER
        return name, self.sites.setdefault(name, SiteState())

    # Rounds

    def _on_round_started(self, event: Mapping[str, Any], time: float) -> None:
        self._end_round(Ending.STOPPED)
        number = _count(event["round"])
        if number is None:
            raise ValueError("a round without a number")
        self.round, self.round_started = number, time
        self.answered.clear()
        self.late.clear()
        self.refused.clear()
        self._tally.add("mmare_rounds_started_total", (self.study,))

    def _end_round(self, ending: str | None) -> None:
        """Count the round under way as finished, or as failed by a reason."""
        if self.round_started is None:
            return
        self.round_started = None
        if ending is None:
            self._tally.add("mmare_rounds_finished_total", (self.study,))
        else:
            self._tally.add("mmare_rounds_failed_total", (self.study, str(ending)))

    def _on_site_update(self, event: Mapping[str, Any], time: float) -> None:
        name, site = self._site(event)
        site.last_seen = max(site.last_seen, time)
        self._tally.add("mmare_site_received_bytes_total", (self.study, name), _count(event["bytes_up"]) or 0)
        self._tally.add("mmare_site_sent_bytes_total", (self.study, name), _count(event["bytes_down"]) or 0)
        if "phase" in event:
            return
        site.missed = 0
        if event["train_loss"] is not None:
            site.norm, site.train_loss = _number(event["norm"]), _number(event["train_loss"])
            self.answered[name] = _count(event["samples"]) or 0
            self._tally.add("mmare_site_updates_total", (self.study, name))

    def _on_site_left_out(self, event: Mapping[str, Any], time: float) -> None:
        name, site = self._site(event)
        reason = reason_of(event["reason"])
        site.left_out[reason] = max(site.left_out.get(reason, 0.0), time)
        self._tally.add("mmare_site_left_out_total", (self.study, name, reason))
        if "phase" in event:
            return
        site.missed += 1
        if reason in LATE:
            self.late.add(name)
        else:
            self.refused[reason] += 1

    def _on_aggregated(self, event: Mapping[str, Any], _: float) -> None:
        self._end_round(None)
        for phase, seconds in event["seconds"].items():
            self._observe(_of(PHASES, phase), seconds)
        exposure = {self._block_names(name): _count(n) or 0 for name, n in event["exposure"].items()}
        samples = sum(self.answered.values())
        self.exposure = {
            block: n for block, n in exposure.items() if n == 0 or self._may_tell(n, max(samples, n))
        }
        self.starved = {
            block: self.starved.get(block, 0) + 1 if n == 0 else 0 for block, n in exposure.items()
        }
        for modality in self.modalities:
            held = any(modality in self.sites[name].holds for name in self.answered)
            self.absent[modality] = 0 if held else self.absent[modality] + 1
        losses = [
            (n, loss)
            for name, n in self.answered.items()
            if n and (loss := self.sites[name].train_loss) is not None
        ]
        if losses:
            mean = sum(n * loss for n, loss in losses) / sum(n for n, _ in losses)
            self.curves["loss"].append((self.round, mean))

    def _on_checkpoint(self, event: Mapping[str, Any], time: float) -> None:
        self.checkpoint = (time, _number(event["bytes"]) or 0.0)
        self._observe("checkpoint", event.get("seconds"))

    def _on_checkpoint_damaged(self, event: Mapping[str, Any], _: float) -> None:
        self._tally.add("mmare_checkpoints_damaged_total", (self.study,), len(event["files"]))

    def _observe(self, phase: str, value: object) -> None:
        seconds = _number(value)
        if seconds is not None and seconds >= 0:
            self._tally.observe("mmare_round_phase_duration_seconds", (self.study, phase), seconds)

    # How good the model is

    def _on_validated(self, event: Mapping[str, Any], _: float) -> None:
        self._score("validation", event["metrics"])
        number, score = _count(event["round"]) or 0, self.scores["validation"].get("balanced_accuracy")
        if score is None:
            return
        self.curves["score"].append((number, score))
        if self.best is None or score > self.best[1]:
            self._improved.append((number, score))

    def _on_selected(self, event: Mapping[str, Any], _: float) -> None:
        self._end_round(None)  # patience ran out: it was validated and not aggregated any more
        self._score("validation", event["metrics"])

    def _on_tested(self, event: Mapping[str, Any], _: float) -> None:
        self._score("test", event["metrics"])

    def _score(self, split: str, metrics: Mapping[str, Any]) -> None:
        self.scores[split] = self._told(metrics["pooled"], POOLED_SCORES)
        for site in self.sites.values():
            site.scores.pop(split, None)
        for name, values in metrics["sites"].items():
            if safe(name) in self.members:
                self.sites[safe(name)].scores[split] = self._told(values, SITE_SCORES)

    def _told(self, values: Mapping[str, Any], names: tuple[str, ...]) -> dict[str, float]:
        """The metrics of a group of rows, if the group is large enough."""
        if (_count(values["n"]) or 0) < self.min_count:
            return {}
        found = {name: _number(values.get(name)) for name in names}
        return {name: value for name, value in found.items() if value is not None}


def _of(names: tuple[str, ...], value: object) -> str:
    """A value of a closed set."""
    return str(value) if value in names else OTHER


def _number(value: object) -> float | None:
    """A finite number, or nothing."""
    if isinstance(value, bool) or not isinstance(value, int | float):
        return None
    number = float(value)
    return number if math.isfinite(number) else None


def _count(value: object) -> int | None:
    """A whole number that is not negative, or nothing."""
    return value if isinstance(value, int) and not isinstance(value, bool) and value >= 0 else None
