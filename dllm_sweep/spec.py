"""What a trial is: the frozen values the whole system runs on.

Every type is hashable, converts to plain JSON values with `to_json` and back with `from_json`,
and has one canonical text, so that equal work has one key wherever it is planned.
"""

from __future__ import annotations

import dataclasses
import hashlib
import json
import re
from dataclasses import dataclass, field
from functools import cache, cached_property
from types import UnionType
from typing import Any, TypeVar, get_args, get_origin, get_type_hints

from dllm_sweep.errors import InputError

FULL_PRECISION_BITS = 16
FULL_PRECISION_METHOD = "fp"

T = TypeVar("T")

JsonValue = Any
"""A value of plain JSON: None, bool, int, float, str, list or dict of them."""

Parameters = tuple[tuple[Any, ...], ...]
"""A method's parameters as pairs (name, value), all of them, sorted by name, hashable."""

LATER = {"later": True}
"""Metadata of a field that was added to a spec after it was first stored: while it has its default
it is not in the canonical text, so that the keys of older trials stand."""
PLACE = {"place": True}
"""Metadata of a field that says where something lies, not what it is: never in the canonical text.
A digest beside it says what."""

_TEXT = "_canonical_text"
_PLACED_TEXT = "_canonical_text_with_places"
_encode = json.JSONEncoder(sort_keys=True, separators=(",", ":"), allow_nan=False).encode
_SCHEME = re.compile(
    r"w(?P<w>\d+)a(?P<a>\d+)(?:-kv(?P<kv>\d+))?(?:-g(?P<g>\d+))?(?:-(?P<sym>sym|asym))?(?P<qkv>-qkv)?"
)
SCHEME_FORM = "w<bits>a<bits>[-kv<bits>][-g<group size>][-sym|-asym][-qkv]"


@dataclass(frozen=True, kw_only=True)
class QuantScheme:
    """Bit-widths and grids of one quantized model.

    Attributes:
        w_bits: Bits of a weight; 16 leaves weights as they are.
        a_bits: Bits of the input of every quantized linear; 16 leaves it as it is.
        kv_bits: Bits of keys and values inside attention; 16 leaves them as they are.
        group_size: Inputs that share a weight scale; None is one scale per output channel.
        symmetric: Whether the weight grid is symmetric; None is the method's default.
        qkv: Whether queries, keys and values are quantized to `a_bits` inside attention.
    """

    w_bits: int
    a_bits: int = FULL_PRECISION_BITS
    kv_bits: int = FULL_PRECISION_BITS
    group_size: int | None = None
    symmetric: bool | None = None
    qkv: bool = False

    @classmethod
    def parse(cls, text: str) -> QuantScheme:
        """Read a scheme's name, such as `w4a16-g128`; the inverse of `str`.

        Raises:
            InputError: If the text has another form or a bit-width that does not exist.
        """
        match = _SCHEME.fullmatch(text.strip().lower())
        if match is None:
            raise InputError(f"{text!r} is not a scheme; write {SCHEME_FORM}, such as w4a16-g128")
        bits = {axis: int(match[axis] or FULL_PRECISION_BITS) for axis in ("w", "a", "kv")}
        wrong = [f"{axis}{n}" for axis, n in bits.items() if n not in (*range(2, 9), 16)]
        if wrong:
            raise InputError(f"scheme {text!r}: {wrong[0]}: bits are 2 to 8, or 16 for none")
        if match["g"] is not None and int(match["g"]) < 1:
            raise InputError(f"scheme {text!r}: the group size must be at least 1")
        return cls(
            w_bits=bits["w"],
            a_bits=bits["a"],
            kv_bits=bits["kv"],
            group_size=int(match["g"]) if match["g"] else None,
            symmetric={"sym": True, "asym": False, None: None}[match["sym"]],
            qkv=match["qkv"] is not None,
        )

    @property
    def is_full_precision(self) -> bool:
        """Whether nothing at all is quantized."""
        return self.w_bits == self.a_bits == self.kv_bits == FULL_PRECISION_BITS

    def __str__(self) -> str:
        """Give the canonical name, which `parse` reads back."""
        return "".join(
            (
                f"w{self.w_bits}a{self.a_bits}",
                "" if self.kv_bits == FULL_PRECISION_BITS else f"-kv{self.kv_bits}",
                "" if self.group_size is None else f"-g{self.group_size}",
                {None: "", True: "-sym", False: "-asym"}[self.symmetric],
                "-qkv" if self.qkv else "",
            )
        )


