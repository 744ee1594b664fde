"""The state of a run, folded from its journal event by event.

Exporter, terminal views, retry policy, result and report read this state. What the exporter discloses of it
holds no free text, no name made up by a site (`mmare.host.metric_labels`) and no small count (`min_count`).
"""

from __future__ import annotations

from collections import Counter, deque
from collections.abc import Mapping
from datetime import datetime
from typing import Any, Final

from mmare.errors import Ending, Reason, SiteCode
from mmare.host.metric_labels import OTHER, Names, one_word, run_label, safe
from mmare.study.choices import Mode, Select
from mmare.study.outcome import headline_of
from server.monitoring.parts import RoundState, SiteState, count, number, one_of
from server.monitoring.tally import Tally
from server.store import events
from server.store.selection import Selection

__all__ = ["LOSSES", "PHASES", "POOLED_SCORES", "SITE_SCORES", "RunState"]

# Of these, smaller is better.
LOSSES: Final = ("log_loss", "balanced_log_loss", "brier", "integrated_brier", "ece", "mae", "rmse")
# These are told of each site, too.
SITE_SCORES: Final = ("balanced_accuracy", "auc", "concordance", "r2", "mae", "log_loss", "ece")
POOLED_SCORES: Final = (
    *("accuracy", "balanced_accuracy", "auc", "concordance", "r2", "slope", "f1", "precision", "recall"),
    *("macro_f1", "macro_precision", "macro_recall", *LOSSES),
)
PHASES: Final = ("wait", "evaluate", "aggregate", "checkpoint")
MODES: Final = tuple(mode.value for mode in Mode)
BACKENDS: Final = ("inprocess", "ray", "flower")
PACKAGES: Final = ("federated-mmare", "flwr", "numpy", "torch", "python")
LATE: Final = (Reason.LATE, SiteCode.LATE)  # by the coordinator, by the site itself
MOST_SITES: Final = 1000
MOST_BLOCKS: Final = 256
IMPROVEMENTS: Final = 64  # best rounds that a resume can roll back
TIMED_ROUNDS: Final = 21  # whose durations are kept


