"""The loop that runs a sweep: claim, dispatch, watch, requeue. It never carries results."""

from __future__ import annotations

import time
import uuid
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING

from dllm_sweep import policy
from dllm_sweep.errors import Fenced
from dllm_sweep.progress import Display, Subject
from dllm_sweep.records import Claim, EndReason, Lease, TrialRow, TrialState
from dllm_sweep.spec import Unit
from dllm_sweep.workers import failures
from dllm_sweep.workers.messages import Death, Finished, Outcome

if TYPE_CHECKING:
    from dllm_sweep.db.interface import Store
    from dllm_sweep.workers.pool import Pool

LEASE_S = 60.0
"""Seconds without a renewal after which another controller may take a sweep over."""
_RENEW_S = LEASE_S / 6
_TICK_S = 1.0
_BUDGET_FACTOR = 4.0
_SHORTEST_BUDGET_S = 30 * 60.0
_DEATHS_LIMIT = 3
"""Deaths of processes in one unit, on machines that live on, after which the unit is at fault."""


@dataclass(frozen=True, kw_only=True)
class RunSummary:
    """How a run of a sweep ended: trials by state, and whether the user interrupted it."""

    succeeded: int
    failed: int
    cancelled: int
    pending: int
    interrupted: bool
    wall_s: float


@dataclass
class Stop:
    """What the user asked for; signal handlers set it, the loop reads it."""

    drain: bool = False
    """Finish the units in flight, then stop."""
    now: bool = False
    """Give the trials back and stop."""


@dataclass
class _Flight:
    """A trial on a worker."""

    claim: Claim
    estimated_s: float
    unit: Unit
    remaining: list[Unit]
    started_s: float = 0.0


