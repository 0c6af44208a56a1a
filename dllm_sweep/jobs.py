"""Runs that outlive the terminal: `--detach` sends a sweep to the cluster as a Ray job.

The job runs on the cluster's head what would have run here. Everybody else talks to the store.
`python -m dllm_sweep.jobs` is what the job executes, in a folder with the code and `job.json`.
"""

from __future__ import annotations

import base64
import json
import logging
import re
import sys
import tempfile
import time
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from dllm_sweep import shipping
from dllm_sweep.cluster import LOCAL, TOKEN_ADVICE, knock
from dllm_sweep.errors import ClusterError, InputError, SweepError
from dllm_sweep.records import PlannedTrial
from dllm_sweep.spec import TrialSpec, from_json, to_json

_JOB_FILE = "job.json"
_ENTRYPOINT = "python -m dllm_sweep.jobs"
_STARTS_WITHIN_S = 30.0
_LIVING = ("PENDING", "RUNNING")


@dataclass(frozen=True, kw_only=True)
class Job:
    """What a cluster has to know to run a sweep.

    Attributes:
        store: The store's whole address, as the cluster's head reaches it.
        sweep: The sweep's name.
        source: The sweep file's text; empty if the store has the sweep.
        trials: The planned trials; none if the store has them.
        reuse: Whether results of equal trials of other sweeps are taken over.
        options: Fields of `RunOptions`.
        shipped: Files that trials name by path.
    """

    store: str
    sweep: str
    source: str = ""
    trials: tuple[PlannedTrial, ...] = ()
    reuse: bool = True
    options: Mapping[str, Any]
    shipped: tuple[shipping.ShippedFile, ...] = ()

    def to_text(self) -> str:
        """The job as JSON."""
        files = {file.path: base64.b64encode(file.content).decode() for file in self.shipped}
        trials = [to_json(trial) for trial in self.trials]
        return json.dumps(vars(self) | {"trials": trials, "shipped": files})

    @classmethod
    def from_text(cls, text: str) -> Job:
        """The job that `to_text` wrote."""
        data = json.loads(text)
        files = data.pop("shipped").items()
        trials = (from_json(PlannedTrial, trial) for trial in data.pop("trials"))
        shipped = (
            shipping.ShippedFile(path=path, content=base64.b64decode(content))
            for path, content in files
        )
        return cls(**data, trials=tuple(trials), shipped=tuple(shipped))


def shipped_with(specs: Iterable[TrialSpec]) -> tuple[shipping.ShippedFile, ...]:
    """The files that trials name by path.

    Raises:
        InputError: If one is not there, or too large to travel.
    """
    paths = {path for spec in specs for path in shipping.paths_of(spec)}
    return tuple(shipping.read(path) for path in sorted(paths))


def submit(address: str, job: Job, *, epoch: int | None) -> str:
    """Start a job on a cluster; returns its id.

    Args:
        address: The cluster's address (`auto`, `HOST:PORT`, `ray://...`), or the URL of its
            dashboard.
        job: What to run. It may hold the store's password, so it travels as a file: command lines
            and variables of jobs are shown by the dashboard.
        epoch: Of the sweep's last controller; None if the store is not reached from here.

    Raises:
        ClusterError: If the cluster does not take it, or a job runs this sweep there already.
    """
    import ray
    from ray.job_submission import JobSubmissionClient

    # It tells of every file that it packs, and that a model's weights are large.
    logging.getLogger("ray").setLevel(logging.ERROR)
    if address == LOCAL:
        raise InputError("--detach needs a cluster that stays: say which with --address")
    knock(address)
    try:
        client = JobSubmissionClient(address)
        name = _new_id(client.list_jobs(), job.sweep, epoch)
        with tempfile.TemporaryDirectory() as folder:
            shipping.stage(Path(folder))
            (Path(folder) / _JOB_FILE).write_text(job.to_text(), encoding="utf-8")
            client.submit_job(
                entrypoint=_ENTRYPOINT,
                submission_id=name,
                runtime_env={"working_dir": folder},
                metadata={"sweep": job.sweep},
            )
        _see_it_start(client, name)
    except ray.exceptions.AuthenticationError as error:
        raise ClusterError(
            f"Ray at {address!r} does not let us in: it asks for a token, and this machine has none"
            f" or another one; {TOKEN_ADVICE}"
        ) from error
    except (ConnectionError, RuntimeError, ValueError) as error:
        text = " ".join(str(error).split())[:300]
        raise ClusterError(
            f"{address!r} takes no job: {text}; --address is the cluster's address or the URL of"
            " its dashboard, http://HEAD:8265"
        ) from error
    return name


def _new_id(jobs: Sequence[Any], sweep: str, epoch: int | None) -> str:
    """A name for the sweep's next run; Ray takes no name twice."""
    stem = "dllm-sweep-" + re.sub(r"[^A-Za-z0-9_-]+", "-", sweep)
    mine = [job for job in jobs if (job.metadata or {}).get("sweep") == sweep]
    for job in mine:
        if job.status in _LIVING:
            raise ClusterError(
                f"sweep {sweep!r} runs already, as job {job.submission_id}: `dllm-sweep status`"
                f" follows it, `ray job stop {job.submission_id}` ends it"
            )
    number = len(mine) + 1 if epoch is None else epoch + 1
    taken = {job.submission_id for job in mine}
    name, tries = f"{stem}-{number}", 1
    while name in taken:
        tries += 1
        name = f"{stem}-{number}-{tries}"
    return name


def _see_it_start(client: Any, name: str) -> None:
    """Wait until the job runs, so that what goes wrong at once is told at once.

    Raises:
        ClusterError: If it has failed.
    """
    until_s = time.monotonic() + _STARTS_WITHIN_S
    status = "PENDING"
    while status == "PENDING" and time.monotonic() < until_s:
        time.sleep(0.2)
        status = str(client.get_job_status(name))
    if status == "FAILED":
        said = client.get_job_logs(name).strip().splitlines()[-1:] or [
            client.get_job_info(name).message or ""
        ]
        raise ClusterError(f"job {name} failed at once: {said[0]}")


def main() -> int:
    """Run the job of this folder; returns the exit code that `launch` would have."""
    from dllm_sweep.db.connect import open_store
    from dllm_sweep.run import RunOptions, run_sweep

    job = Job.from_text(Path(_JOB_FILE).read_text(encoding="utf-8"))
    shipping.unpack(job.shipped)
    try:
        if job.trials:
            opened = open_store(job.store)
            opened.plan_sweep(job.sweep, job.source, job.trials, reuse=job.reuse)
            opened.close()
        options = RunOptions(**{**job.options, "address": "auto"})
        summary = run_sweep(job.store, job.sweep, options)
    except SweepError as error:
        print(f"dllm-sweep: {error}", file=sys.stderr)
        return error.exit_code
    print(
        f"{summary.succeeded} succeeded, {summary.failed} failed, {summary.pending} left,"
        f" in {summary.wall_s:.0f} s"
    )
    return 1 if summary.failed else 0


if __name__ == "__main__":
    sys.exit(main())
