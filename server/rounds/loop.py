"""The round loop: roll call, scaling, rounds with quorum and deadline, selection, test; always resumable."""

from __future__ import annotations

import math
import time
from dataclasses import replace
from typing import TYPE_CHECKING, Any

from mmare.errors import Ending, RunError
from mmare.host.files import own_folder
from mmare.models.phases import last_phase_start
from mmare.study.choices import Mode
from mmare.study.schedule import Plateau, rate_factor
from mmare.wire.messages import Request, SecureSum, Split, Statistics, Task
from mmare.wire.sharing import every_round, keeps_state
from mmare.wire.sums import moments_of
from server.rounds.answer_sizes import most_header
from server.rounds.collected import Collected, Replies, SumOf
from server.rounds.global_model import Averaging, GlobalModel
from server.rounds.plan import Outcome, Plan
from server.rounds.requests import Inquiry
from server.rounds.roll_call import RollCalls
from server.rounds.round_metrics import final_metrics, headline
from server.rounds.scaling import check_statistics, set_cuts, set_scaling
from server.rounds.secure_sums import SecureSums
from server.store import events
from server.store.checkpoint import DamagedCheckpointError
from server.store.checkpoints import CheckpointStore, Progress
from server.store.selection import Selection, selection_note

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping
    from pathlib import Path

    from mmare.package.start import StartModel
    from mmare.study.study import Study
    from server.rounds.fleet import Answer, Fleet
    from server.rounds.roll_call import Member
    from server.store.journal import Journal

__all__ = ["RoundLoop"]