class Controller:
    """Runs what is pending of one sweep on a pool of workers.

    Args:
        store: The truth; every decision is a transition there.
        pool: The workers.
        lease: The right to run the sweep.
        display: Told of everything that happens.
        stop: Set from outside to end early.
        clock: Seconds that never run backwards.
    """

    def __init__(
        self,
        *,
        store: Store,
        pool: Pool,
        lease: Lease,
        display: Display,
        stop: Stop,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._store, self._pool, self._lease = store, pool, lease
        self._display, self._stop, self._clock = display, stop, clock
        self._flights: dict[int, _Flight] = {}
        self._resident: dict[int, str] = {}
        self._faults: list[policy.Fault] = []
        self._deaths: Counter[tuple[int, str]] = Counter()
        self._held: frozenset[tuple[str, str]] = frozenset()
        self._paused = False
        self._renewed_s = clock()

    def run(self) -> RunSummary:
        """Run until nothing is left that may start, or the user stops it.

        Raises:
            Fenced: If another controller has taken the sweep over.
            StoreError: If the store cannot be reached.
        """
        started_s = self._clock()
        trials = self._trials()
        self._display.start(
            units=sum(trial.units for trial in trials if trial.state is not TrialState.SKIPPED),
            done=sum(trial.units_done for trial in trials),
            workers=self._pool.size,
        )
        try:
            while self._step():
                self._renew()
        finally:
            self._display.stop()
        return self._summary(self._clock() - started_s)

    def _step(self) -> bool:
        """Do one round; False when there is nothing more to do."""
        if self._stop.now:
            return False
        waiting_s = None if self._stop.drain else self._fill()
        if self._flights:
            for finished in self._pool.wait(_TICK_S):
                self._land(finished)
            self._end_overdue()
            return True
        if waiting_s is None:
            return False
        self._tell_if_paused()
        time.sleep(min(waiting_s, _TICK_S) or _TICK_S)
        return True

    def _tell_if_paused(self) -> None:
        paused = self._store.sweep(self._lease.sweep).paused
        if paused and not self._paused:
            self._display.note("paused: `dllm-sweep pause --off` goes on, Ctrl-C stops")
        self._paused = paused

    def _fill(self) -> float | None:
        """Give idle workers their next trial; seconds until more may start, None if none will."""
        trials = self._trials()
        for worker in range(self._pool.size):
            if worker in self._flights:
                continue
            resident = self._resident.get(worker)
            while trial := policy.choose(trials, resident_model=resident, held=self._held):
                if self._claim(worker, trial):
                    trials = self._trials()
                    break
                # Cancelled meanwhile, or the sweep is paused: asked again in the next round.
                trials = tuple(other for other in trials if other.id != trial.id)
            if worker not in self._flights:
                break
        return policy.next_start_s(self._trials(), self._held)

    def _claim(self, worker: int, trial: TrialRow) -> bool:
        host = self._pool.host(worker)
        claim = self._store.claim(self._lease, trial.id, uuid.uuid4().hex, host)
        if claim is None:
            return False
        self._resident[worker] = trial.model
        self._begin(worker, claim, trial.estimated_s)
        return True

    def _begin(self, worker: int, claim: Claim, estimated_s: float) -> None:
        first, *rest = [unit for unit in claim.trial.units() if unit.key not in claim.done]
        flight = _Flight(claim=claim, estimated_s=estimated_s, unit=first, remaining=rest)
        self._flights[worker] = flight
        self._submit(worker, flight)

    def _submit(self, worker: int, flight: _Flight) -> None:
        flight.started_s = self._clock()
        self._display.unit_started(worker, Subject.of(flight.claim), flight.unit)
        self._pool.submit(worker, flight.claim, flight.unit)

    def _land(self, finished: Finished) -> None:
        flight = self._flights[finished.worker]
        if isinstance(finished.result, Death):
            self._died(finished.worker, flight, finished.result)
        else:
            self._ended(finished.worker, flight, finished.result)

    def _ended(self, worker: int, flight: _Flight, outcome: Outcome) -> None:
        label = flight.claim.label
        if outcome.fresh_process:
            self._replace(worker)
        if outcome.failure is None and outcome.state is not None:
            self._display.unit_done(worker, Subject.of(flight.claim), outcome.unit, outcome.wall_s)
            self._advance(worker, flight, outcome.state)
            return
        del self._flights[worker]
        if outcome.state is None or outcome.failure is None:
            self._display.note(f"{label}: dropped, somebody else owns this trial now")
            return
        self._count(flight, outcome.failure.fingerprint, outcome.state)
        self._display.trial_ended(Subject.of(flight.claim), outcome.state, outcome.failure)

    def _advance(self, worker: int, flight: _Flight, state: TrialState) -> None:
        if state is not TrialState.RUNNING:
            del self._flights[worker]
            self._display.trial_ended(Subject.of(flight.claim), state, None)
            return
        if self._stop.drain:
            # The trial stays RUNNING in the store until the lease is given back.
            del self._flights[worker]
            return
        if flight.remaining:
            flight.unit = flight.remaining.pop(0)
            self._submit(worker, flight)
            return
        self._again(worker, flight)

    def _again(self, worker: int, flight: _Flight) -> None:
        """Run the units that were superseded since the claim was made, because the trial had to
        be quantized again and got other weights."""
        old = flight.claim
        claim = self._store.claim(self._lease, old.trial_id, old.claim_id, self._pool.host(worker))
        del self._flights[worker]
        if claim is not None:
            self._begin(worker, claim, flight.estimated_s)

    def _died(self, worker: int, flight: _Flight, death: Death) -> None:
        self._replace(worker)
        place = (flight.claim.trial_id, flight.unit.key)
        self._deaths[place] += not death.machine_lost
        if death.reason is EndReason.LOST and self._deaths[place] >= _DEATHS_LIMIT:
            # Not bad luck any more: trying on would cost a process each time and end the same.
            message = f"{death.message}; {_DEATHS_LIMIT} times in this unit"
            self._end(worker, flight, EndReason.ERROR, message)
            return
        self._end(worker, flight, death.reason, death.message)

    def _end_overdue(self) -> None:
        for worker, flight in list(self._flights.items()):
            budget_s = max(_BUDGET_FACTOR * flight.estimated_s, _SHORTEST_BUDGET_S)
            if self._clock() - flight.started_s <= budget_s:
                continue
            self._replace(worker)
            message = f"unit {flight.unit.key} ran longer than {budget_s:.0f} s"
            self._end(worker, flight, EndReason.TIMEOUT, message)

    def _end(self, worker: int, flight: _Flight, reason: EndReason, message: str) -> None:
        del self._flights[worker]
        log = self._pool.log_path(flight.claim)
        failure = failures.lost(reason, message, flight.unit, log)
        label = flight.claim.label
        try:
            state = self._store.end_attempt(flight.claim, failure, log_path=str(log))
        except Fenced:
            self._display.note(f"{label}: dropped, somebody else owns this trial now")
            return
        self._count(flight, failure.fingerprint, state)
        self._display.trial_ended(Subject.of(flight.claim), state, failure)

    def _count(self, flight: _Flight, fingerprint: str, state: TrialState) -> None:
        """Hold a model and method back once the same fault has ended three of its trials."""
        if state is not TrialState.FAILED:
            return
        trial = flight.claim.trial
        claim, model = flight.claim, str(trial.model)
        self._faults.append(
            policy.Fault(
                trial_id=claim.trial_id, model=model, method=trial.method, fingerprint=fingerprint
            )
        )
        held = policy.held_back(self._faults)
        for model, method in held - self._held:
            self._display.note(
                f"{model} {method}: three trials failed in the same place ({fingerprint});"
                " the others wait until you run `dllm-sweep resume`"
            )
        self._held = held

    def _replace(self, worker: int) -> None:
        self._resident.pop(worker, None)
        self._pool.replace(worker)

    def _renew(self) -> None:
        if self._clock() - self._renewed_s >= _RENEW_S:
            self._store.renew_lease(self._lease, seconds=LEASE_S)
            self._renewed_s = self._clock()

    def _trials(self) -> tuple[TrialRow, ...]:
        return self._store.trials(self._lease.sweep_id)

    def _summary(self, wall_s: float) -> RunSummary:
        states = [trial.state for trial in self._trials()]
        return RunSummary(
            succeeded=states.count(TrialState.SUCCEEDED),
            failed=states.count(TrialState.FAILED),
            cancelled=states.count(TrialState.CANCELLED),
            pending=states.count(TrialState.PENDING) + states.count(TrialState.RUNNING),
            interrupted=self._stop.drain or self._stop.now,
            wall_s=wall_s,
        )
