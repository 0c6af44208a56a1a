"""A controller in a process of its own, with made-up work: `python sweep_driver.py JSON`."""

import json
import sys

from dllm_sweep.db.connect import open_store
from dllm_sweep.errors import SweepError
from dllm_sweep.records import PlannedTrial, PlannedUnit
from dllm_sweep.run import RunOptions, run_sweep
from dllm_sweep.spec import (
    FULL_PRECISION,
    ModelRef,
    ProtocolSpec,
    QuantScheme,
    TaskSpec,
    TrialSpec,
    Unit,
)

SHARDS = 3
TASKS = ("tiny_facts", "tiny_math")


def planned(seed):
    baseline = seed == 0
    spec = TrialSpec(
        model=ModelRef(name="llada-tiny"),
        method="fp" if baseline else "rtn",
        scheme=FULL_PRECISION if baseline else QuantScheme.parse("w4a16-g128-asym"),
        protocol=ProtocolSpec(tasks=tuple(TaskSpec(name=name) for name in TASKS), outliers=None),
        seed=seed,
    )
    long, short = TASKS
    units = [
        Unit(kind="evaluate", task=long, shard=shard, shards=SHARDS) for shard in range(SHARDS)
    ]
    units.append(Unit(kind="evaluate", task=short))
    if not baseline:
        units.insert(0, Unit(kind="quantize"))
    return PlannedTrial(
        spec=spec,
        label=f"trial {seed}",
        priority=100 * baseline,
        units=tuple(PlannedUnit(unit=unit, estimated_s=1.0) for unit in units),
    )


def main(store, sweep, trials, source, **options):
    opened = open_store(store)
    plan = [planned(seed) for seed in range(trials)]
    opened.plan_sweep(sweep, source, plan, reuse=False)
    opened.close()
    try:
        summary = run_sweep(store, sweep, RunOptions(bench="fake_bench:FakeBench", **options))
    except SweepError as error:
        print(f"{type(error).__name__}: {error}")
        return error.exit_code
    return int(summary.failed > 0)


if __name__ == "__main__":
    sys.exit(main(**json.loads(sys.argv[1])))
