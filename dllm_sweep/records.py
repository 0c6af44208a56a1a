"""What work produces and what the store keeps of it: frozen rows that cross process borders."""

from __future__ import annotations

from dataclasses import dataclass
from enum import StrEnum

from dllm_sweep.spec import TrialSpec, Unit
from dllm_sweep.tally import Tally


class TrialState(StrEnum):
    """Where a trial stands; the legal moves between them are data in `db/transitions.py`."""

    PENDING = "PENDING"
    """Waits for an actor."""
    RUNNING = "RUNNING"
    """An attempt owns it."""
    SUCCEEDED = "SUCCEEDED"
    """All units are committed."""
    FAILED = "FAILED"
    """An attempt ended with an error that is not tried again by itself."""
    PRUNED = "PRUNED"
    """Stopped early by a racing rule."""
    CANCELLED = "CANCELLED"
    """Stopped by the user."""
    SKIPPED = "SKIPPED"
    """The combination is not legal; the plan says why."""


OPEN_STATES = (TrialState.PENDING, TrialState.RUNNING)
"""States of trials that are not over."""


class EndReason(StrEnum):
    """Why an attempt ended, apart from the trial's state."""

    OK = "OK"
    ERROR = "ERROR"
    GPU_OOM = "GPU_OOM"
    HOST_OOM = "HOST_OOM"
    LOST = "LOST"
    PREEMPTED = "PREEMPTED"
    TIMEOUT = "TIMEOUT"
    ABORTED = "ABORTED"
    FENCED = "FENCED"


@dataclass(frozen=True, kw_only=True)
class Holder:
    """The process that runs a sweep."""

    host: str
    pid: int
    process_started_s: float
    """Start of the process in seconds since its host booted."""


@dataclass(frozen=True, kw_only=True)
class Lease:
    """The right to run one sweep; every claim made under it carries its epoch."""

    sweep_id: int
    sweep: str
    epoch: int
    holder: Holder


@dataclass(frozen=True, kw_only=True)
class Claim:
    """One attempt's right to write results of one trial: the fence of every commit."""

    trial_id: int
    trial_key: str
    attempt: int
    epoch: int
    claim_id: str
    """Random text chosen by the claimer: a repeated claim with it returns the same attempt."""
    label: str
    """The trial's name for people."""
    trial: TrialSpec
    done: tuple[str, ...]
    """Keys of units that earlier attempts committed and that still hold."""
    units: tuple[Unit, ...] = ()
    """All units of the trial as planned, tasks cut into shards, in the order in which they run."""
    weights: Artifact | None = None
    """The quantized weights that the done units were measured on."""
    batch_scale: float = 1.0
    """Factor on batch sizes, halved after the GPU ran out of memory."""


@dataclass(frozen=True, kw_only=True)
class Demand:
    """What one worker asks of one machine of the cluster.

    Attributes:
        cpus: Cores.
        gpus: GPUs, or a fraction of one; more than one share a model's layers.
        memory_bytes: Main memory that Ray sets aside for it; 0 sets nothing aside.
        labels: Labels that the machine must carry, as sorted pairs of key and value.
    """

    cpus: float = 1.0
    gpus: float = 0.0
    memory_bytes: int = 0
    labels: tuple[tuple[str, str], ...] = ()


@dataclass(frozen=True, kw_only=True)
class Artifact:
    """A file beside the store, never read back without its digest being checked."""

    kind: str
    """`weights` (quantized weights) or `samples` (answers to every item of a task)."""
    path: str
    """Relative to the store's folder for files."""
    sha256: str
    bytes: int


@dataclass(frozen=True, kw_only=True)
class Metric:
    """One score of one task."""

    task: str
    name: str
    value: float
    """NaN and infinities are kept as flags: SQL databases disagree about them."""
    stderr: float | None
    n: int
    """Number of items."""
    higher_is_better: bool = True
    primary: bool = True
    """Whether the leaderboard shows this metric for the task."""
    tally: Tally | None = None
    """Exact sums over the items; every metric of a shard has one, so that shards merge exactly."""


@dataclass(frozen=True, kw_only=True)
class ModuleRow:
    """One linear layer as it was really quantized, or one kind of operand of an attention.

    An operand (`...self_attn.keys`) is rounded to `a_bits` and has no weights.
    """

    module: str
    w_bits: int
    a_bits: int
    group_size: int | None
    symmetric: bool
    weights: int
    """Number of weights."""
    bits: float
    """Total bits of the weights with their scales and zero points."""
    relative_error: float
    """Norm of (quantized - original weight) over norm of the original weight."""


