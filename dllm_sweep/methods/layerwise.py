"""The walk that layer-wise methods share: block by block, on what the blocks before really give.

Every block sees the outputs of the quantized blocks before it. Layers that share an input are
solved together, from one Hessian, with their rows stacked.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, field

import torch
from torch import Tensor, nn

from dllm_sweep.calibration.batch import CalibrationBatch
from dllm_sweep.errors import QuantizationError
from dllm_sweep.methods.base import QuantizationReport, Workspace
from dllm_sweep.models.base import DiffusionModel
from dllm_sweep.quant.affine import WeightGrid
from dllm_sweep.quant.apply import install, select
from dllm_sweep.quant.capture import (
    BlockInputs,
    capture_first_block,
    counted,
    counted_weights,
    evaluating,
    visit_inputs,
)
from dllm_sweep.quant.hessian import Hessian, exact_products
from dllm_sweep.quant.linear import ActivationQuantization, transform_of, transformed
from dllm_sweep.records import ModuleRow
from dllm_sweep.spec import QuantScheme

TOKENS_PER_INPUT = 4
"""With fewer calibration tokens for each input, a method fits the text and not the model."""


@dataclass(frozen=True, kw_only=True, eq=False)
class Solution:
    """What a solver made of the stacked weights of some layers.

    Attributes:
        dequantized: (m, n), the rounded weights.
        bits_per_output: Stored bits of one output channel.
        bits_per_input: Stored bits of one input of each layer, beside its weights.
        warning: What the user should know of this solution.
        grid: What the weights were rounded to; None if they were not.
    """

    dequantized: Tensor
    bits_per_output: int
    bits_per_input: int = 0
    warning: str | None = None
    grid: WeightGrid | None = None


Solver = Callable[[Tensor, Tensor], Solution]
"""Called with stacked weights (m, n) and the Hessian (n, n) of their common input, which is empty
(0, 0) for a solver that reads no inputs."""
Prepare = Callable[[int, BlockInputs], None]
"""Called with a block's index and its inputs, before any of its layers is quantized."""
Group = tuple[str, ...]
"""Linears that share their input, by name within the block."""


def quantize_layerwise(
    model: DiffusionModel,
    scheme: QuantScheme,
    calibration: Sequence[CalibrationBatch],
    solve: Solver,
    *,
    activation: ActivationQuantization,
    symmetric: bool,
    true_sequential: bool,
    modules: Iterable[str],
    skip_modules: Iterable[str],
    workspace: Workspace,
    reads_inputs: bool = True,
    prepare: Prepare | None = None,
) -> QuantizationReport:
    """Quantize a model in place, layer by layer in depth order.

    A linear that transforms its input is solved for its transformed input.

    Args:
        model: In full precision.
        scheme: Bit-widths and group size.
        calibration: What the model sees.
        solve: Rounds the weights of layers with a common input.
        activation: How the input of every quantized layer is rounded.
        symmetric: The weight grid, for the record.
        true_sequential: Whether later layers of a block see its earlier ones quantized.
        modules: Patterns of the layers to quantize.
        skip_modules: Patterns of those left out.
        workspace: What surrounds the work.
        reads_inputs: Whether the solver wants Hessians.
        prepare: Puts transforms in front of a block's linears, given its inputs.

    Raises:
        QuantizationError: If there is no calibration text, a pattern matches nothing, or a layer
            cannot be quantized; the message names the layer.
    """
    chosen = select(model.linears(), modules, skip_modules)
    walked = reads_inputs or prepare is not None
    if walked:
        require_text(calibration)
    walk = _Walk(model, scheme, solve, activation, symmetric, true_sequential, frozenset(chosen))
    with evaluating(model.host), exact_products(), torch.no_grad():
        inputs = capture_first_block(model, calibration if walked else ())
        for index, block in enumerate(model.blocks):
            if prepare is not None:
                prepare(index, inputs)
            for stage in walk.stages(index):
                walk.quantize_stage(index, stage, inputs if reads_inputs else None)
            if index + 1 < len(model.blocks):
                inputs.advance(block)
            workspace.progress(index + 1, len(model.blocks))
    rows = tuple(walk.rows[name] for name in chosen)
    return QuantizationReport(modules=rows, warnings=tuple(dict.fromkeys(walk.warnings)))


