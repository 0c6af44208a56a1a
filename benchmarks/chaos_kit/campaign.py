"""A campaign: sweeps one after the other, faults in each, and an account of what came of it."""

from __future__ import annotations

import random
import time
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from chaos_kit.bench import FIRED
from chaos_kit.inject import Injector
from chaos_kit.kinds import Kind
from chaos_kit.ledger import Account, account
from chaos_kit.site import Controllers, Database, RayCluster, files_of
from chaos_kit.sweeps import SOURCE, Rules, planned, undisturbed
from dllm_sweep.db.store import SqlStore
from dllm_sweep.errors import SweepError
from dllm_sweep.records import PlannedTrial, TrialState

FAULTS_A_ROUND = 84
TRIALS, DRIFTING = 28, 6
_TICK_S = 0.25
_STUCK_S = 240.0
"""Without any progress for this long, a round has failed."""


_PATIENCE_S = 60.0
"""Faults wait this long for the work to catch up with them."""


class Stuck(Exception):
    """A round that does not end."""


@dataclass
class Report:
    """What a campaign did.

    Attributes:
        injected: Faults by kind.
        totals: The sum of all rounds' accounts.
        rounds: How many sweeps were run to their end.
        exits: Exit codes of controllers, with how often.
        wall_s: How long it took.
    """

    injected: Counter[str] = field(default_factory=Counter)
    totals: Account = field(default_factory=Account)
    rounds: int = 0
    exits: Counter[int] = field(default_factory=Counter)
    wall_s: float = 0.0


class Campaign:
    """Runs rounds until all faults of a deck were done.

    Args:
        database: The store's.
        cluster: The nodes.
        folder: For files and logs.
        seed: Of all choices.
        tell: Told of each round.
    """

    def __init__(
        self,
        database: Database,
        cluster: RayCluster,
        folder: Path,
        seed: int,
        tell: Callable[[str], None],
    ) -> None:
        self._database, self._cluster, self._seed = database, cluster, seed
        self._files, self._tell = files_of(database.url, folder), tell
        self._dice = random.Random(f"{seed}/rounds")
        logs = folder / "logs"
        logs.mkdir()
        (self._files / "begun").mkdir(parents=True)
        self._controllers = Controllers(database.url, cluster.address, folder, logs)
        self._store = database.store()
        self._rules = Rules(self._files)
        self.report = Report()

    def run(self, deck: Sequence[Kind], until_s: float) -> None:
        """Do all faults of a deck, a round after the other, as long as there is time.

        Raises:
            Stuck: If a round does not end.
        """
        started_s = time.monotonic()
        left = list(deck)
        while left and time.monotonic() < until_s:
            mine, left = left[:FAULTS_A_ROUND], left[FAULTS_A_ROUND:]
            not_done = self._round(self.report.rounds, mine)
            if left:
                left += not_done
            self.report.wall_s = time.monotonic() - started_s

    def close(self) -> None:
        """End what the campaign started."""
        self._controllers.end()
        self._store.close()

    def unexpected(self) -> list[str]:
        """Controllers that ended with a traceback."""
        return self._controllers.unexpected()

    def _round(self, number: int, kinds: Sequence[Kind]) -> list[Kind]:
        """Run one sweep with these faults; returns those that found nothing to harm."""
        sweep, started_s = f"round-{number}", time.monotonic()
        trials = planned(self._seed * 100_000 + number * 1000, TRIALS, DRIFTING)
        self._rules.pace(trials, self._dice)
        expected = undisturbed(sweep, trials)
        self._plan(sweep, trials)
        inside = [kind for kind in kinds if kind.inside]
        outside = [kind for kind in kinds if not kind.inside]
        self._place(number, inside, trials)
        run = Round(self, sweep, outside)
        run.to_its_end()
        self.report.injected += run.injected
        fired = self._fired(number)
        self.report.injected += fired
        found = account(
            self._database,
            self._files,
            sweep,
            trials,
            expected,
            run.injector.moments,
            run.injector.harmed,
        )
        found.wrong += run.injector.wrong
        self.report.totals.add(found)
        self.report.rounds += 1
        done = sum(run.injected.values()) + sum(fired.values())
        self._tell(
            f"round {number}: {done} faults, {found.executed} units run for {found.units},"
            f" {found.redone} redone ({found.in_flight} in flight at a fault), lost {found.lost},"
            f" doubled {found.doubled}, mixed {found.mixed}, different {found.different}"
            f" in {time.monotonic() - started_s:.0f} s"
        )
        return run.left

    def _plan(self, sweep: str, trials: Sequence[PlannedTrial]) -> None:
        self._store.plan_sweep(sweep, SOURCE, trials, reuse=False)
        self._controllers.sweep = sweep

    def _place(self, number: int, kinds: Sequence[Kind], trials: Sequence[PlannedTrial]) -> None:
        """Put faults into units; a baseline gets none, so that the others are not all late."""
        for index, kind in enumerate(kinds):
            trial = self._dice.choice(trials[1:])
            unit = self._dice.choice(trial.units).unit
            late = kind.name in ("unit ends before its commit", "unit ends in its commit")
            value = self._dice.randint(0, 14) if "in its commit" in kind.name else 1.5
            rule = {
                "id": f"{number}.{index}.{kind.name}",
                "unit": unit.key,
                "when": "after" if late else "before",
                "once": kind.name != "poison trial",
                "act": kind.name,
                "value": value,
            }
            self._rules.add(trial.spec.key, rule)

    def _fired(self, number: int) -> Counter[str]:
        names = [path.name for path in (self._files / FIRED).glob(f"{number}.*")]
        return Counter(name.split(".", 2)[2] for name in names)

    @property
    def parts(self) -> tuple[Database, RayCluster, Controllers, Path, random.Random]:
        """What an injector needs."""
        return self._database, self._cluster, self._controllers, self._files, self._dice

    @property
    def store(self) -> SqlStore:
        """The store."""
        return self._store

    @property
    def rules(self) -> Rules:
        """What goes wrong inside of units."""
        return self._rules


