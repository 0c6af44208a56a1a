"""What the workers of one run get: their sizes, and what each is told."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING

from dllm_sweep.cluster import demand_for
from dllm_sweep.workers.messages import WorkerOptions

if TYPE_CHECKING:
    from dllm_sweep.demands import SweepResources
    from dllm_sweep.records import Demand, TrialRow
    from dllm_sweep.sweep_entries import Resources
    from dllm_sweep.workers.capacity import Machine

_GPU_BATCH, _CPU_BATCH = 32, 16


@dataclass(frozen=True, kw_only=True)
class Outfit:
    """How the trials of a sweep are carried by a cluster.

    Attributes:
        given: What the command line says; it goes before the sweep file.
        written: What the sweep file says.
        machines: The cluster's machines.
        trials: Those that may run.
        limit: Most workers in all; None for as many as there is room for.
    """

    given: Resources
    written: SweepResources
    machines: Sequence[Machine]
    trials: Sequence[TrialRow]
    limit: int | None = None

    def demand_of(self, trial: TrialRow) -> Demand:
        """The size of worker that a trial needs."""
        return self._demands.get(trial.model) or self._demand(trial.model)

    @property
    def demands(self) -> Mapping[str, Demand]:
        """What each trial asks for, by its label."""
        return {trial.label: self.demand_of(trial) for trial in self.trials}

    def options_for(
        self,
        demand: Demand,
        *,
        files: Path,
        bench: str,
        remote: str,
        peers: str,
        kept: frozenset[str],
    ) -> WorkerOptions:
        """What a worker of a size is told."""
        batch = _GPU_BATCH if demand.gpus else _CPU_BATCH
        return WorkerOptions(
            files=files,
            device="cuda" if demand.gpus else "cpu",
            threads=int(demand.cpus) or 1,
            batch_size=batch,
            bench=bench,
            gpus=demand.gpus,
            batch_sizes=self._batch_sizes,
            remote=remote,
            peers=peers,
            kept=kept,
        )

    @cached_property
    def _demands(self) -> dict[str, Demand]:
        return {model: self._demand(model) for model in {trial.model for trial in self.trials}}

    @cached_property
    def _batch_sizes(self) -> tuple[tuple[str, int], ...]:
        sizes = {model: self._resources(model).batch_size for model in self._demands}
        return tuple(sorted((model, size) for model, size in sizes.items() if size is not None))

    def _resources(self, model: str) -> Resources:
        return self.given.before(self.written.of(model))

    def _demand(self, model: str) -> Demand:
        workers = min(self.limit or len(self.trials), len(self.trials))
        return demand_for(self._resources(model), self.machines, workers)


class Shelves:
    """The actors through which the machines of a run hand each other files.

    Args:
        peers: The run's name.
        folder: The folder for files on every machine.
    """

    def __init__(self, peers: str, folder: Path) -> None:
        import ray

        from dllm_sweep.workers import transfer

        self._peers, self._folder = peers, folder
        self._home = ray.get_runtime_context().get_node_id()
        self._kept = [transfer.serve(peers, self._home, folder, home=True)]

    def serve(self, node_id: str) -> None:
        """Start the shelf of a machine that has got its first worker."""
        if node_id != self._home:
            from dllm_sweep.workers import transfer

            self._kept.append(transfer.serve(self._peers, node_id, self._folder))