class RunState:
    """The state of one run, of bounded size unless ``whole``.

    Args:
        min_count: Smaller numbers of patients are withheld; the study's limit applies if it is higher.
        tally: Receives counts over all runs.
        history: Number of rounds in `curves`.
        studies: Labels of studies, shared by runs to limit their number.
        whole: Keep all `rounds` and `absences`.
    """

    def __init__(
        self,
        min_count: int = 0,
        tally: Tally | None = None,
        history: int = 0,
        studies: Names | None = None,
        *,
        whole: bool = False,
    ) -> None:
        self._floor = self.min_count = min_count
        self._tally = tally or Tally()
        self._studies = studies or Names(most=1)
        self._whole = whole
        self._site_names, self._block_names = Names(MOST_SITES), Names(MOST_BLOCKS)
        self.name = ""  # as in the journal
        self.study, self.run, self.mode = OTHER, OTHER, OTHER
        self.info: dict[str, str] = {}
        self.modalities: tuple[str, ...] = ()
        self.planned_rounds = self.min_sites = 0
        self.deadline_s = 0.0
        self._select = Select.BALANCED_ACCURACY
        self.first: events.RunStarted | None = None
        self.last: events.Event | None = None
        self.end: events.RunFinished | events.RunFailed | None = None  # of the last attempt
        self.starts = 0
        self.started = self.last_event = 0.0
        self.row = RoundState()  # current round, or the last one
        self.round_started: float | None = None  # during a round
        self.rounds: dict[int, RoundState] = {}
        self.absences: list[events.RollCall | events.SiteLeftOut] = []
        self.calls: dict[str, events.RollCall] = {}  # the last of each site
        self.scaling: dict[str, events.Scaling] = {}  # by modality
        self.sites: dict[str, SiteState] = {}  # by label
        self.members: set[str] = set()
        self.not_admitted: Counter[str] = Counter()
        self.exposure: dict[str, int] = {}
        self.starved: dict[str, int] = {}
        self.absent = Counter[str]()
        self.scores: dict[str, dict[str, float]] = {}
        self._best: deque[tuple[Selection, float | None]] = deque(maxlen=IMPROVEMENTS)
        self.states: Mapping[str, Any] = {}  # by split, if ``whole``
        self.checkpoint: tuple[float, int] | None = None  # time, bytes
        self.saved = 0  # highest round ever checkpointed
        self.durations: deque[float] = deque(maxlen=TIMED_ROUNDS)  # seconds of rounds
        self.curves: dict[str, deque[tuple[int, float]]] = {
            name: deque(maxlen=history) for name in ("score", "loss")
        }

    @property
    def active(self) -> bool:
        """Whether an attempt started and logged no end; it may have been killed."""
        return self.first is not None and self.end is None

    @property
    def finished(self) -> bool:
        """Whether the run finished."""
        return isinstance(self.end, events.RunFinished)

    @property
    def failed(self) -> Ending | None:
        """Why the last attempt failed, if it did."""
        return self.end.code if isinstance(self.end, events.RunFailed) else None

    @property
    def round(self) -> int:
        """Number of the current round, or of the last one."""
        return self.row.number

    @property
    def best_round(self) -> int:
        """Best round so far by ``training.select``; 0 before any validation."""
        return self._best[-1][0].round if self._best else 0

    @property
    def best_score(self) -> float | None:
        """Pooled validation balanced accuracy of `best_round`."""
        return self._best[-1][1] if self._best else None

    @property
    def misses(self) -> list[events.SiteLeftOut]:
        """The `absences` from rounds."""
        return [each for each in self.absences if isinstance(each, events.SiteLeftOut)]

    @property
    def late(self) -> set[str]:
        """Sites that missed this round's deadline."""
        return {each.site for each in self.row.left_out if each.code in LATE}

    @property
    def refused(self) -> Counter[str]:
        """Number of refused answers in this round, per code."""
        return Counter(each.code.value for each in self.row.left_out if each.code not in LATE)

    def worst(self, split: str, metric: str) -> tuple[str, float, float] | None:
        """The site with the worst value of a metric, the value, and its distance from the best."""
        values = {
            name: site.scores[split][metric]
            for name, site in self.sites.items()
            if metric in site.scores.get(split, {})
        }
        if not values:
            return None
        sign = -1.0 if metric in LOSSES else 1.0
        name = min(values, key=lambda each: (sign * values[each], each))
        return name, values[name], max(values.values()) - min(values.values())

    def take(self, entry: Mapping[str, Any]) -> events.Event | None:
        """Fold a line of the journal; returns its event, or ``None`` if the line is invalid."""
        try:
            event = events.parse_event(entry)
            time = self._time_of(event)
            handler = getattr(self, f"_on_{entry.get('event')}", None)
            if handler is not None:
                handler(event, time)
        except (ArithmeticError, AttributeError, LookupError, RecursionError, TypeError, ValueError):
            return None
        self.last, self.last_event = event, time
        return event

    def _time_of(self, event: events.Event) -> float:
        try:
            return max(self.last_event, datetime.fromisoformat(event.time).timestamp())
        except ValueError:
            return self.last_event

    def _row(self, of: int) -> RoundState:
        return self.rounds.setdefault(of, RoundState(of)) if self._whole else self.row

    # The run

    def _on_run_started(self, event: events.RunStarted, time: float) -> None:
        self._end_round(Ending.STOPPED)
        self.first, self.end = self.first or event, None
        self.starts += 1
        self.started = self.started or time
        self.members.clear()
        self.not_admitted.clear()
        self.name, self.run = event.run, run_label(event.run)
        self.mode = one_of(MODES, event.mode)
        settings, federation = event.settings, event.federation
        self.study = self._studies(one_word(settings.get("study", {}).get("name", OTHER)))
        self._tally.add("mmare_runs_started_total", (self.study,))
        self._tally.begin_study(self.study)
        self.modalities = tuple(safe(modality["name"]) for modality in settings.get("modality", ()))
        training = settings.get("training", {})
        self.planned_rounds = count(training.get("rounds")) or 0
        self._select = Select(training.get("select", Select.BALANCED_ACCURACY))
        self.min_sites = count(federation.get("min_sites")) or 0
        self.deadline_s = number(federation.get("deadline_s")) or 0.0
        own = count(settings.get("privacy", {}).get("min_count")) or 0
        self.min_count = max(self._floor, own)
        self.info = {
            "mode": self.mode,
            "backend": one_of(BACKENDS, event.backend),
            "model": safe(settings.get("model", {}).get("name")),
            "strategy": safe(federation.get("strategy")),
            **{name.replace("-", "_"): safe(event.versions.get(name)) for name in PACKAGES},
        }

    def _on_run_finished(self, event: events.RunFinished, _: float) -> None:
        self._end_round(None)
        self.end = event
        self._tally.add("mmare_runs_finished_total", (self.study,))

    def _on_run_failed(self, event: events.RunFailed, _: float) -> None:
        self._end_round(event.code)
        self.end = event
        self._tally.add("mmare_runs_failed_total", (self.study, event.code.value))

    def _on_resumed(self, event: events.Resumed, _: float) -> None:
        self._end_round(Ending.STOPPED)
        last = event.resumed_from
        self.rounds = {each: row for each, row in self.rounds.items() if each <= last}
        self.absences = [each for each in self.absences if each.round <= last]
        self.row = self.rounds.get(last) or RoundState(last)
        while self.best_round > last:
            self._best.pop()
        for series in self.curves.values():
            while series and series[-1][0] > last:
                series.pop()

    # Participants

    def _on_roll_call(self, event: events.RollCall, time: float) -> None:
        if event.site in self.calls or len(self.calls) < MOST_SITES:
            self.calls[event.site] = event
        if not event.accepted:
            self.not_admitted[(event.code or Reason.OTHER).value] += 1
            if self._whole:
                self.absences.append(event)
            return
        if not self.round:  # it missed nothing: an earlier attempt had no round
            self.absences = [each for each in self.absences if each.site != event.site]
        name = self._site_names(event.site)
        site = self.sites.setdefault(name, SiteState())
        if name not in self.members:
            self._tally.begin_site(self.study, name)
        self.members.add(name)
        site.last_seen = time
        samples = event.samples or 0
        site.claim(samples if samples >= self.min_count else None)
        patterns = event.counts.get("patterns", {}).get("train", {})
        site.modality_samples = {}
        for slot, modality in enumerate(self.modalities):
            n = sum(count(each) or 0 for pattern, each in patterns.items() if pattern[slot : slot + 1] == "1")
            if self._may_disclose(n, samples) and modality != OTHER:
                site.modality_samples[modality] = n

    def _on_scaling(self, event: events.Scaling, _: float) -> None:
        self.scaling[event.modality] = event

    def _may_disclose(self, part: int, whole: int) -> bool:
        """Whether neither a group nor its complement is too small."""
        return part >= self.min_count and not 0 < whole - part < self.min_count

    def _site(self, event: events.SiteUpdate | events.SiteLeftOut) -> tuple[str, SiteState]:
        """Label and state of a member; sites that are none share one."""
        name = safe(event.site)
        name = name if name in self.members else OTHER
        return name, self.sites.setdefault(name, SiteState())

    # Rounds

    def _on_round_started(self, event: events.RoundStarted, time: float) -> None:
        self._end_round(Ending.STOPPED)
        self.row, self.round_started = RoundState(event.round, started=True), time
        if self._whole:
            self.rounds[event.round] = self.row
        self._tally.add("mmare_rounds_started_total", (self.study,))

    def _end_round(self, ending: str | None) -> None:
        """Count the current round as finished, or as failed if there is an ``ending``."""
        if self.round_started is None:
            return
        self.round_started = None
        if ending is None:
            self._tally.add("mmare_rounds_finished_total", (self.study,))
        else:
            self._tally.add("mmare_rounds_failed_total", (self.study, str(ending)))

    def _on_site_update(self, event: events.SiteUpdate, time: float) -> None:
        name, site = self._site(event)
        site.last_seen, site.answer = time, event
        self._tally.add("mmare_site_received_bytes_total", (self.study, name), max(event.bytes_up, 0))
        self._tally.add("mmare_site_sent_bytes_total", (self.study, name), max(event.bytes_down, 0))
        if event.phase:
            return
        site.missed = 0
        if event.train_loss is not None or event.samples or event.summed:
            site.norm, site.train_loss = event.norm, event.train_loss
            self._row(event.round).updates[event.site] = event
            self._tally.add("mmare_site_updates_total", (self.study, name))

    def _on_site_left_out(self, event: events.SiteLeftOut, time: float) -> None:
        name, site = self._site(event)
        site.left_out[event.code.value] = time
        self._tally.add("mmare_site_left_out_total", (self.study, name, event.code.value))
        if self._whole:
            self.absences.append(event)
        if not event.phase:
            site.missed += 1
            self._row(event.round).left_out.append(event)

    def _on_aggregated(self, event: events.Aggregated, _: float) -> None:
        self._end_round(None)
        row = self._row(event.round)
        row.phases, row.summed_loss = event.seconds, event.train_loss
        self.durations.append(row.seconds)
        for phase, seconds in event.seconds.items():
            self._observe(one_of(PHASES, phase), seconds)
        exposure = {self._block_names(name): count(n) or 0 for name, n in event.exposure.items()}
        samples = event.samples or sum(each.samples for each in row.updates.values())
        self.exposure = {
            block: n for block, n in exposure.items() if n == 0 or self._may_disclose(n, max(samples, n))
        }
        self.starved = {
            block: self.starved.get(block, 0) + 1 if n == 0 else 0 for block, n in exposure.items()
        }
        held = {
            modality for site in row.updates if site in self.calls for modality in self.calls[site].encoders
        }
        for modality in self.modalities:
            self.absent[modality] = 0 if modality in held else self.absent[modality] + 1
        if row.loss is not None:
            self.curves["loss"].append((event.round, row.loss))

    def _on_checkpoint(self, event: events.Checkpoint, time: float) -> None:
        self.checkpoint = (time, event.bytes)
        self.saved = max(self.saved, event.round)
        if event.seconds is not None:
            self._row(event.round).checkpoint_s += event.seconds
            self._observe("checkpoint", event.seconds)

    def _on_checkpoint_damaged(self, event: events.CheckpointDamaged, _: float) -> None:
        self._tally.add("mmare_checkpoints_damaged_total", (self.study,), len(event.files))

    def _observe(self, phase: str, value: object) -> None:
        seconds = number(value)
        if seconds is not None and seconds >= 0:
            self._tally.observe("mmare_round_phase_duration_seconds", (self.study, phase), seconds)

    # Scores

    def _on_validated(self, event: events.Validated, _: float) -> None:
        self._row(event.round).metrics = event.metrics
        self._score("validation", event.metrics)
        if not self.scores["validation"]:
            return
        score = self.scores["validation"].get(headline_of(event.metrics["pooled"]))
        while self._best and self.best_round >= event.round:  # validated again after a resume
            self._best.pop()
        before = self._best[-1][0] if self._best else Selection()
        chosen = before.after(event.round, event.metrics, self._select)
        if chosen.round == event.round:
            self._best.append((chosen, score))
        if score is not None:
            self.curves["score"].append((event.round, score))

    def _on_selected(self, event: events.Selected, _: float) -> None:
        self._end_round(None)  # patience ran out after validation, before aggregation
        self._score("validation", event.metrics)

    def _on_tested(self, event: events.Tested, _: float) -> None:
        self._score("test", event.metrics)

    def _on_states(self, event: events.States, _: float) -> None:
        if self._whole:
            self.states = event.splits

    def _score(self, split: str, metrics: Mapping[str, Any]) -> None:
        self.scores[split] = self._disclosed(metrics["pooled"], POOLED_SCORES)
        for site in self.sites.values():
            site.scores.pop(split, None)
        for name, values in metrics.get("sites", {}).items():
            if safe(name) in self.members:
                self.sites[safe(name)].scores[split] = self._disclosed(values, SITE_SCORES)

    def _disclosed(self, values: Mapping[str, Any], names: tuple[str, ...]) -> dict[str, float]:
        """The metrics of a group of rows; empty if the group is too small."""
        if (count(values.get("n")) or 0) < self.min_count:
            return {}
        found = {name: number(values.get(name)) for name in names}
        return {name: value for name, value in found.items() if value is not None}