@dataclass(frozen=True, kw_only=True)
class OutlierRow:
    """One statistic of the input of one linear layer."""

    layer: int
    module: str
    """Full name of the linear."""
    mask_ratio: float
    """Share of masked positions in the sequences."""
    positions: str
    """`masked` or `visible`."""
    statistic: str
    """Such as `channel_max`, `token_max`, `median`, `kurtosis`, `max_to_median`, `top_channel`."""
    rank: int
    """0 for the greatest; for statistics with one value, 0."""
    index: int | None
    """Channel or token that the value belongs to."""
    value: float


@dataclass(frozen=True, kw_only=True)
class Cost:
    """One measured cost."""

    name: str
    """Such as `average_bits`, `quantize_s`, `peak_memory_bytes`, `weight_bytes`."""
    value: float
    unit: str
    """`bit`, `s`, `B`, ..."""


@dataclass(frozen=True, kw_only=True)
class UnitResult:
    """All that one unit produced; it is committed whole or not at all."""

    unit: Unit
    wall_s: float
    metrics: tuple[Metric, ...] = ()
    outliers: tuple[OutlierRow, ...] = ()
    modules: tuple[ModuleRow, ...] = ()
    costs: tuple[Cost, ...] = ()
    artifacts: tuple[Artifact, ...] = ()
    warnings: tuple[str, ...] = ()
    host: str = ""
    """Name of the machine that did it."""
    device: str = ""
    """`cpu` or the GPU's name."""
    weights_sha256: str | None = None
    """The quantized weights that it was measured on; None if there are none or it is not known."""


@dataclass(frozen=True, kw_only=True)
class Failure:
    """Why an attempt failed, as text: no traceback object that keeps tensors alive."""

    reason: EndReason
    error_type: str
    message: str
    traceback: str
    fingerprint: str
    """Error type and the place in the project's code: equal for the same fault."""
    unit: str
    retryable: bool
    log_tail: str = ""


@dataclass(frozen=True, kw_only=True)
class HostInfo:
    """The machine and the versions that an attempt ran on."""

    host: str
    pid: int
    device: str
    """`cpu` or the GPU's name."""
    versions: tuple[tuple[str, str], ...] = ()


@dataclass(frozen=True, kw_only=True)
class PlannedUnit:
    """One unit as planning hands it to the store, with its estimated wall time in seconds."""

    unit: Unit
    estimated_s: float


@dataclass(frozen=True, kw_only=True)
class PlannedTrial:
    """One trial as planning hands it to the store.

    Attributes:
        spec: What to do; its key identifies it within the sweep.
        label: The trial's name for people.
        skip_reason: Why the combination is not legal; None if it runs.
        estimated_s: Estimated wall time in seconds on one actor.
        priority: Higher runs earlier; baselines are above all others.
        units: Its units, long tasks cut into shards; empty stands for `spec.units()`, uncut.
    """

    spec: TrialSpec
    label: str
    skip_reason: str | None = None
    estimated_s: float = 0.0
    priority: int = 0
    units: tuple[PlannedUnit, ...] = ()


@dataclass(frozen=True, kw_only=True)
class SweepRow:
    """One sweep of the store."""

    id: int
    name: str
    source: str
    """The sweep file's text as launched."""
    paused: bool
    reused: int = 0
    """How many of its trials took their results from another sweep."""


@dataclass(frozen=True, kw_only=True)
class TrialRow:
    """One trial as it stands."""

    id: int
    key: str
    label: str
    state: TrialState
    attempt: int
    reason: str
    """Why it was skipped, failed or was requeued; empty otherwise."""
    model: str
    method: str
    units: int
    units_done: int
    priority: int
    estimated_s: float
    ready_in_s: float
    """Seconds until a backed-off trial may be claimed; 0 or less if it may be now."""
    scheme: str = ""
    is_baseline: bool = False


@dataclass(frozen=True, kw_only=True)
class UnitStanding:
    """One unit of a trial's current generation as it stands."""

    trial_id: int
    unit: Unit
    estimated_s: float
    done: bool


@dataclass(frozen=True, kw_only=True)
class UnitTime:
    """How long one committed unit took, beside what was planned: costs are learnt from it."""

    model: str
    method: str
    scheme: str
    kind: str
    task: str
    device: str
    estimated_s: float
    wall_s: float


@dataclass(frozen=True, kw_only=True)
class Score:
    """The primary score of one task of one trial: what racing looks at."""

    trial_id: int
    task: str
    value: float | None
    stderr: float | None
    n: int
    higher_is_better: bool


@dataclass(frozen=True, kw_only=True)
class LogChunk:
    """A piece of what an attempt's workers printed, kept in the store so that it can be read from
    any machine."""

    id: int
    """Grows with time: ask for what came after it."""
    trial_id: int
    attempt: int
    worker: str
    """Host and process id."""
    at_s: float
    text: str
