"""A fixed number of workers, each with at most one unit in flight."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import ray

from dllm_sweep.db.interface import Store
from dllm_sweep.errors import ClusterError
from dllm_sweep.records import Claim, Demand, EndReason, HostInfo
from dllm_sweep.spec import Unit
from dllm_sweep.workers import files
from dllm_sweep.workers.actor import TrialActor
from dllm_sweep.workers.messages import Death, Finished, Outcome, WorkerOptions


class RayPool:
    """Workers that are Ray actors.

    Ray never repeats anything by itself here (`max_restarts=0, max_task_retries=0`): a repeated
    unit is a new attempt in the store or it does not happen.
    """

    def __init__(self, *, size: int, demand: Demand, store: Store, options: WorkerOptions) -> None:
        self.size = size
        self._demand, self._store, self._options = demand, store, options
        self._actors = [self._start() for _ in range(size)]
        self._flights: dict[Any, int] = {}
        self._hosts: dict[int, HostInfo] = {}

    def host(self, worker: int) -> HostInfo:
        """Describe where a worker runs; the first call waits until it is up."""
        if worker not in self._hosts:
            try:
                self._hosts[worker] = ray.get(self._actors[worker].host.remote())
            except ray.exceptions.RayError as error:
                text = f"worker {worker} did not start: {_one_line(error)}"
                raise ClusterError(text) from error
        return self._hosts[worker]

    def submit(self, worker: int, claim: Claim, unit: Unit) -> None:
        """Start a unit on an idle worker."""
        self._flights[self._actors[worker].run.remote(claim, unit)] = worker

    def wait(self, timeout_s: float) -> list[Finished]:
        """Wait until at least one unit ended, or `timeout_s` is over."""
        ready, _ = ray.wait(list(self._flights), num_returns=1, timeout=timeout_s)
        return [Finished(worker=self._flights.pop(ref), result=_result(ref)) for ref in ready]

    def replace(self, worker: int) -> None:
        """End a worker's process and start a new one in its place."""
        ray.kill(self._actors[worker], no_restart=True)
        self._hosts.pop(worker, None)
        self._flights = {ref: w for ref, w in self._flights.items() if w != worker}
        self._actors[worker] = self._start()

    def log_path(self, claim: Claim) -> Path:
        """Where an attempt's output goes."""
        root = self._options.files
        return files.log_path(root, claim.trial_id, claim.trial_key, claim.attempt)

    def close(self) -> None:
        """End all workers."""
        for actor in self._actors:
            ray.kill(actor, no_restart=True)

    def _start(self) -> Any:
        actor = ray.remote(TrialActor).options(
            num_cpus=self._demand.cpus,
            num_gpus=self._demand.gpus,
            max_restarts=0,
            max_task_retries=0,
        )
        return actor.remote(self._store, self._options)


def _result(ref: Any) -> Outcome | Death:
    try:
        outcome: Outcome = ray.get(ref)
    except ray.exceptions.OutOfMemoryError as error:
        return Death(reason=EndReason.HOST_OOM, message=_one_line(error))
    except ray.exceptions.RayActorError as error:
        return _death(_one_line(error))
    except ray.exceptions.RayTaskError as error:
        text = f"the worker could not tell how the unit ended: {_one_line(error.cause)}"
        return Death(reason=EndReason.LOST, message=text)
    except ray.exceptions.RayError as error:
        return Death(reason=EndReason.LOST, message=_one_line(error))
    return outcome


def _death(text: str) -> Death:
    """What Ray's many words on a dead actor mean."""
    if "node" in text and ("node has died" in text or "node was terminated" in text):
        message = "the worker's machine is gone"
        return Death(reason=EndReason.LOST, message=message, machine_lost=True)
    # A process that ended by itself was ended by the code it ran: that will happen again.
    if "exit_actor" in text or "INTENDED_USER_EXIT" in text:
        message = "the trial's code ended the worker's process"
        return Death(reason=EndReason.ERROR, message=message)
    message = (
        "the worker's process died: killed from outside, as when memory runs out, or by a crash"
        " of native code"
    )
    return Death(reason=EndReason.LOST, message=message)


def _one_line(error: BaseException) -> str:
    text = " ".join(str(error).split())[:500]
    return f"{type(error).__name__}: {text}"