class RoundLoop:
    """One run over a fleet.

    Args:
        folder: Run folder, for checkpoints and spooled updates.
        run: Name under which sites keep their state.
        start: Model that the study starts from, if it does.
        keeps: Whether a round is saved, by the run's name; a resume repeats those that are not.
    """

    def __init__(
        self,
        fleet: Fleet,
        study: Study,
        folder: Path,
        journal: Journal,
        run: str,
        plan: Plan,
        start: StartModel | None = None,
        keeps: Callable[[str, int], bool] = every_round,
    ) -> None:
        self._fleet, self._journal = fleet, journal
        self._study, self._plan = study, plan
        self._run, self._keeps = run, keeps
        self._checkpoints = CheckpointStore(folder / "checkpoints")
        self._spool = folder / "spool"  # site updates waiting to be averaged
        self._global = GlobalModel(study, start)
        self._tables, self._layout = study.to_dict(), self._global.layout.fingerprint
        self._averaging = Averaging(self._global, study, federated=plan.mode is Mode.FEDERATED)
        # Rounds before it are not validated. Under differential privacy each validation would cost budget.
        private = study.privacy.dp is not None
        self._selectable = study.training.rounds if private else last_phase_start(self._global.model.phases())
        encoders, round_bytes = self._global.graft.encoders, self._global.round_bytes
        self._calls = RollCalls(fleet, study, run, journal, encoders, round_bytes=round_bytes)
        self._is_secure = study.privacy.secure_sum and plan.mode is Mode.FEDERATED
        self._inquiry: Inquiry
        self._sums: SecureSums
        self._began = self._seconds_before = 0.0

    def run(self) -> Outcome:
        """Run to the end, resuming where an earlier attempt stopped.

        Raises:
            RunError: If too few sites take part or answer; finished rounds are kept.
        """
        self._began = time.perf_counter()
        own_folder(self._spool)
        expected = self._plan.expected_nodes or self._quorum(self._study.federation.min_sites)
        self._calls.begin(expected)
        self._inquiry = Inquiry(
            self._fleet, self._study, self._calls, self._journal, self._spool, self._global.upload
        )
        self._sums = SecureSums(self._inquiry, self._calls, self._study, self._global.model, self._journal)
        self._require_quorum(len(self._trainers()), "took part in the roll call")
        self._require_shares(len(self._trainers()))
        progress = self._resume()
        if progress.round == 0:
            self._scale()
        self._seconds_before = progress.seconds.get("total", 0.0)
        progress = _add_seconds(progress, {"setup": time.perf_counter() - self._began})
        if not progress.trained:
            progress = self._train(progress)
        outcome = self._test(progress)
        outcome = replace(outcome, progress=self._timed(progress))
        for path in self._spool.iterdir():
            path.unlink()
        self._spool.rmdir()
        return outcome

    # Roles

    def _trainers(self) -> dict[str, Member]:
        with_rows = {site: member for site, member in self._calls.members.items() if member.call.samples > 0}
        if self._plan.mode is Mode.FEDERATED:
            return with_rows
        return {site: member for site, member in with_rows.items() if site == self._plan.trainer}

    def _evaluators(self) -> dict[str, Member]:
        """All sites but the one that only pools the others' training rows."""
        members = self._calls.members
        if self._plan.mode is not Mode.CENTRALISED or len(members) == 1:
            return members
        return {site: member for site, member in members.items() if site != self._plan.trainer}

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

    def _require_shares(self, found: int) -> None:
        most = self._study.federation.max_share
        if self._plan.mode is Mode.FEDERATED and found * most < 1:
            raise RunError(
                f"{found} sites with training rows, which cannot all have a share of at most {most:g} "
                f"(federation.max_share); expected at least {math.ceil(1 / most)}",
                Ending.QUORUM,
            )

    # Before the rounds

    def _resume(self) -> Progress:
        """Load the newest intact checkpoint whose optimiser states the sites still hold."""
        damaged = self._checkpoints.damaged()
        if damaged:
            self._journal.write(events.CheckpointDamaged(files=tuple(damaged)))
        usable = self._checkpoints.usable()
        chosen = next((pair for pair in usable if self._sites_hold(pair[1])), None)
        if chosen is None and usable and usable[0][1].round > 1:  # repeating a single round costs no more
            chosen = usable[0]
        if chosen is None:
            if self._journal.existed:
                self._journal.write(events.Resumed(round=0, resumed_from=0))
            return Progress()
        tensors, progress = chosen
        self._global.restore(tensors["model"])
        self._averaging.restore(tensors)
        self._journal.write(events.Resumed(round=progress.round, resumed_from=progress.round))
        if progress.trained:
            return progress
        lost = {site for site, held in self._holds_state(progress).items() if not held}
        return self._without_states(progress, lost)

    def _without_states(self, progress: Progress, lost: set[str]) -> Progress:
        """Drop optimiser states that sites have lost; these sites continue with a fresh optimiser."""
        if not lost:
            return progress
        self._journal.write(events.OptimizerStateLost(round=progress.round, sites=tuple(sorted(lost))))
        kept = {site: number for site, number in progress.state_rounds.items() if site not in lost}
        return replace(progress, state_rounds=kept)

    def _holds_state(self, progress: Progress) -> dict[str, bool]:
        """Per trainer, whether it kept the optimiser state that the checkpoint relies on."""
        if not keeps_state(self._study):
            return {}
        return {
            site: progress.state_rounds[site] in member.call.held_rounds
            for site, member in self._trainers().items()
            if site in progress.state_rounds
        }

    def _sites_hold(self, progress: Progress) -> bool:
        return progress.trained or all(self._holds_state(progress).values())

    def _scale(self) -> None:
        trainers = self._trainers()
        request = Request(Task.STATISTICS, self._run, self._study.to_dict())
        if self._is_secure:
            request = replace(request, sum=SecureSum.MOMENTS)
            summed = self._sums.collect(dict.fromkeys(trainers, request), b"", 0)
            pooled = moments_of(summed.values, self._study)
            self._learn_scaling({"": pooled})
            return
        found: dict[str, Statistics] = {}

        def check(site: str, answer: Answer) -> None:
            statistics = answer.read(Statistics, most_header(self._study, request))
            check_statistics(statistics, self._study, self._calls.members[site].call.samples)
            found[site] = statistics

        self._inquiry.ask(dict.fromkeys(trainers, request), b"", 0, check)
        self._require_quorum(len(found), "released scaling moments")
        self._learn_scaling(found)

    def _learn_scaling(self, found: Mapping[str, Statistics]) -> None:
        fixed = self._global.graft.fixed
        set_scaling(self._global.model, found, self._study, self._journal, fixed)
        if not any(name.startswith("task.") for name in fixed):
            set_cuts(self._global.model, found, self._journal)
        self._global.invalidate()

    # Rounds

    def _train(self, progress: Progress) -> Progress:
        """Train until the last round or until patience runs out; the selection is final afterwards."""
        training = self._study.training
        selection = Selection.from_dict(progress.selection) if progress.selection else Selection()
        while progress.round < training.rounds:
            number = progress.round + 1
            progress = self._admit_late(number, progress)
            self._journal.write(events.RoundStarted(round=number))
            began = time.perf_counter()
            factor = rate_factor(training, number, Plateau.from_dict(progress.plateau))
            collected = self._round(number, progress, factor)
            waited = time.perf_counter()
            if progress.round >= self._selectable:
                progress, selection = self._validated(progress, selection, collected)
                if selection.exhausted(training.patience):
                    break
            evaluated = time.perf_counter()
            progress = self._without_states(progress, self._inquiry.without_state)
            self._require_quorum(len(collected.trained), f"sent a good update in round {number}")
            exposure = collected.step(self._averaging, progress.own_losses, factor)
            aggregated = time.perf_counter()
            phases = {
                "wait": waited - began,
                "evaluate": evaluated - waited,
                "aggregate": aggregated - evaluated,
            }
            progress = replace(
                _add_seconds(progress, {"rounds": aggregated - began, "train": collected.train_seconds}),
                round=number,
                selection=selection.to_dict(),
                state_rounds={**progress.state_rounds, **dict.fromkeys(collected.trained, number)},
                own_losses=collected.own_losses(self._averaging),
                bytes_down=collected.bytes_down,
                bytes_up=collected.bytes_up,
            )
            self._journal.write(
                events.Aggregated(round=number, seconds=phases, exposure=exposure, **collected.summed)
            )
            self._save(progress)
        else:
            requests = {
                site: self._request(
                    Task.EVALUATE,
                    progress.round + 1,  # as if there were another round: each request of a run is its own
                    splits=(Split.VAL,),
                    state_round=progress.state_rounds.get(site),
                )
                for site in self._validators()
            }
            collected = self._collect(requests, progress.round, SecureSum.VALIDATION)
            progress, selection = self._validated(progress, selection, collected)
        progress = replace(progress, selection=selection.to_dict(), trained=True)
        self._save(progress)
        return progress

    def _admit_late(self, number: int, progress: Progress) -> Progress:
        """Admit sites that were away at the roll call."""
        late = self._calls.admit_late(number)
        holds = self._holds_state(progress)
        return self._without_states(progress, {site for site in late if not holds.get(site, True)})

    def _save(self, progress: Progress) -> None:
        if not progress.trained and not self._keeps(self._run, progress.round):
            return
        began = time.perf_counter()
        tensors = {"model": self._global.packed(), **self._averaging.tensors()}
        file, size = self._checkpoints.save(tensors, self._timed(progress))
        seconds = time.perf_counter() - began
        self._journal.write(events.Checkpoint(round=progress.round, file=file, bytes=size, seconds=seconds))

    def _round(self, number: int, progress: Progress, factor: float) -> Collected:
        """Ask every site to evaluate the received model and, if it is a trainer, to train from it."""
        splits = (Split.VAL,) if number > self._selectable else ()
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
        return self._collect(requests, number, SecureSum.ROUND)

    def _request(self, task: Task, number: int, **details: Any) -> Request:  # noqa: ANN401 - fields of Request
        return Request(
            task,
            self._run,
            self._tables,
            round=number,
            layout=self._layout,
            **details,
        )

    def _collect(self, requests: Mapping[str, Request], number: int, kind: SecureSum) -> Collected:
        payload = self._global.packed().numpy().tobytes()
        if not self._is_secure:
            return Replies(self._study, *self._inquiry.updates(requests, payload, number))
        requests = {site: replace(request, sum=kind) for site, request in requests.items()}
        phase = "test" if kind is SecureSum.TEST else ""
        summed = self._sums.collect(requests, payload, number, phase)
        return SumOf(self._study, summed, tuple(site for site in summed.sites if requests[site].train))

    def _validated(
        self, progress: Progress, selection: Selection, collected: Collected
    ) -> tuple[Progress, Selection]:
        """Log the validation of the last round's model; keep the model if it is the best."""
        number = progress.round
        metrics = headline(collected.states(Split.VAL), self._study)
        self._journal.write(events.Validated(round=number, metrics=metrics))
        chosen = selection.after(number, metrics, self._study.training.select)
        plateau = Plateau.from_dict(progress.plateau).after(metrics["pooled"]["log_loss"])
        progress = replace(progress, plateau=plateau.to_dict())
        if chosen.round == number:
            self._checkpoints.hold_best(number, {"model": self._global.packed()})
            progress = replace(progress, best_states=progress.state_rounds)
        return progress, chosen

    def _timed(self, progress: Progress) -> Progress:
        """With the total seconds of all attempts so far."""
        total = self._seconds_before + time.perf_counter() - self._began
        return replace(progress, seconds={**progress.seconds, "total": total})

    # After the rounds

    def _test(self, progress: Progress) -> Outcome:
        """Test the selected model at every site; sites then delete what they kept for the run."""
        selection = Selection.from_dict(progress.selection)
        best = selection.round
        try:
            self._global.restore(self._checkpoints.load_best(best)["model"])
        except DamagedCheckpointError as error:
            raise RunError(
                f"the selected model cannot be read ({error}); run again to resume", Ending.CHECKPOINT
            ) from None
        roles = ((Split.VAL, self._validators()), (Split.TEST, self._evaluators()))
        requests = {
            site: self._request(
                Task.EVALUATE,
                best,
                splits=tuple(split for split, sites in roles if site in sites),
                patterns=True,
                subsets=self._plan.subsets,
                calibration=self._plan.calibration,
                shapley=self._plan.shapley,
                state_round=progress.best_states.get(site),
                final=True,
            )
            for site in self._calls.members
        }
        self._inquiry.begin_test()
        collected = self._collect(requests, best, SecureSum.TEST)
        self._require_quorum(len(collected.sites), "answered the test")
        states = {"validation": collected.states(Split.VAL), "test": collected.states(Split.TEST)}
        metrics = final_metrics(states, self._study)
        note = selection_note(selection, metrics["validation"], self._study.training.select, self._selectable)
        self._journal.write(events.Selected(round=best, metrics=metrics["validation"], note=note))
        self._journal.write(events.Tested(round=best, metrics=metrics["test"]))
        kept = {name: found.kept(self._study).to_dict() for name, found in states.items()}
        self._journal.write(events.States(round=best, splits=kept))
        return Outcome(self._global.copy(), progress, best, metrics, note)


def _add_seconds(progress: Progress, spent: Mapping[str, float]) -> Progress:
    seconds = {**progress.seconds}
    for phase, value in spent.items():
        seconds[phase] = seconds.get(phase, 0.0) + value
    return replace(progress, seconds=seconds)