FULL_PRECISION = QuantScheme(w_bits=FULL_PRECISION_BITS)


@dataclass(frozen=True, kw_only=True)
class ModelRef:
    """Which checkpoint: an embedded name, a folder, or a hub id with a revision.

    Attributes:
        name: As the user named it, without the revision.
        revision: Commit on the hub; None for embedded models and folders.
        digest: SHA-256 over the checkpoint's files, or the hub's commit; set by planning.
        family: The family that loads it; None finds it by the checkpoint's config.json.
    """

    name: str
    revision: str | None = None
    digest: str | None = None
    family: str | None = field(default=None, metadata=LATER)

    def __str__(self) -> str:
        """Give `name` or `name@revision`."""
        return self.name if self.revision is None else f"{self.name}@{self.revision}"


@dataclass(frozen=True, kw_only=True)
class CalibrationSpec:
    """Which text a method sees, how much of it, how it is masked, and which tokens count.

    Attributes:
        source: A text set of the package, a local file or folder, or a hub data set.
        samples: Number of sequences.
        length: Tokens in each sequence; of a conversation at most.
        masking: Name of a mode, a file of `dllm_sweep/calibration/`: `none`, `uniform`, `prefix`,
            `trajectory` or `chat`.
        seed: Seed of the choice of text and of the masks.
        split: Split of a hub or local data set.
        subset: Configuration name of a hub data set.
        text_field: Column that holds the text.
        digest: SHA-256 of the source's content, or the hub's commit; set by planning.
        prompt_share: Of `prefix` and `trajectory`: the part of each sequence that stays visible;
            of a sequence with a conversation's prompt at most.
        steps: Of `trajectory`: denoising steps over the continuation; None is at least 32, and
            at least 4 a block.
        block_length: Of `trajectory`: tokens in a block of the sampler; None is 32, or one block
            where 32 does not divide the continuation.
        mask_ratios: Of `trajectory`: shares of the continuation that are still masked in the
            samples, in turn; empty spreads them evenly.
        masked_weight: How much a mask token counts in statistics; 0 leaves it out.
        visible_weight: How much any other token counts; 0 leaves it out.
        prompts: Of `trajectory`: `text` continues the fronts of crops, `chat` answers the prompts
            of conversations.
        prompt_field: Of `chat`, and of `trajectory` with such prompts: column of the prompt.
        answer_field: Of `chat`: column of the answer.
    """

    source: str = "tiny-text"
    samples: int = 128
    length: int = 128
    masking: str = "none"
    seed: int = 0
    split: str = "train"
    subset: str | None = None
    text_field: str = "text"
    digest: str | None = None
    prompt_share: float = field(default=0.25, metadata=LATER)
    steps: int | None = field(default=None, metadata=LATER)
    block_length: int | None = field(default=None, metadata=LATER)
    mask_ratios: tuple[float, ...] = field(default=(), metadata=LATER)
    masked_weight: float = field(default=1.0, metadata=LATER)
    visible_weight: float = field(default=1.0, metadata=LATER)
    prompts: str = field(default="text", metadata=LATER)
    prompt_field: str = field(default="question", metadata=LATER)
    answer_field: str = field(default="answer", metadata=LATER)

    def __str__(self) -> str:
        """Give a label, such as `tiny-text/128x128/prefix/prompt_share=0.5/seed1`.

        After source, size and masking it names what differs from the defaults. A data set of the
        hub has its commit behind its name.
        """
        named = ("source", "samples", "length", "masking", "seed", "digest")
        others = (one for one in dataclasses.fields(self) if one.name not in named)
        said = (
            f"/{one.name}={_plain(getattr(self, one.name))}"
            for one in others
            if getattr(self, one.name) != one.default
        )
        seed = "" if self.seed == 0 else f"/seed{self.seed}"
        pinned = (self.digest or "").removeprefix(f"{self.source}@")
        source = self.source if pinned == (self.digest or "") else f"{self.source}@{pinned[:8]}"
        return f"{source}/{self.samples}x{self.length}/{self.masking}{''.join(said)}{seed}"


