"""What the store and the controller cost at the size of a large study.

python benchmarks/store.py [--only plan,launch,read,writer,unit,idle] [--format json]
"""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import click

HERE = Path(__file__).parent
ROOT = HERE.parent
_PLANNED, _READ_TRIALS, _READ_TASKS = 10_000, 5_000, 20
_CLIENTS, _PAIRS = 8, 40
_UNITS = 300
_IDLE_S = 10.0


@dataclass(frozen=True)
class Measure:
    """One number beside what it should be.

    Attributes:
        name: What was measured.
        value: The number.
        unit: Its unit.
        target: The largest number that is good enough.
        cpu_s: Seconds of a core that it took, where that is known: more than the machine's other
            work leaves makes `value` longer, not this.
    """

    name: str
    value: float
    unit: str
    target: float
    cpu_s: float | None = None

    @property
    def holds(self) -> bool:
        """Whether it is good enough."""
        return self.value <= self.target


class Bench:
    """The stores that the measurements share; a Postgres server starts when it is first needed."""

    def __init__(self, folder: Path, stack: ExitStack) -> None:
        self._stack = stack
        self._server: Any = None
        self.folder = folder

    def databases(self, name: str) -> Iterator[tuple[str, str]]:
        """Kind and address of a new store on each database."""
        from tests.postgres import running

        yield "sqlite", f"sqlite:///{self.folder}/{name}.db"
        if self._server is None:
            self._server = self._stack.enter_context(running(durable=True))
        yield "postgres", self._stack.enter_context(self._server.database())


def measure_plan(bench: Bench) -> Iterator[Measure]:
    """Plan and enqueue a sweep of 10,000 trials on both databases."""
    import filling

    from dllm_sweep.db.connect import open_store
    from dllm_sweep.plan import make_plan
    from dllm_sweep.sweep_file import read

    path = filling.sweep_file(bench.folder, _PLANNED)
    used_s = time.process_time()
    plan, plan_s = _timed(lambda: make_plan(read(path)))
    used_s = time.process_time() - used_s
    for kind, url in bench.databases("plan"):
        store = open_store(url)
        before_s = time.process_time()
        _, enqueue_s = _timed(lambda: store.plan_sweep(plan.name, plan.source, plan.trials))  # noqa: B023
        cpu_s = used_s + time.process_time() - before_s
        store.close()
        what = f"{len(plan.trials):,} trials planned and enqueued, {kind}"
        yield Measure(what, plan_s + enqueue_s, "s", 5.0, cpu_s)


def measure_launch(bench: Bench) -> Iterator[Measure]:
    """Launch a finished sweep of that size again, as a command."""
    import filling

    from dllm_sweep.db.connect import open_store

    path = filling.sweep_file(bench.folder, _PLANNED)
    plan = filling.planned(bench.folder, _PLANNED)
    for kind, url in bench.databases("launch"):
        store = open_store(url)
        store.plan_sweep(plan.name, plan.source, plan.trials)
        filling.finish(store)
        store.close()
        what = f"no-op launch of {len(plan.trials):,} trials, {kind}"
        yield _command_measure(what, 3.0, "launch", str(path), store=url)


def measure_read(bench: Bench) -> Iterator[Measure]:
    """Status and leaderboard at 5,000 trials and 100,000 scores, called and as commands."""
    import filling

    from dllm_sweep.db.connect import open_store
    from dllm_sweep.reports.leaderboard import boards

    plan = filling.planned(bench.folder, _READ_TRIALS, _READ_TASKS)
    for kind, url in bench.databases("read"):
        store = open_store(url)
        sweep = store.plan_sweep(plan.name, plan.source, plan.trials)
        scores = filling.finish(store)
        size = f"{len(plan.trials):,} trials, {scores:,} scores, {kind}"
        for name, call in (
            ("status", lambda: store.trials(sweep.id)),  # noqa: B023
            ("leaderboard view", store.leaderboard_rows),
            ("leaderboard with every score", lambda: boards(store)),  # noqa: B023
        ):
            yield Measure(f"{name}, {size}", _best(call), "s", 0.5)
        store.close()
        for name in ("status", "leaderboard"):
            yield _command_measure(f"command {name}, {size}", 0.5, name, store=url)


