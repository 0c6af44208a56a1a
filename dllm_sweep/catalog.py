"""What can be named in a sweep file, and what planning must know of it. Nothing loads a model."""

from __future__ import annotations

import difflib
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from functools import lru_cache
from typing import TYPE_CHECKING, Any, TypeVar

from dllm_sweep import plugins
from dllm_sweep.errors import InputError, UnknownName
from dllm_sweep.spec import CalibrationSpec, DecodingSpec, ModelRef, QuantScheme, TaskSpec

if TYPE_CHECKING:
    from dllm_sweep.manifest import Recipe
    from dllm_sweep.models.family import Widths

T = TypeVar("T")

EXAMPLE_SCHEMES = (
    ("w8a16", "8-bit weights, one scale per output channel"),
    ("w4a16-g128", "4-bit weights, one scale per 128 inputs"),
    ("w3a16-g128", "3-bit weights in groups of 128"),
    ("w2a16-g64", "2-bit weights in groups of 64"),
    ("w8a8", "8-bit weights, 8-bit inputs, one scale per token"),
    ("w4a8-g128", "4-bit weights in groups of 128, 8-bit inputs"),
    ("w4a4", "4-bit weights and inputs"),
    ("w4a16-g128-sym", "the same with a symmetric grid, whatever the method's default"),
)
"""Schemes that the study uses; any other bit-widths and group sizes are legal too."""

USUAL_ALGORITHM = {"blockwise": "low_confidence", "timeline": "entropy"}
"""The algorithm of each sampler that its authors evaluate with."""

_SLIP = 0.8
"""Likeness of two names, from 0 to 1, above which one is taken for the other misspelt."""
_METHOD_PARTS = ("version", "needs_calibration", "symmetric", "refusal", "quantize")


def names(kind: str) -> tuple[str, ...]:
    """All names of one kind.

    Kinds are model, method, task, calibration, masking, preset, decoding algorithm, model family.
    """
    if kind == "model":
        from dllm_sweep.models.locate import embedded_names

        return embedded_names()
    if kind == "task":
        from dllm_sweep.evaluation.tasks import known_tasks

        return tuple(known_tasks())
    if kind == "calibration":
        from dllm_sweep.calibration import sources

        return sources.names()
    if kind == "preset":
        from dllm_sweep import presets

        return presets.names()
    return plugins.names(kind)


def check_name(kind: str, name: str) -> None:
    """Refuse a name that does not exist.

    Raises:
        UnknownName: With the nearest name that does.
    """
    if name not in names(kind):
        raise UnknownName(kind, name, names(kind))


@lru_cache
def resolve_model(text: str) -> ModelRef:
    """Find a checkpoint and its digest by embedded name, folder, or hub id with `@revision`.

    Raises:
        InputError: If there is no such model, or its folder cannot be used.
    """
    from dllm_sweep.models.locate import resolve_model as resolve

    return resolve(text)


@dataclass(frozen=True, kw_only=True)
class ModelFacts:
    """What planning must know of a model.

    Attributes:
        family: The family that loads it.
        sampler: The sampler its authors use, as in `DecodingSpec.sampler`.
        estimator: The Monte-Carlo likelihood its authors use, as in `TaskSpec.estimator`.
        max_length: Longest usable sequence in tokens; None if it is not known.
        block_size: Tokens in a block of block-causal attention; None if attention is full.
        widths: Sizes of its layers; None if they are not known.
        layers: Number of its blocks; None if it is not known.
        embedded: Whether the package carries it, or what it was quantized from.
        quantized: How a saved quantized model was made; None if it is in full precision, as far as
            is known.
    """

    family: str
    sampler: str
    estimator: str
    max_length: int | None
    block_size: int | None
    widths: Widths | None
    layers: int | None
    embedded: bool
    quantized: Recipe | None = None


@lru_cache
def facts_of(ref: ModelRef) -> ModelFacts:
    """Say what a model's family is and what follows from it, without loading it.

    Raises:
        InputError: If no family is known for it.
    """
    from dllm_sweep.models import known, locate
    from dllm_sweep.models.family import Widths
    from dllm_sweep.models.linear_names import layers_of

    name = ref.family or locate.family_of(ref)
    family = plugins.load("model family", name)
    config, published = locate.local_config(ref), known.published(ref.name)
    recipe = locate.recipe_of(ref)
    source = ref.name if recipe is None else recipe.model
    return ModelFacts(
        family=name,
        sampler=family.sampler,
        estimator=family.estimator,
        max_length=_read(family.max_length, config, published.max_length if published else None),
        block_size=_read(family.block_size, config, published.block_size if published else None),
        widths=_read(Widths.of_config, config, published.widths if published else None),
        layers=_read(layers_of, config, published.layers if published else None),
        embedded=source in locate.embedded_names(),
        quantized=recipe,
    )


def _read(
    of_family: Callable[[Mapping[str, Any]], T | None],
    config: Mapping[str, Any] | None,
    published: T | None,
) -> T | None:
    """What a family reads from config.json, where that is here and says it; else the table's."""
    try:
        return published if config is None else of_family(config)
    except KeyError:
        return published


