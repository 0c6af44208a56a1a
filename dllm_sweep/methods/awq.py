"""AWQ (arXiv 2306.00978): scale up the inputs that matter before rounding, then clip the weights.

Weights only. For the linears that share an input, per-channel scales are searched that make the
output of the smallest module around them (the attention, the feed-forward network, or the linear
itself) change least under rounding; they are divided out of whatever gives the input. Then each
group's range is clipped where that lowers its error. All searches see full-precision weights in
all blocks before. What is scaled and clipped is rounded to nearest. Or what is scaled is rounded by
GPTQ; clipping gives the ranges of its grids then, and is compensated, too.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from functools import partial
from typing import Any, ClassVar

import torch
from torch import Tensor

from dllm_sweep.calibration.batch import CalibrationBatch
from dllm_sweep.errors import QuantizationError
from dllm_sweep.methods import gptq, rtn
from dllm_sweep.methods.base import ALONE, BlockRecord, QuantizationReport, Workspace
from dllm_sweep.methods.layerwise import LayerQuantizer, require_text
from dllm_sweep.methods.parameters import Patterns, require
from dllm_sweep.methods.rounding import SOLVERS
from dllm_sweep.models.base import DiffusionModel, LinearGroup
from dllm_sweep.quant.affine import weight_family
from dllm_sweep.quant.apply import select, unsupported
from dllm_sweep.quant.attention import round_operands
from dllm_sweep.quant.capture import BlockInputs, capture_first_block, evaluating
from dllm_sweep.quant.fuse import divide_outputs, multiply_inputs, takes_output_scales
from dllm_sweep.quant.hessian import collect_hessians, exact_products
from dllm_sweep.quant.linear import ActivationQuantization
from dllm_sweep.quant.output_error import inspect
from dllm_sweep.quant.scale_search import clip, round_scaled, search_clip, search_scales
from dllm_sweep.quant.visiting import visiting
from dllm_sweep.spec import FULL_PRECISION_BITS, QuantScheme

UNCLIPPED = ("q_proj", "k_proj")
"""Their products are squared into attention scores: the authors leave them unclipped."""
SEARCHED_ON = ("module", "block")


@dataclass(frozen=True, kw_only=True)
class Awq:
    """Activation-aware weight quantization.

    Attributes:
        solver: How scaled and clipped weights are rounded: `rtn` or `gptq`.
        grid_points: How many ratios the scale search tries.
        search_scale: Whether scales are searched at all.
        search_on: Where the scale search looks for the error of linears behind a norm: on the
            smallest `module` around them, or on the whole `block`, called with what the linears
            read, as the study's code does with LLaDA.
        search_clip: Whether ranges are clipped; null is with rtn alone, because GPTQ loses less to
            the whole range.
        clip_steps: Into how many parts a range is cut.
        max_shrink: By which share a range shrinks at most, in [0, 1).
        clip_tokens: How many tokens the clip search sees.
        damping: Share of the Hessian's mean diagonal that is added to it; for gptq.
        activation_order: Round the inputs with the greatest activations first; for gptq.
        modules: Which linears are quantized.
        skip_modules: Which of them are left out.
    """

    version: ClassVar[int] = 2
    needs_calibration: ClassVar[bool] = True
    symmetric: ClassVar[bool] = False

    solver: str = "rtn"
    grid_points: int = 20
    search_scale: bool = True
    search_on: str = "module"
    search_clip: bool | None = None
    clip_steps: int = 20
    max_shrink: float = 0.5
    clip_tokens: int = 512
    damping: float = 0.01
    activation_order: bool = True
    modules: Patterns = ("*",)
    skip_modules: Patterns = ()

    def __post_init__(self) -> None:
        require(self.solver in SOLVERS, "solver", self.solver, " or ".join(SOLVERS))
        require(self.grid_points >= 1, "grid_points", self.grid_points, "at least 1")
        expected = " or ".join(SEARCHED_ON)
        require(self.search_on in SEARCHED_ON, "search_on", self.search_on, expected)
        require(self.clip_steps >= 1, "clip_steps", self.clip_steps, "at least 1")
        require(0 <= self.max_shrink < 1, "max_shrink", self.max_shrink, "at least 0 and below 1")
        require(self.clip_tokens >= 1, "clip_tokens", self.clip_tokens, "at least 1")
        require(0 <= self.damping < 1, "damping", self.damping, "at least 0 and below 1")

    @property
    def clips(self) -> bool:
        """Whether ranges are clipped."""
        return self.solver == "rtn" if self.search_clip is None else self.search_clip

    def refusal(self, scheme: QuantScheme) -> str | None:
        """Refuse all but quantized weights with full-precision activations, and idle parameters."""
        if scheme.w_bits == FULL_PRECISION_BITS:
            return f"{scheme}: awq quantizes weights; use rtn for activations alone"
        if scheme.a_bits < FULL_PRECISION_BITS:
            return (
                f"{scheme}: awq quantizes weights only; use smoothquant, quarot or duquant for"
                " activations"
            )
        if self.solver == "rtn" and not (self.activation_order and self.damping == Awq.damping):
            return "the solver rtn reads neither damping nor activation_order; use solver gptq"
        if not self.search_scale and self.search_on != Awq.search_on:
            return f"search_on {self.search_on} has no scales to search; set search_scale to true"
        if not (self.search_scale or self.clips):
            return f"awq without its two searches is plain rounding; use the method {self.solver}"
        return unsupported("awq", scheme, operands=True)

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
        operands = round_operands(model, scheme)
        symmetric = self.symmetric if scheme.symmetric is None else scheme.symmetric
        grid: dict[str, Any] = {
            "bits": scheme.w_bits,
            "group_size": scheme.group_size,
            "family": weight_family(symmetric),
        }
        search = _Search(self, model, frozenset(chosen), grid)
        activation = ActivationQuantization()
        layers = LayerQuantizer(model, scheme, rtn.solver(**grid), activation, symmetric)
        with evaluating(model.host), exact_products(), torch.no_grad():
            records = _Walk(search, layers).run(calibration, workspace)
        report = QuantizationReport.of(records, chosen)
        return replace(report, modules=(*report.modules, *operands))


PLUGIN = Awq


@dataclass(frozen=True)
class _Walk:
    """Quantizes block after block, with one or two streams of hidden states.

    The searches of every block see full precision; GPTQ, here as elsewhere, sees what the
    quantized blocks before give.
    """

    search: _Search
    layers: LayerQuantizer

    def run(
        self, calibration: Sequence[CalibrationBatch], workspace: Workspace
    ) -> list[BlockRecord]:
        """Quantize all blocks."""
        model, records = self.search.model, []
        full = capture_first_block(model, calibration)
        rounded = _copy(full) if self.search.method.solver == "gptq" else None
        for index, block in enumerate(model.blocks):
            is_last = index + 1 == len(model.blocks)
            with visiting(block, workspace.device):
                following = _copy(full)
                if not is_last:
                    # Before the block is scaled: one that is restored never is, and the next
                    # block must see the same bits.
                    following.advance(block)
                records.append(
                    workspace.finish(
                        model, index, partial(self._quantize_block, index, full, rounded)
                    )
                )
                if rounded is not None and not is_last:
                    rounded.advance(block)
            full = following
            workspace.progress(index + 1, len(model.blocks))
        return records

    def _quantize_block(
        self, index: int, full: BlockInputs, rounded: BlockInputs | None
    ) -> BlockRecord:
        model = self.search.model
        block, prefix, records = model.blocks[index], f"{model.block_name(index)}.", []
        for group, sample in self.search.scale(index, full).items():
            names = [prefix + name for name in group]
            weight = torch.cat([self.search.clipped(name, sample) for name in names])
            if rounded is None:
                records.append(self.layers.quantize(names, weight=weight))
            else:
                (hessian,) = collect_hessians(block, group[:1], rounded).values()
                records.append(self._compensating(weight).quantize(names, hessian))
        return BlockRecord.joined(records)

    def _compensating(self, clipped: Tensor) -> LayerQuantizer:
        method = self.search.method
        solve = gptq.solver(
            **self.search.grid,
            damping=method.damping,
            activation_order=method.activation_order,
            fitted_to=clipped,
        )
        return replace(self.layers, solve=solve)


def _copy(inputs: BlockInputs) -> BlockInputs:
    return replace(inputs, hidden=list(inputs.hidden))


@dataclass(frozen=True)
class _Search:
    """The two searches, for one model and its chosen linears (full names)."""

    method: Awq
    model: DiffusionModel
    chosen: frozenset[str]
    grid: Mapping[str, Any]

    def scale(self, index: int, inputs: BlockInputs) -> dict[tuple[str, ...], Tensor]:
        """Scale one block.

        Returns:
            Some tokens (T, n) of what each group's chosen linears, named within the block, read
            then.
        """
        prefix, seen = f"{self.model.block_name(index)}.", {}
        for group in self.model.family.linear_groups:
            names = tuple(name for name in group.linears if prefix + name in self.chosen)
            if names:
                with _naming(prefix + names[0]):
                    seen[names] = self._scale_group(index, group, names, inputs)
        return seen

    def clipped(self, name: str, sample: Tensor) -> Tensor:
        """Give a linear's weight (m, n), float32, its ranges cut where that lowers the error."""
        weight = self.model.host.get_submodule(name).weight.detach().float()
        if not self.method.clips or name.rpartition(".")[2] in UNCLIPPED:
            return weight
        steps, shrink = self.method.clip_steps, self.method.max_shrink
        with _naming(name):
            bounds = search_clip(weight, sample, steps=steps, max_shrink=shrink, **self.grid)
        return clip(weight, bounds)

    def _scale_group(
        self, index: int, group: LinearGroup, names: Sequence[str], inputs: BlockInputs
    ) -> Tensor:
        block = self.model.blocks[index]
        count, search_on = self.method.clip_tokens, self.method.search_on
        seen = inspect(block, group, inputs, search_on=search_on, sample=count)
        magnitude, sample = seen.summary.mean_magnitude(), seen.summary.sample()
        source = block.get_submodule(group.source)
        if not (self.method.search_scale and takes_output_scales(source, len(magnitude))):
            return sample
        linears = [block.get_submodule(name) for name in names]

        def loss(scales: Tensor) -> float:
            rounded = [round_scaled(linear.weight, scales, **self.grid) for linear in linears]
            return seen.error.with_weights(linears, rounded)

        scales = search_scales(magnitude, loss, grid_points=self.method.grid_points).scales
        divide_outputs(source, scales)
        multiply_inputs([block.get_submodule(name) for name in group.linears], scales)
        return sample / scales.to(sample.dtype)


@contextmanager
def _naming(linear: str) -> Iterator[None]:
    try:
        yield
    except QuantizationError as error:
        raise QuantizationError(f"{linear}: {error}") from error