def measure_writer(bench: Bench) -> Iterator[Measure]:
    """Claims and commits of 8 clients through the single writer of a SQLite file."""
    import ray

    from dllm_sweep.db.connect import open_store
    from dllm_sweep.workers.store_actor import start_writer
    from tests.db.zombies import _trials

    url = f"sqlite:///{bench.folder}/writer.db"
    store = open_store(url)
    sweep = store.plan_sweep("writer", "", _trials(_CLIENTS * _PAIRS))
    lease = store.take_lease("writer", _holder(), seconds=3600)
    ids = [trial.id for trial in store.trials(sweep.id)]
    with _ray():
        proxy = start_writer(url).open()
        client = ray.remote(_Client).options(num_cpus=0)
        clients = [client.remote(proxy, lease) for _ in range(_CLIENTS)]
        ray.get([each.ready.remote() for each in clients])
        calls = [each.run.remote(ids[n::_CLIENTS]) for n, each in enumerate(clients)]
        times = sorted(seconds for part in ray.get(calls) for seconds in part)
    store.close()
    p99 = times[int(len(times) * 0.99)]
    yield Measure(f"claim + commit p99, {_CLIENTS} clients of the SQLite writer", p99, "s", 0.5)


class _Client:
    """One of the writer's clients, a process of its own."""

    def __init__(self, store: Any, lease: Any) -> None:
        sys.path.insert(0, str(ROOT))
        self._store, self._lease = store, lease

    def ready(self) -> None:
        """Answer once the process is up."""

    def run(self, trials: list[int]) -> list[float]:
        """Claim each trial and commit its first unit; seconds of each pair."""
        import uuid

        from tests.db.zombies import _HOST, _result

        times = []
        for trial in trials:
            began_s = time.monotonic()
            claim = self._store.claim(self._lease, trial, uuid.uuid4().hex, _HOST)
            self._store.commit_unit(claim, _result(claim.trial.units()[0], f"{trial:064x}"))
            times.append(time.monotonic() - began_s)
        return times