class Round:
    """One sweep from its start to the success of every trial."""

    def __init__(self, campaign: Campaign, sweep: str, outside: Sequence[Kind]) -> None:
        self._campaign, self._sweep = campaign, sweep
        self._controllers = campaign.parts[2]
        self._database = campaign.parts[0]
        self._dice = campaign.parts[4]
        self.injector = Injector(*campaign.parts)
        self.left = list(outside)
        self.injected: Counter[str] = Counter()
        self._units = 0
        self._progress: tuple[int, ...] = ()
        self._progress_s = self._looked_s = self._injected_s = time.monotonic()

    def to_its_end(self) -> None:
        """Keep a controller running, do faults as the work goes on, help as a user would.

        Raises:
            Stuck: If nothing happens any more.
        """
        planned = len(self.left)
        while not self._over():
            codes = self._controllers.reap()
            self._campaign.report.exits.update(codes)
            if any(codes):
                # A controller that ends takes its workers with it, sometimes long after the fault.
                self.injector.moments.append(time.time())
            # Nobody starts a controller while the database is known to be away.
            if self._controllers.newest is None and self._database.read("SELECT 1"):
                self._controllers.start()
            self.injector.tend()
            self._inject(planned)
            self._help()
            time.sleep(_TICK_S)
        self.injector.finish()
        self._wait_for_controllers()

    def _over(self) -> bool:
        states = self._database.read(
            "SELECT t.state, COUNT(*) FROM trial t JOIN sweep s ON s.id = t.sweep_id"
            f" WHERE s.name = '{self._sweep}' GROUP BY t.state"
        )
        done = self._database.read(
            "SELECT COUNT(*), SUM(t.attempt) FROM unit u JOIN trial t ON t.id = u.trial_id"
            f" JOIN sweep s ON s.id = t.sweep_id WHERE s.name = '{self._sweep}'"
            " AND u.state = 'DONE' AND u.generation = t.generation"
        )
        now_s = time.monotonic()
        if states is None or not done:
            return False
        progress = (int(done[0][0]), int(done[0][1] or 0))
        if progress != self._progress:
            self._progress, self._progress_s = progress, now_s
        if now_s - self._progress_s > _STUCK_S:
            raise Stuck(f"{self._sweep}: nothing has happened for {_STUCK_S:.0f} s: {states}")
        return {state for state, _ in states} == {TrialState.SUCCEEDED} and self.injector.quiet

    def _inject(self, planned: int) -> None:
        """Do the next fault once as much of the work is done as of the faults; never in a burst
        that would only harm what was harmed a moment ago."""
        now_s = time.monotonic()
        if not self.left or now_s - self._injected_s < self._dice.uniform(0.3, 1.2):
            return
        share = (planned - len(self.left)) / planned
        work = self._progress[0] / self._all_units() if self._progress else 0.0
        waited_s = now_s - max(self._injected_s, self._progress_s)
        if share >= work and waited_s < _PATIENCE_S:
            return
        kind = self.left.pop(0)
        if self.injector.inject(kind.name):
            self.injected[kind.name] += 1
        else:
            self.left.append(kind)
        self._injected_s = now_s

    def _all_units(self) -> int:
        if not self._units:
            rows = self._database.read(
                "SELECT COUNT(*) FROM unit u JOIN trial t ON t.id = u.trial_id JOIN sweep s"
                f" ON s.id = t.sweep_id WHERE s.name = '{self._sweep}'"
            )
            self._units = int(rows[0][0]) if rows else 0
        return max(self._units, 1)

    def _help(self) -> None:
        """What a user does: retry what has failed, without waiting for pauses to be over."""
        now_s = time.monotonic()
        if now_s - self._looked_s < 2.0:
            return
        self._looked_s = now_s
        self._database.write("UPDATE trial SET not_before_s = 0 WHERE state = 'PENDING'")
        try:
            store = self._campaign.store
            row = store.sweep(self._sweep)
            failed = [t for t in store.trials(row.id) if t.state is TrialState.FAILED]
            for trial in failed:
                if trial.key in self._campaign.rules.poisoned():
                    self.injected["poison trial"] += 1
                    self._campaign.rules.lift(trial.key)
            if failed:
                store.retry(row.id, states=(TrialState.FAILED,))
        except SweepError:
            return

    def _wait_for_controllers(self) -> None:
        """The controller ends by itself once nothing is left."""
        end_s = time.monotonic() + 60.0
        while self._controllers.newest is not None and time.monotonic() < end_s:
            time.sleep(_TICK_S)
        if self._controllers.newest is not None:
            self.injector.wrong.append(f"{self._sweep}: its controller did not end")
            self._controllers.end()
        self._campaign.report.exits.update(self._controllers.reap())
