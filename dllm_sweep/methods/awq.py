"""AWQ (arXiv 2306.00978): scale up the inputs that matter before rounding, then clip the weights.

Weights only. For the linears that share an input, per-channel scales are searched that make the
output of the smallest module around them (the attention, the feed-forward network, or the linear
itself) change least under rounding; they are divided out of whatever gives the input. Then each
group's range is clipped where that lowers its error. All searches see full-precision activations.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any, ClassVar

import torch
from torch import Tensor, nn

from dllm_sweep.calibration.batch import CalibrationBatch
from dllm_sweep.errors import QuantizationError
from dllm_sweep.methods import rtn
from dllm_sweep.methods.base import ALONE, QuantizationReport, Workspace
from dllm_sweep.methods.layerwise import require_text
from dllm_sweep.methods.parameters import Patterns, require
from dllm_sweep.models.base import DiffusionModel, LinearGroup
from dllm_sweep.quant.affine import weight_family
from dllm_sweep.quant.apply import install, select, unsupported
from dllm_sweep.quant.capture import (
    BlockInputs,
    Call,
    capture_first_block,
    counted,
    evaluating,
    record_calls,
)
from dllm_sweep.quant.fuse import divide_outputs, multiply_inputs, takes_output_scales
from dllm_sweep.quant.hessian import exact_products
from dllm_sweep.quant.linear import ActivationQuantization
from dllm_sweep.quant.scale_search import clip, round_scaled, search_clip, search_scales
from dllm_sweep.records import ModuleRow
from dllm_sweep.spec import FULL_PRECISION_BITS, QuantScheme

UNCLIPPED = ("q_proj", "k_proj")
"""Their products are squared into attention scores: the authors leave them unclipped."""


@dataclass(frozen=True, kw_only=True)
class Awq:
    """Activation-aware weight quantization.

    Attributes:
        grid_points: How many ratios the scale search tries.
        search_scale: Whether scales are searched at all.
        search_clip: Whether ranges are clipped.
        clip_steps: Into how many parts a range is cut.
        max_shrink: By which share a range shrinks at most, in [0, 1).
        clip_tokens: How many tokens the clip search sees.
        modules: Which linears are quantized.
        skip_modules: Which of them are left out.
    """

    version: ClassVar[int] = 1
    needs_calibration: ClassVar[bool] = True
    symmetric: ClassVar[bool] = False

    grid_points: int = 20
    search_scale: bool = True
    search_clip: bool = True
    clip_steps: int = 20
    max_shrink: float = 0.5
    clip_tokens: int = 512
    modules: Patterns = ("*",)
    skip_modules: Patterns = ()

    def __post_init__(self) -> None:
        require(self.grid_points >= 1, "grid_points", self.grid_points, "at least 1")
        require(self.clip_steps >= 1, "clip_steps", self.clip_steps, "at least 1")
        require(0 <= self.max_shrink < 1, "max_shrink", self.max_shrink, "at least 0 and below 1")
        require(self.clip_tokens >= 1, "clip_tokens", self.clip_tokens, "at least 1")

    def refusal(self, scheme: QuantScheme) -> str | None:
        """Refuse everything but quantized weights with full-precision activations."""
        if scheme.w_bits == FULL_PRECISION_BITS:
            return f"{scheme}: awq quantizes weights; use rtn for activations alone"
        if scheme.a_bits < FULL_PRECISION_BITS:
            return (
                f"{scheme}: awq quantizes weights only; use smoothquant, quarot or duquant for"
                " activations"
            )
        return unsupported("awq", scheme)

    def quantize(
        self,
        model: DiffusionModel,
        scheme: QuantScheme,
        calibration: Sequence[CalibrationBatch],
        *,
        seed: int = 0,
        workspace: Workspace = ALONE,
    ) -> QuantizationReport:
        """Quantize `model` in place; nothing is random, so `seed` is not used.

        Raises:
            QuantizationError: If there is no calibration text, a pattern matches nothing, or a
                layer cannot be quantized.
        """
        chosen = select(model.linears(), self.modules, self.skip_modules)
        require_text(calibration)
        symmetric = self.symmetric if scheme.symmetric is None else scheme.symmetric
        walk = _Walk(self, model, scheme, symmetric, frozenset(chosen))
        with evaluating(model.host), exact_products(), torch.no_grad():
            inputs = capture_first_block(model, calibration)
            for index, block in enumerate(model.blocks):
                seen = walk.search(index, inputs)
                # The next block is calibrated on what full precision gives: scales change nothing.
                if index + 1 < len(model.blocks):
                    inputs.advance(block)
                walk.round(index, seen)
                workspace.progress(index + 1, len(model.blocks))
        return QuantizationReport(modules=tuple(walk.rows[name] for name in chosen))


PLUGIN = Awq


@dataclass
class _Walk:
    method: Awq
    model: DiffusionModel
    scheme: QuantScheme
    symmetric: bool
    chosen: frozenset[str]
    rows: dict[str, ModuleRow] = field(default_factory=dict)

    @property
    def grid(self) -> dict[str, Any]:
        """Arguments of all rounding functions."""
        return {
            "bits": self.scheme.w_bits,
            "group_size": self.scheme.group_size,
            "family": weight_family(self.symmetric),
        }

    def search(self, index: int, inputs: BlockInputs) -> dict[str, Tensor]:
        """Scale one block; give some tokens of what each chosen linear then reads, (T, n)."""
        block, seen = self.model.blocks[index], {}
        prefix = f"{self.model.block_name(index)}."
        for group in self.model.family.linear_groups:
            names = tuple(name for name in group.linears if prefix + name in self.chosen)
            if names:
                sample = self._scale_group(block, group, names, inputs, prefix)
                seen.update(dict.fromkeys(names, sample))
        return seen

    def round(self, index: int, seen: Mapping[str, Tensor]) -> None:
        """Clip and round the chosen linears of one block."""
        for name, sample in seen.items():
            self._round_linear(index, name, sample)

    def _scale_group(
        self,
        block: nn.Module,
        group: LinearGroup,
        names: Sequence[str],
        inputs: BlockInputs,
        prefix: str,
    ) -> Tensor:
        around = inspected(block, group)
        calls = record_calls(block, around, inputs)
        tokens = [counted(c.hidden, w) for c, w in zip(calls, inputs.weights, strict=True)]
        sample = _subsample(tokens, self.method.clip_tokens)
        source, channels = block.get_submodule(group.source), tokens[0].shape[-1]
        if not (self.method.search_scale and takes_output_scales(source, channels)):
            return sample
        error = OutputError(block.get_submodule(around), calls, inputs.weights)
        linears = [block.get_submodule(name) for name in names]

        def loss(scales: Tensor) -> float:
            rounded = [round_scaled(linear.weight, scales, **self.grid) for linear in linears]
            return error.with_weights(linears, rounded)

        try:
            found = search_scales(mean_magnitude(tokens), loss, grid_points=self.method.grid_points)
        except QuantizationError as reason:
            raise QuantizationError(f"{prefix}{names[0]}: {reason}") from reason
        divide_outputs(source, found.scales)
        multiply_inputs([block.get_submodule(name) for name in group.linears], found.scales)
        return sample / found.scales.to(sample.dtype)

    def _round_linear(self, index: int, name: str, sample: Tensor) -> None:
        full = f"{self.model.block_name(index)}.{name}"
        weight = self.model.host.get_submodule(full).weight.detach()
        try:
            if self.method.search_clip and name.rpartition(".")[2] not in UNCLIPPED:
                steps, shrink = self.method.clip_steps, self.method.max_shrink
                bounds = search_clip(weight, sample, steps=steps, max_shrink=shrink, **self.grid)
                weight = clip(weight, bounds)
            solution = rtn.solver(**self.grid)(weight, weight.new_empty(0, 0))
        except QuantizationError as reason:
            raise QuantizationError(f"{full}: {reason}") from reason
        self.rows[full] = install(
            self.model.host,
            full,
            solution.dequantized,
            scheme=self.scheme,
            symmetric=self.symmetric,
            activation=ActivationQuantization(),
            bits=len(weight) * solution.bits_per_output,
            grid=solution.grid,
        )


def inspected(block: nn.Module, group: LinearGroup) -> str:
    """Name the smallest module of a block that shows the error of a group's linears."""
    if block.get_submodule(group.source).weight.ndim == 1:
        return group.linears[0].rpartition(".")[0]
    return group.linears[0]