def measure_unit(bench: Bench) -> Iterator[Measure]:
    """What a unit costs beside its work: a real run, whose units take no time, on one worker."""
    from dllm_sweep.db.connect import open_store

    url = f"sqlite:///{bench.folder}/unit.db"
    units = _enqueue(url, "unit", trials=_UNITS // 4, seconds=0.0)
    command = [sys.executable, str(HERE / "store.py"), "--run", url]
    subprocess.run(command, env=_environment(), stdout=subprocess.DEVNULL, check=True)
    # From the first commit to the last: starting Ray and a worker costs something once.
    store = open_store(url)
    ((first_s, last_s),) = store.query("SELECT MIN(done_s), MAX(done_s) FROM unit").rows
    store.close()
    each_ms = 1000 * (last_s - first_s) / (units - 1)
    yield Measure(f"overhead of a unit, {units} units", each_ms, "ms", 10.0)


def measure_idle(bench: Bench) -> Iterator[Measure]:
    """What the controller takes of a core while a worker does something long."""
    url = f"sqlite:///{bench.folder}/idle.db"
    _enqueue(url, "unit", trials=1, seconds=600.0)
    process = subprocess.Popen(
        [sys.executable, str(HERE / "store.py"), "--run", url],
        env=_environment(),
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
    )
    try:
        _wait_until_running(url)
        before_s = _cpu_s(process.pid)
        time.sleep(_IDLE_S)
        used_s = _cpu_s(process.pid) - before_s
    finally:
        for _ in range(2):
            process.send_signal(signal.SIGTERM)
            time.sleep(0.5)
        process.wait(60)
    yield Measure("controller while a unit runs", 100 * used_s / _IDLE_S, "% of a core", 5.0)


def run_url(url: str) -> None:
    """Run the sweep `unit` of a store with made-up work."""
    from dllm_sweep.run import RunOptions, run_sweep

    options = RunOptions(actors=1, gpus_per_trial=0, bench="fake_bench:FakeBench")
    run_sweep(url, "unit", options)


def _enqueue(url: str, sweep: str, *, trials: int, seconds: float) -> int:
    """Plan trials of made-up work; returns their units."""
    from dataclasses import replace

    from dllm_sweep.db.connect import open_store
    from tests.db.zombies import _trials

    planned = [
        replace(trial, spec=replace(trial.spec, parameters=(("seconds", seconds),)))
        for trial in _trials(trials)
    ]
    store = open_store(url)
    row = store.plan_sweep(sweep, "", planned)
    units = len(store.units(row.id))
    store.close()
    return units


def _wait_until_running(url: str) -> None:
    from dllm_sweep.db.connect import open_store

    store, deadline_s = open_store(url), time.monotonic() + 120
    while not any(trial.state == "RUNNING" for trial in store.trials(1)):
        if time.monotonic() > deadline_s:
            raise TimeoutError("the run does not start")
        time.sleep(0.2)
    store.close()
    # Starting workers costs something once.
    time.sleep(3.0)


def _cpu_s(pid: int) -> float:
    fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")


def _ray() -> Any:
    import ray

    os.environ.update(_environment())
    return ray.init(
        address="local",
        num_cpus=2,
        include_dashboard=False,
        log_to_driver=False,
        logging_level="ERROR",
        object_store_memory=80 * 2**20,
    )


def _holder() -> Any:
    from dllm_sweep.process import this_process

    return this_process()


def _timed(call: Callable[[], Any]) -> tuple[Any, float]:
    began_s = time.monotonic()
    value = call()
    return value, time.monotonic() - began_s


def _best(call: Callable[[], Any], times: int = 5) -> float:
    """The shortest of several times: others on the machine make it longer, never shorter."""
    return min(_timed(call)[1] for _ in range(times))


def _command_measure(what: str, target_s: float, *words: str, store: str) -> Measure:
    """A whole command as a process, the start of Python included: the fastest of three."""
    environment = _environment() | {"DLLM_SWEEP_STORE": store}
    command = [sys.executable, "-m", "dllm_sweep", *words]

    def once() -> tuple[float, float]:
        before = os.times()
        subprocess.run(command, env=environment, stdout=subprocess.DEVNULL, check=True)
        after = os.times()
        used_s = sum(after[2:4]) - sum(before[2:4])
        return after.elapsed - before.elapsed, used_s

    wall_s, cpu_s = min(once() for _ in range(3))
    return Measure(what, wall_s, "s", target_s, cpu_s)


def _environment() -> dict[str, str]:
    return {**os.environ, "PYTHONPATH": f"{ROOT}:{HERE}", "RAY_AUTH_MODE": "disabled"}


MEASUREMENTS = {
    "plan": measure_plan,
    "launch": measure_launch,
    "read": measure_read,
    "writer": measure_writer,
    "unit": measure_unit,
    "idle": measure_idle,
}


def _table(measures: list[Measure]) -> str:
    lines = [
        f"{m.name:<68} {m.value:>9.3f} {m.unit:<12} target {m.target:<6g}"
        f" {'ok' if m.holds else 'MISSED'}"
        f"{'' if m.cpu_s is None else f' (CPU {m.cpu_s:.2f} s)'}\n"
        for m in measures
    ]
    return "".join(lines)


@click.command()
@click.option("--only", help=f"Some of {','.join(MEASUREMENTS)}, with commas between.")
@click.option("--format", "form", type=click.Choice(["table", "json"]), default="table")
@click.option("--run", "url", hidden=True, help="Run the sweep of a store; for this program alone.")
def main(only: str | None, form: str, url: str | None) -> None:
    """Measure, and print every number beside its target; exits with 1 if one is missed."""
    if url is not None:
        run_url(url)
        return
    names = only.split(",") if only else list(MEASUREMENTS)
    measures: list[Measure] = []
    if form == "table":
        click.echo(f"load of the machine: {os.getloadavg()[0]:.1f} on {os.cpu_count()} cores")
    with ExitStack() as stack:
        folder = Path(stack.enter_context(tempfile.TemporaryDirectory()))
        bench = Bench(folder, stack)
        for name in names:
            for measure in MEASUREMENTS[name](bench):
                measures.append(measure)
                if form == "table":
                    click.echo(_table([measure]), nl=False)
    if form == "json":
        click.echo(json.dumps([asdict(m) | {"holds": m.holds} for m in measures], indent=1))
    sys.exit(0 if all(measure.holds for measure in measures) else 1)


if __name__ == "__main__":
    sys.path[:0] = [str(ROOT), str(HERE)]
    main()
