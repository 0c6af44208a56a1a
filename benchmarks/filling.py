"""Large sweeps for measurements: planned by the real planner, finished by SQL."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import sqlalchemy as sa

from dllm_sweep.db.schema import Attempt, MetricRow, Trial, UnitRow
from dllm_sweep.db.store import SqlStore
from dllm_sweep.plan import Plan, make_plan
from dllm_sweep.sweep_file import read

SCHEMES = [f"w{bits}a{acts}-g{group}" for bits in (3, 4) for acts in (8, 16) for group in (32, 64)]
METHODS = ["rtn", *({"name": "gptq", "damping": 0.01 * step} for step in range(1, 5))]


def sweep_file(folder: Path, trials: int, tasks: int = 1) -> Path:
    """Write a sweep file with about so many trials (at least) and tasks, and the task files."""
    points = len(SCHEMES) * len(METHODS)
    names = [f"task_{index}.yaml" for index in range(tasks)]
    for name in names:
        text = f"task: {name[:-5]}\ndataset_path: json\noutput_type: generate_until\n"
        (folder / name).write_text(text)
    data = {
        "name": f"large-{trials}",
        "models": ["llada-tiny"],
        "methods": METHODS,
        "schemes": SCHEMES,
        "tasks": names,
        "outliers": False,
        "seeds": list(range(-(-trials // points))),
    }
    path = folder / f"large-{trials}.yaml"
    path.write_text(json.dumps(data))
    return path


def planned(folder: Path, trials: int, tasks: int = 1) -> Plan:
    """The plan of such a file."""
    return make_plan(read(sweep_file(folder, trials, tasks)))


def finish(store: SqlStore) -> int:
    """Make all trials of a store SUCCEEDED with one score for each task; returns the scores."""
    with store._engines.write.begin() as connection:
        trials = connection.execute(sa.select(Trial.id, Trial.is_baseline)).all()
        baselines = {row.id for row in trials if row.is_baseline}
        connection.execute(sa.insert(Attempt), [_attempt(row.id) for row in trials])
        connection.execute(
            sa.update(Trial).values(state="SUCCEEDED", attempt=1, started_s=1.0, finished_s=2.0)
        )
        connection.execute(
            sa.update(UnitRow).values(state="DONE", attempt=1, wall_s=1.0, done_s=2.0)
        )
        units = connection.execute(
            sa.select(UnitRow.trial_id, UnitRow.generation, UnitRow.unit_key, UnitRow.task).where(
                UnitRow.kind == "evaluate"
            )
        ).all()
        scores = [_score(unit, unit.trial_id in baselines) for unit in units]
        connection.execute(sa.insert(MetricRow), scores)
    return len(scores)


def _attempt(trial_id: int) -> dict[str, Any]:
    return {
        "trial_id": trial_id,
        "attempt": 1,
        "epoch": 1,
        "claim_id": f"{trial_id:032x}",
        "host": "here",
        "pid": 1,
        "device": "cpu",
        "versions": {},
        "batch_scale": 1.0,
        "started_s": 1.0,
        "ended_s": 2.0,
        "end_reason": "OK",
    }


def _score(unit: Any, is_baseline: bool) -> dict[str, Any]:
    loss = 0.0 if is_baseline else (unit.trial_id % 97) / 1000
    return {
        "trial_id": unit.trial_id,
        "generation": unit.generation,
        "unit_key": unit.unit_key,
        "task": unit.task,
        "name": "acc",
        "value": 0.5 - loss,
        "value_flag": None,
        "stderr": 0.01,
        "n": 1000,
        "higher_is_better": True,
        "is_primary": True,
    }
