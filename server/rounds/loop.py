"""The round loop: roll call, scaling, rounds with quorum and deadline, selection, test; always resumable."""

from __future__ import annotations

import time
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

from mmare.errors import Ending, RunError
from mmare.models.phases import last_phase_start
from mmare.study.choices import Mode
from mmare.wire.messages import Request, Split, Statistics, Task
from mmare.wire.sharing import keeps_state
from server.rounds.global_model import Averaging, GlobalModel
from server.rounds.requests import Inquiry, Reply
from server.rounds.roll_call import RollCalls
from server.rounds.round_metrics import collect_states, headline, metrics_of
from server.rounds.scaling import check_statistics, set_scaling
from server.rounds.schedule import Plateau, rate_factor
from server.store import events
from server.store.checkpoint import DamagedCheckpointError
from server.store.checkpoints import CheckpointStore, Progress
from server.store.selection import Selection

if TYPE_CHECKING:
    from collections.abc import Mapping
    from pathlib import Path

    from torch import Tensor

    from mmare.study.study import Study
    from server.rounds.fleet import Answer, Fleet
    from server.rounds.roll_call import Member
    from server.store.journal import Journal

__all__ = ["Outcome", "Plan", "RoundLoop"]


@dataclass(frozen=True)
class Outcome:
    """What a finished loop knows.

    Args:
        tensors: Of the selected model.
        progress: After the last round.
        best_round: That was selected.
        metrics: Of validation and test, as in ``result.json``.
    """

    tensors: dict[str, Tensor]
    progress: Progress
    best_round: int
    metrics: dict[str, Any]


@dataclass(frozen=True)
class Plan:
    """Who does what in a run.

    Args:
        mode: Federated: every site trains. Centralised and local: ``trainer`` alone does; validation is on
            the other sites' rows (centralised) or its own (local). The test is on every site's rows.
        trainer: Site id; not used by federated.
        expected_nodes: Nodes to wait for; 0 where unknown.
        subsets: Whether to test every subset of modalities too.
    """

    mode: Mode = Mode.FEDERATED
    trainer: str = ""
    expected_nodes: int = 0
    subsets: bool = False