def mean_magnitude(tokens: Sequence[Tensor]) -> Tensor:
    """Give the mean of |x_j| over all tokens, (n,) float64; each tensor is (T, n)."""
    total = sum(part.double().abs().sum(0) for part in tokens)
    return total / sum(len(part) for part in tokens)


@dataclass(frozen=True, eq=False)
class OutputError:
    """How much a module's output changes when some of its weights do.

    Attributes:
        module: In full precision.
        calls: What it is called with.
        weights: (B, L) for each call, how much a token counts; None if all count the same.
    """

    module: nn.Module
    calls: Sequence[Call]
    weights: Sequence[Tensor | None]
    expected: list[Tensor] = field(init=False)

    def __post_init__(self) -> None:
        outputs = [call.repeat(self.module) for call in self.calls]
        object.__setattr__(self, "expected", outputs)

    def with_weights(self, linears: Sequence[nn.Module], weights: Sequence[Tensor]) -> float:
        """Give the mean squared change of an output with these weights (m, n) in `linears`."""
        total = torch.zeros((), dtype=torch.float64, device=self.expected[0].device)
        count = 0
        with _weights_replaced(linears, weights):
            for call, expected, weights in zip(
                self.calls, self.expected, self.weights, strict=True
            ):
                change = (call.repeat(self.module).float() - expected.float()).square()
                kept = counted(change, weights)
                total += kept.sum(dtype=torch.float64)
                count += kept.numel()
        return float(total) / count


@contextmanager
def _weights_replaced(linears: Sequence[nn.Module], weights: Sequence[Tensor]) -> Iterator[None]:
    kept = [linear.weight for linear in linears]
    try:
        for linear, weight in zip(linears, weights, strict=True):
            linear.weight = nn.Parameter(weight.to(linear.weight.dtype), requires_grad=False)
        yield
    finally:
        for linear, weight in zip(linears, kept, strict=True):
            linear.weight = weight


def _subsample(tokens: Sequence[Tensor], count: int) -> Tensor:
    """Give every k-th token (T, n) of all, k the whole number that leaves at least `count`."""
    stride = max(1, sum(len(part) for part in tokens) // count)
    kept, before = [], 0
    for part in tokens:
        kept.append(part[-before % stride :: stride])
        before += len(part)
    return torch.cat(kept)