@dataclass(frozen=True, kw_only=True)
class DecodingSpec:
    """How text is generated.

    Attributes:
        gen_length: Tokens in the generated window.
        steps: Denoising steps over the whole window.
        block_length: Tokens in a block; blocks are written from left to right. The timeline
            sampler has no blocks and does not read it.
        temperature: 0 is greedy. Otherwise the scale of LLaDA's Gumbel noise, or of Dream's
            softmax.
        algorithm: Name of the rule that chooses which positions to unmask.
        sampler: `blockwise` (LLaDA, arXiv 2502.09992, section 2.4) or `timeline` (Dream, arXiv
            2508.15487: the whole window, as many tokens a step as a time grid says).
        top_p: Sample from the likeliest tokens whose probabilities reach this sum; None is all.
        top_k: Sample from this many of the likeliest tokens; None is all.
        algorithm_temperature: Above 0, the timeline's positions are drawn by softmax(confidence /
            this) instead of taken from the top (Dream's `alg_temp`).
        cfg_scale: Classifier-free guidance w: logits are u + (w + 1)(c - u), where u are those of
            the masked prompt; 0 is off.
        forbid_end: End-of-text is never written (LLaDA's `logits_eos_inf`).
        defer_end: Positions whose token is end-of-text are written last (LLaDA's
            `confidence_eos_eot_inf`).
        threshold: Write every position of the block that is at least so probable, and at least
            one, instead of a fixed number a step (Fast-dLLM, arXiv 2505.22618); None is off.
        factor: Write the n surest positions for the largest n with (n + 1)(1 - p_n) < factor, and
            the last position of a block with those before it (Fast-dLLM); None is off.
        cache: `none`, `prefix` or `dual`: keys and values of tokens outside the block are kept
            from the block's first step (Fast-dLLM). Approximate.
    """

    gen_length: int = 32
    steps: int = 16
    block_length: int = 32
    temperature: float = 0.0
    algorithm: str = "low_confidence"
    sampler: str = field(default="blockwise", metadata=LATER)
    top_p: float | None = field(default=None, metadata=LATER)
    top_k: int | None = field(default=None, metadata=LATER)
    algorithm_temperature: float = field(default=0.0, metadata=LATER)
    cfg_scale: float = field(default=0.0, metadata=LATER)
    forbid_end: bool = field(default=False, metadata=LATER)
    defer_end: bool = field(default=False, metadata=LATER)
    threshold: float | None = field(default=None, metadata=LATER)
    factor: float | None = field(default=None, metadata=LATER)
    cache: str = field(default="none", metadata=LATER)