class RoundLoop:
    """One run over a fleet.

    Args:
        fleet: The nodes.
        study: What is learned.
        folder: Of the run; checkpoints and spooled updates go here.
        journal: Of the run.
        run: Its name, under which sites keep their state.
        plan: Who trains, and what is tested.
    """

    def __init__(
        self,
        fleet: Fleet,
        study: Study,
        folder: Path,
        journal: Journal,
        run: str,
        plan: Plan = Plan(),
    ) -> None:
        self._fleet = fleet
        self._study = study
        self._journal = journal
        self._run = run
        self._plan = plan
        self._checkpoints = CheckpointStore(folder / "checkpoints")
        self._spool = folder / "spool"  # site updates on their way into the average
        self._hand = GlobalModel(study)
        self._averaging = Averaging(self._hand, study, federated=plan.mode is Mode.FEDERATED)
        self._selectable = last_phase_start(self._hand.model.phases())
        self._calls = RollCalls(fleet, study, run, journal)
        self._inquiry: Inquiry
        self._began = self._before = 0.0

    def run(self) -> Outcome:
        """Run to the end, from wherever an earlier attempt got.

        Raises:
            RunError: If too few sites can take part or answer; what was finished is kept.
        """
        self._began = time.perf_counter()
        self._spool.mkdir(parents=True, exist_ok=True)
        expected = self._plan.expected_nodes or self._quorum(self._study.federation.min_sites)
        self._calls.begin(expected)
        self._inquiry = Inquiry(
            self._fleet,
            self._study,
            self._calls,
            self._journal,
            self._spool,
            self._hand.upload,
        )
        self._require_quorum(len(self._trainers()), "took part in the roll call")
        progress = self._resume()
        if progress.round == 0:
            self._scale()
        self._before = progress.seconds.get("total", 0.0)
        progress = _add_seconds(progress, {"setup": time.perf_counter() - self._began})
        if not progress.trained:
            progress = self._train(progress)
        outcome = self._test(progress)
        outcome = replace(outcome, progress=self._timed(outcome.progress))
        for path in self._spool.iterdir():
            path.unlink()
        self._spool.rmdir()
        return outcome

    # Who does what

    def _trainers(self) -> dict[str, Member]:
        with_rows = {site: member for site, member in self._calls.members.items() if member.call.samples > 0}
        if self._plan.mode is Mode.FEDERATED:
            return with_rows
        return {site: member for site, member in with_rows.items() if site == self._plan.trainer}

    def _evaluators(self) -> dict[str, Member]:
        """Sites whose rows count: all but the one that only pools the others' train rows."""
        pools = self._plan.mode is Mode.CENTRALISED and len(self._calls.members) > 1
        return {
            site: member
            for site, member in self._calls.members.items()
            if not (pools and site == self._plan.trainer)
        }

    def _validators(self) -> dict[str, Member]:
        return self._trainers() if self._plan.mode is Mode.LOCAL else self._evaluators()

    def _quorum(self, wanted: int) -> int:
        return wanted if self._plan.mode is Mode.FEDERATED else 1

    def _require_quorum(self, found: int, what: str) -> None:
        wanted = self._quorum(self._study.federation.min_sites)
        if found < wanted:
            raise RunError(
                f"{found} sites with training rows {what}, expected at least {wanted} "
                "(federation.min_sites); the journal names the others and why",
                Ending.QUORUM,
            )

    # Before the rounds

    def _resume(self) -> Progress:
        """Load the newest whole checkpoint that the sites can go on from too."""
        damaged = self._checkpoints.damaged()
        if damaged:
            self._journal.write(events.CheckpointDamaged(files=tuple(damaged)))
        usable = self._checkpoints.usable()
        chosen = next((pair for pair in usable if self._sites_hold(pair[1])), None)
        if chosen is None and usable and usable[0][1].round > 1:  # after one a fresh start costs no more
            chosen = usable[0]
        if chosen is None:
            if self._journal.taken_up:
                self._journal.write(events.Resumed(round=0, resumed_from=0))
            return Progress()
        tensors, progress = chosen
        self._hand.restore(tensors["model"])
        self._averaging.restore(tensors)
        self._journal.write(events.Resumed(round=progress.round, resumed_from=progress.round))
        if progress.trained:
            return progress
        return self._forget(
            progress, {site for site, held in self._held_rounds(progress).items() if not held}
        )

    def _forget(self, progress: Progress, lost: set[str]) -> Progress:
        """Count no longer on optimiser states that sites have lost: they go on with a fresh optimiser."""
        if not lost:
            return progress
        self._journal.write(events.OptimizerStateLost(round=progress.round, sites=tuple(sorted(lost))))
        kept = {site: number for site, number in progress.state_rounds.items() if site not in lost}
        return replace(progress, state_rounds=kept)

    def _held_rounds(self, progress: Progress) -> dict[str, bool]:
        """Per trainer whether it kept the state that the checkpoint counts on."""
        if not keeps_state(self._study):
            return {}
        return {
            site: progress.state_rounds[site] in member.call.held_rounds
            for site, member in self._trainers().items()
            if site in progress.state_rounds
        }

    def _sites_hold(self, progress: Progress) -> bool:
        return progress.trained or all(self._held_rounds(progress).values())

    def _scale(self) -> None:
        trainers = self._trainers()
        request = Request(Task.STATISTICS, self._run, self._study.to_dict())
        found: dict[str, Statistics] = {}

        def check(site: str, answer: Answer) -> None:
            statistics = answer.read(Statistics)
            check_statistics(statistics, self._study, self._calls.members[site].call.samples)
            found[site] = statistics

        self._inquiry.ask(dict.fromkeys(trainers, request), b"", 0, check)
        self._require_quorum(len(found), "released scaling moments")
        set_scaling(self._hand.model, found, self._study, self._journal)
        self._hand.scaled()

    # Rounds

    def _train(self, progress: Progress) -> Progress:
        """Rounds until the last one or until patience runs out, then the selection is final."""
        training = self._study.training
        selection = Selection.from_dict(progress.selection) if progress.selection else Selection()
        while progress.round < training.rounds:
            number = progress.round + 1
            progress = self._let_in(number, progress)
            self._journal.write(events.RoundStarted(round=number))
            began = time.perf_counter()
            replies, bytes_down = self._round(number, progress)
            waited = time.perf_counter()
            if progress.round >= self._selectable:
                progress, selection = self._validated(progress, selection, replies)
                if selection.exhausted(training.patience):
                    break
            evaluated = time.perf_counter()
            progress = self._forget(progress, self._inquiry.without_state)
            trained = {site: reply for site, reply in replies.items() if reply.spooled is not None}
            self._require_quorum(len(trained), f"sent a good update in round {number}")
            exposure = self._averaging.step(trained, progress.own_losses)
            aggregated = time.perf_counter()
            phases = {
                "wait": waited - began,
                "evaluate": evaluated - waited,
                "aggregate": aggregated - evaluated,
            }
            progress = replace(
                _add_seconds(progress, {"rounds": aggregated - began, "train": _train_seconds(trained)}),
                round=number,
                selection=selection.to_dict(),
                state_rounds={**progress.state_rounds, **dict.fromkeys(trained, number)},
                own_losses=self._averaging.own_losses(trained),
                bytes_down=bytes_down,
                bytes_up=sum(reply.size for reply in replies.values()),
            )
            self._journal.write(events.Aggregated(round=number, seconds=phases, exposure=exposure))
            self._save(progress)
        else:
            requests = {
                site: self._request(
                    Task.EVALUATE,
                    progress.round,
                    splits=(Split.VAL,),
                    state_round=progress.state_rounds.get(site),
                )
                for site in self._validators()
            }
            replies, _ = self._collect(requests, progress.round)
            progress, selection = self._validated(progress, selection, replies)
        progress = replace(progress, selection=selection.to_dict(), trained=True)
        self._save(progress)
        return progress

    def _let_in(self, number: int, progress: Progress) -> Progress:
        """Take in sites that were away at the roll call, as after a cut or a restart of theirs."""
        late = self._calls.look(number)
        held = self._held_rounds(progress)
        return self._forget(progress, {site for site in late if not held.get(site, True)})

    def _save(self, progress: Progress) -> None:
        began = time.perf_counter()
        file, size = self._checkpoints.save(
            {"model": self._hand.packed(), **self._averaging.tensors()},
            self._timed(progress),
        )
        seconds = time.perf_counter() - began
        self._journal.write(events.Checkpoint(round=progress.round, file=file, bytes=size, seconds=seconds))

    def _round(self, number: int, progress: Progress) -> tuple[dict[str, Reply], int]:
        """One message to every site: evaluate what it receives, then train where it trains."""
        splits = (Split.VAL,) if number > self._selectable else ()
        factor = rate_factor(self._study.training, number, Plateau.from_dict(progress.plateau))
        trainers, validators = self._trainers(), self._validators()
        requests: dict[str, Request] = {}
        for site in sorted({*trainers, *(validators if splits else {})}):
            trains = site in trainers
            requests[site] = self._request(
                Task.TRAIN if trains else Task.EVALUATE,
                number,
                splits=splits if site in validators else (),
                train=trains,
                state_round=progress.state_rounds.get(site),
                keep_round=progress.best_states.get(site),
                rate_factor=factor,
                gap=trains and self._averaging.measures_gap,
            )
        return self._collect(requests, number)

    def _request(self, task: Task, number: int, **details: Any) -> Request:  # noqa: ANN401 - fields of Request
        return Request(
            task,
            self._run,
            self._study.to_dict(),
            round=number,
            layout=self._hand.layout.fingerprint,
            **details,
        )

    def _collect(self, requests: Mapping[str, Request], number: int) -> tuple[dict[str, Reply], int]:
        return self._inquiry.updates(requests, self._hand.packed().numpy().tobytes(), number)

    def _validated(
        self, progress: Progress, selection: Selection, replies: Mapping[str, Reply]
    ) -> tuple[Progress, Selection]:
        """Note how the model after a round did; keep it if it is the best."""
        number = progress.round
        updates = {site: reply.update for site, reply in replies.items()}
        metrics = headline(collect_states(updates, Split.VAL, self._study), self._study)
        self._journal.write(events.Validated(round=number, metrics=metrics))
        chosen = selection.after(number, metrics, self._study.training.select)
        plateau = Plateau.from_dict(progress.plateau).after(metrics["pooled"]["log_loss"])
        progress = replace(progress, plateau=plateau.to_dict())
        if chosen.round == number:
            self._checkpoints.save_best(number)
            progress = replace(progress, best_states=progress.state_rounds)
        return progress, chosen

    def _timed(self, progress: Progress) -> Progress:
        """With the seconds since the very start, earlier attempts included."""
        total = self._before + time.perf_counter() - self._began
        return replace(progress, seconds={**progress.seconds, "total": total})

    # After the rounds

    def _test(self, progress: Progress) -> Outcome:
        """The selected model on every site's test rows; sites then forget what they kept for the run."""
        best = Selection.from_dict(progress.selection).round
        try:
            self._hand.restore(self._checkpoints.load_best(best)["model"])
        except DamagedCheckpointError as error:
            raise RunError(
                f"the selected model cannot be read ({error}); run again to resume", Ending.CHECKPOINT
            ) from None
        validators, testers = self._validators(), self._evaluators()
        requests = {
            site: self._request(
                Task.EVALUATE,
                best,
                splits=tuple(
                    split
                    for split, sites in ((Split.VAL, validators), (Split.TEST, testers))
                    if site in sites
                ),
                patterns=True,
                subsets=self._plan.subsets,
                state_round=progress.best_states.get(site),
                final=True,
            )
            for site in self._calls.members
        }
        self._inquiry.begin_test()
        replies, _ = self._collect(requests, best)
        self._require_quorum(len(replies), "answered the test")
        updates = {site: reply.update for site, reply in replies.items()}
        metrics = {
            "validation": metrics_of(collect_states(updates, Split.VAL, self._study), self._study),
            "test": metrics_of(collect_states(updates, Split.TEST, self._study), self._study),
        }
        self._journal.write(events.Selected(round=best, metrics=metrics["validation"]))
        self._journal.write(events.Tested(round=best, metrics=metrics["test"]))
        return Outcome(
            self._hand.copy(),
            progress,
            best,
            metrics,
        )


def _train_seconds(replies: Mapping[str, Reply]) -> float:
    return sum(reply.update.seconds.get("train", 0.0) for reply in replies.values())


def _add_seconds(progress: Progress, spent: Mapping[str, float]) -> Progress:
    seconds = {**progress.seconds}
    for phase, value in spent.items():
        seconds[phase] = seconds.get(phase, 0.0) + value
    return replace(progress, seconds=seconds)