def sampler_of(algorithm: str) -> str:
    """The sampler that a decoding algorithm belongs to."""
    from dllm_sweep.decoding import options

    return options.sampler_of(algorithm)


def check_decoding(decoding: DecodingSpec, facts: ModelFacts) -> None:
    """Refuse options that do not go together, or not with a model.

    Raises:
        InputError: It says which and why.
    """
    from dllm_sweep.decoding import options

    options.check_decoding(decoding, block_size=facts.block_size)


def input_sizes(model: ModelRef) -> list[int]:
    """Numbers of inputs that a checkpoint's matrices have; empty if they are not known."""
    from dllm_sweep.models.known import published
    from dllm_sweep.models.locate import tensor_shapes

    known = published(model.name)
    if known is not None:
        return list(known.input_sizes)
    return sorted({shape[1] for shape in tensor_shapes(model).values() if len(shape) == 2})


def build_method(name: str, parameters: Mapping[str, Any]) -> Any:
    """Build a method from its name or `file.py:Class` and the parameters that differ.

    Raises:
        UnknownName: If there is no such method or parameter.
        InputError: If a parameter's value cannot be used.
    """
    from dllm_sweep.methods import build

    method = build(name, parameters)
    lacking = [part for part in _METHOD_PARTS if not hasattr(method, part)]
    if lacking:
        raise InputError(f"method {name!r} lacks {', '.join(lacking)}")
    return method


@lru_cache
def resolve_calibration(spec: CalibrationSpec, revision: str | None = None) -> CalibrationSpec:
    """Find a calibration set and put the digest of its content into its spec.

    Args:
        spec: The set; if it has a digest already, that stays.
        revision: Branch, tag or commit of a hub data set.

    Raises:
        InputError: If there is no such set, or it cannot be read.
    """
    from dllm_sweep.calibration.sources import calibration_digest, local_path

    if spec.digest is not None:
        return spec
    near = difflib.get_close_matches(spec.source, names("calibration"), n=1, cutoff=_SLIP)
    if near and near[0] != spec.source and local_path(spec.source) is None:
        # A slip of the pen must not become a request to the hub.
        raise UnknownName("calibration", spec.source, names("calibration"))
    return replace(spec, digest=calibration_digest(spec, revision))


def misfit(method: Any, scheme: QuantScheme, facts: ModelFacts) -> str | None:
    """Say why a model's layers do not fit what a method does; None if they do, as far as is known.

    A method that asks something of their sizes has a function `misfit` of its own.
    """
    ask = getattr(method, "misfit", None)
    found: str | None = None if ask is None or facts.widths is None else ask(scheme, facts.widths)
    return found or _unmatched(method, facts)


def _unmatched(method: Any, facts: ModelFacts) -> str | None:
    modules, skipped = getattr(method, "modules", ("*",)), getattr(method, "skip_modules", ())
    if facts.layers is None or (modules, skipped) == (("*",), ()):
        return None
    from dllm_sweep.models.linear_names import linear_names, unmatched

    groups = plugins.load("model family", facts.family).linear_groups
    return unmatched(linear_names(groups, facts.layers), modules, skipped)


@lru_cache
def calibration_problems(spec: CalibrationSpec) -> tuple[tuple[str, str], ...]:
    """Say which options of a calibration set are wrong: pairs of a key and what is wrong with it.

    The columns of a local file are looked for, too.
    """
    from dllm_sweep.calibration import options

    return tuple(options.problems(spec)) or tuple(options.column_problems(spec))


@lru_cache
def calibration_refusal(spec: CalibrationSpec, facts: ModelFacts) -> str | None:
    """Say why a model cannot be calibrated this way, or None if it can."""
    from dllm_sweep.calibration import options

    return options.refusal(spec, facts.sampler, facts.block_size)


def written_tokens(spec: CalibrationSpec) -> int:
    """Tokens that pass through a model which has to write its calibration sequences first."""
    from dllm_sweep.calibration import options

    return options.written_tokens(spec)


def resolve_task(spec: TaskSpec) -> TaskSpec:
    """Add the digest of the task's files, or of lm-eval for its own tasks."""
    from dllm_sweep.evaluation.tasks import task_digest

    return replace(spec, digest=task_digest(spec.name, spec.data, spec.shots))


def check_data(spec: TaskSpec) -> None:
    """Refuse a task whose data are neither local nor within reach.

    Raises:
        InputError: It says what is missing and where it would have to be.
    """
    from dllm_sweep.evaluation.tasks import check_task_data

    check_task_data(spec)


def check_task(name: str) -> None:
    """Refuse what is neither a task of the package, nor a file, nor a task of lm-eval.

    Raises:
        UnknownName: With the nearest task of the package.
    """
    from dllm_sweep.evaluation.tasks import is_lm_eval_task, task_file
    from dllm_sweep.evaluation.tasks.facts import FACTS

    if name in FACTS:
        return  # known without reading lm-eval's index, which takes seconds
    if task_file(name) is None and not is_lm_eval_task(name):
        raise UnknownName("task", name, names("task"), "any task of lm-eval")