@dataclass(frozen=True, kw_only=True)
class TaskSpec:
    """One evaluation task.

    Attributes:
        name: A task of the package or any task of lm-eval.
        shots: Number of examples in the prompt; None is the task's own.
        limit: Only the first `limit` items; None is all.
        draws: Monte-Carlo draws for each answer of a likelihood task.
        digest: SHA-256 of the task's files and data, or lm-eval's version for its own tasks; set
            by planning, so that scores on changed data are never taken for the old ones.
        decoding: How text is generated for this task; None is as the protocol says.
        estimator: Which Monte-Carlo likelihood: `llada` (the number of hidden tokens is uniform)
            or `dream` (each token is hidden with probability t, t uniform).
        data: Folder with the task's data on local disk; None takes the task's own or the hub's.
        metric: The metric that stands for the task, such as `acc_norm`; None is the one that the
            task names, else its first.
    """

    name: str
    shots: int | None = None
    limit: int | None = None
    draws: int = 16
    digest: str | None = None
    decoding: DecodingSpec | None = field(default=None, metadata=LATER)
    estimator: str = field(default="llada", metadata=LATER)
    data: str | None = field(default=None, metadata=PLACE)
    metric: str | None = field(default=None, metadata=LATER)


@dataclass(frozen=True, kw_only=True)
class OutlierSpec:
    """The activations that the outlier statistics are taken over.

    Attributes:
        text: The sequences; their `masking` is ignored, `mask_ratios` replaces it.
        mask_ratios: Share of masked positions, one pass for each.
        top: How many channels and tokens are kept for each linear.
    """

    text: CalibrationSpec = CalibrationSpec(samples=8)
    mask_ratios: tuple[float, ...] = (0.0, 0.5, 1.0)
    top: int = 5


@dataclass(frozen=True, kw_only=True)
class ProtocolSpec:
    """Everything about the evaluation that must be equal for scores to be compared.

    Attributes:
        tasks: The tasks, sorted by name.
        decoding: How text is generated.
        outliers: What the outlier statistics are taken over; None takes none.
        dtype: Floating-point type of the computation.
        chat_template: Whether prompts are wrapped in the model's chat template.
    """

    tasks: tuple[TaskSpec, ...]
    decoding: DecodingSpec = DecodingSpec()
    outliers: OutlierSpec | None = OutlierSpec()
    dtype: str = "float32"
    chat_template: bool = field(default=False, metadata=LATER)

    def task(self, name: str) -> TaskSpec:
        """The task of this name."""
        return next(task for task in self.tasks if task.name == name)

    def decoding_of(self, task: TaskSpec) -> DecodingSpec:
        """How text is generated for a task: its own decoding where it has one."""
        return self.decoding if task.decoding is None else task.decoding

    @property
    def key(self) -> str:
        """SHA-256 of the canonical JSON: scores compare only within one protocol."""
        return hashlib.sha256(canonical(self).encode()).hexdigest()


@dataclass(frozen=True, kw_only=True)
class TrialSpec:
    """One point of a sweep: what is quantized, how, and how it is evaluated.

    Attributes:
        model: The checkpoint.
        method: Name of the quantization method; `fp` is the full-precision baseline.
        method_version: Raised by hand when a method's results change.
        parameters: The method's parameters, all of them, sorted by name.
        scheme: Bit-widths and grids.
        calibration: What the method sees; None if it needs nothing.
        protocol: The evaluation.
        seed: Seed of Monte-Carlo masks, of sampling and of a method's own random choices.
    """

    model: ModelRef
    method: str
    scheme: QuantScheme
    protocol: ProtocolSpec
    method_version: int = 1
    parameters: Parameters = ()
    calibration: CalibrationSpec | None = None
    seed: int = 0

    @property
    def key(self) -> str:
        """SHA-256 of the canonical JSON; never holds the attempt, the host or the git commit."""
        return self._key

    @cached_property
    def _key(self) -> str:
        return hashlib.sha256(canonical(self).encode()).hexdigest()

    @property
    def is_baseline(self) -> bool:
        """Whether this is the full-precision run that others are compared with."""
        return self.method == FULL_PRECISION_METHOD

    def units(self) -> tuple[Unit, ...]:
        """The units of work of this trial, in the order in which they run."""
        first = () if self.is_baseline else (Unit(kind="quantize"),)
        outliers = () if self.protocol.outliers is None else (Unit(kind="outliers"),)
        tasks = tuple(Unit(kind="evaluate", task=task.name) for task in self.protocol.tasks)
        return (*first, *outliers, *tasks)