def require_text(calibration: Sequence[CalibrationBatch]) -> None:
    """Raise QuantizationError if there is no calibration text."""
    if not calibration:
        raise QuantizationError("this method needs calibration text, and there is none")


@dataclass
class _Walk:
    model: DiffusionModel
    scheme: QuantScheme
    solve: Solver
    activation: ActivationQuantization
    symmetric: bool
    true_sequential: bool
    chosen: frozenset[str]
    rows: dict[str, ModuleRow] = field(default_factory=dict)
    warnings: list[str] = field(default_factory=list)

    def stages(self, index: int) -> Iterator[tuple[Group, ...]]:
        """Give the groups of one block that are quantized at once, in order."""
        prefix = f"{self.model.block_name(index)}."
        linears = [group.linears for group in self.model.family.linear_groups]
        kept = (tuple(n for n in names if prefix + n in self.chosen) for names in linears)
        groups = tuple(group for group in kept if group)
        if self.true_sequential:
            yield from ((group,) for group in groups)
        elif groups:
            yield groups

    def quantize_stage(
        self, index: int, stage: tuple[Group, ...], inputs: BlockInputs | None
    ) -> None:
        """Collect the Hessians of some groups in one pass, unless none are read; quantize them."""
        prefix = f"{self.model.block_name(index)}."
        hessians: dict[str, Hessian] = {}
        if inputs is not None:
            firsts = [group[0] for group in stage]
            hessians = collect_hessians(self.model.blocks[index], firsts, inputs)
        for group in stage:
            names = tuple(prefix + name for name in group)
            self._quantize_group(names, hessians.pop(group[0], None))

    def _quantize_group(self, names: Group, hessian: Hessian | None) -> None:
        layers = [self.model.host.get_submodule(name) for name in names]
        if hessian is not None:
            self._warn_if_few_tokens(hessian)
        solution = self._solved(names, torch.cat([layer.weight for layer in layers]), hessian)
        sizes = [layer.out_features for layer in layers]
        parts = solution.dequantized.split(sizes)
        grids = (None,) * len(sizes) if solution.grid is None else solution.grid.split(sizes)
        stored = _transform_bits(layers)
        for name, part, grid, extra in zip(names, parts, grids, stored, strict=True):
            outputs, inputs = part.shape
            bits = outputs * solution.bits_per_output + inputs * solution.bits_per_input
            self.rows[name] = install(
                self.model.host,
                name,
                part.clone(),
                scheme=self.scheme,
                symmetric=self.symmetric,
                activation=self.activation,
                bits=bits + extra,
                grid=grid,
            )

    def _solved(self, names: Group, weight: Tensor, hessian: Hessian | None) -> Solution:
        where = ", ".join(names)
        try:
            solution = self.solve(
                weight, weight.new_empty(0, 0) if hessian is None else hessian.mean()
            )
        except QuantizationError as error:
            raise QuantizationError(f"{where}: {error}") from error
        if solution.warning is not None:
            self.warnings.append(f"{where}: {solution.warning}")
        return solution

    def _warn_if_few_tokens(self, hessian: Hessian) -> None:
        inputs = len(hessian.total)
        if hessian.tokens < TOKENS_PER_INPUT * inputs:
            self.warnings.append(
                f"{hessian.tokens} calibration tokens for layers with {inputs} inputs: use at"
                f" least {TOKENS_PER_INPUT * inputs}, or the method fits this text alone"
            )


def _transform_bits(layers: Sequence[nn.Module]) -> list[int]:
    """Bits of each layer's transform; one that several layers share counts for the first."""
    transforms = [transform_of(layer) for layer in layers]
    return [
        0 if transform is None or transform in transforms[:place] else transform.storage_bits()
        for place, transform in enumerate(transforms)
    ]


def collect_hessians(
    block: nn.Module, names: Sequence[str], inputs: BlockInputs
) -> dict[str, Hessian]:
    """Run a block on all stored inputs and sum up what the named linears read, without padding.

    What a linear reads is taken after its transform, and before it is rounded.
    """
    hessians: dict[str, Hessian] = {}

    def add(name: str, activations: Tensor, batch: int) -> None:
        x = counted(activations, inputs.weights[batch])
        x = transformed(block.get_submodule(name), x)
        weights = counted_weights(inputs.weights[batch], x.device)
        if name in hessians:
            hessians[name].add(x, weights)
        else:
            hessians[name] = Hessian.over(x, weights)

    visit_inputs(block, names, inputs, add)
    return hessians