@dataclass(frozen=True, kw_only=True)
class Unit:
    """The grain of scheduling and of durability: done in one transaction or not at all.

    Attributes:
        kind: `quantize`, `outliers` or `evaluate`.
        task: The task of an `evaluate` unit, else empty.
        shard: Which part of the task, from 0.
        shards: Into how many parts the task is cut.
    """

    kind: str
    task: str = ""
    shard: int = 0
    shards: int = 1

    @property
    def key(self) -> str:
        """A text that is unique within the trial."""
        name = self.kind if not self.task else f"{self.kind}:{self.task}"
        return name if self.shards == 1 else f"{name}:{self.shard + 1}/{self.shards}"


def to_json(value: object) -> JsonValue:
    """Turn a spec (or a tuple of specs) into plain JSON values, field by field."""
    if dataclasses.is_dataclass(value) and not isinstance(value, type):
        fields = dataclasses.fields(value)
        return {one.name: to_json(getattr(value, one.name)) for one in fields}
    if isinstance(value, tuple | list):
        return [to_json(item) for item in value]
    return value


def from_json(kind: type[T], value: JsonValue) -> T:
    """Build a spec of type `kind` from what `to_json` gave."""
    built: T = _build(kind, value)
    return built


def sha256_of(value: JsonValue) -> str:
    """SHA-256 of the canonical JSON text of plain JSON values."""
    text = json.dumps(value, sort_keys=True, separators=(",", ":"), allow_nan=False)
    return hashlib.sha256(text.encode()).hexdigest()


def canonical(value: object) -> str:
    """The canonical JSON text of a spec: what its key is the SHA-256 of."""
    return _text(value, _TEXT)


def with_places(value: object) -> str:
    """The canonical JSON text of a spec with the places in it: what is stored of a trial."""
    return _text(value, _PLACED_TEXT)


def _text(value: object, kind: str) -> str:
    if dataclasses.is_dataclass(value) and not isinstance(value, type):
        # Specs are frozen and shared by many trials: each is written out once.
        kept: str | None = value.__dict__.get(kind)
        if kept is None:
            shown = (
                (one.name, getattr(value, one.name), one) for one in _sorted_fields(type(value))
            )
            parts = (
                f'"{name}":{_text(part, kind)}'
                for name, part, one in shown
                if _is_said(one, part, kind)
            )
            kept = value.__dict__[kind] = "{" + ",".join(parts) + "}"
        return kept
    if isinstance(value, tuple) and value and dataclasses.is_dataclass(value[0]):
        return "[" + ",".join(_text(item, kind) for item in value) + "]"
    return _encode(value)


@cache
def _sorted_fields(kind: Any) -> tuple[dataclasses.Field[Any], ...]:
    return tuple(sorted(dataclasses.fields(kind), key=lambda one: one.name))


def _is_said(one: dataclasses.Field[Any], value: object, kind: str) -> bool:
    if "place" in one.metadata:
        return kind == _PLACED_TEXT and value != one.default
    return "later" not in one.metadata or value != one.default


def _build(kind: Any, value: JsonValue) -> Any:
    if value is None:
        return None
    if get_origin(kind) is UnionType:
        return _build(next(arm for arm in get_args(kind) if arm is not type(None)), value)
    if get_origin(kind) is tuple:
        item, *_ = get_args(kind)
        return tuple(_build(item, part) for part in value)
    if isinstance(kind, type) and dataclasses.is_dataclass(kind):
        hints = _hints(kind)
        return kind(**{name: _build(hints[name], part) for name, part in value.items()})
    return _frozen(value)


def _plain(value: object) -> str:
    return ",".join(map(str, value)) if isinstance(value, tuple) else str(value)


@cache
def _hints(kind: type) -> dict[str, Any]:
    return get_type_hints(kind)


def _frozen(value: JsonValue) -> Any:
    return tuple(_frozen(part) for part in value) if isinstance(value, list) else value
