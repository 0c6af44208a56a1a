"""The walk that layer-wise methods share: block by block, on what the blocks before really give.

Every block sees the outputs of the quantized blocks before it. Layers that share an input are
solved together, from one Hessian, with their rows stacked.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from functools import partial

import torch
from torch import Tensor, nn

from dllm_sweep.calibration.batch import CalibrationBatch
from dllm_sweep.errors import QuantizationError
from dllm_sweep.methods.base import ALONE, BlockRecord, QuantizationReport, Workspace
from dllm_sweep.models.base import DiffusionModel
from dllm_sweep.quant.affine import WeightGrid
from dllm_sweep.quant.apply import install, select
from dllm_sweep.quant.capture import BlockInputs, capture_first_block, evaluating
from dllm_sweep.quant.hessian import Hessian, collect_hessians, exact_products
from dllm_sweep.quant.linear import ActivationQuantization, transform_of
from dllm_sweep.quant.replay import replaying
from dllm_sweep.quant.visiting import visiting
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
"""Called with stacked weights (m, n) and the Hessian X^T X (n, n) of their common input, a sum over
all tokens; it is empty (0, 0) for a solver that reads no inputs."""
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
    symmetric: bool,
    activation: ActivationQuantization | None = None,
    true_sequential: bool = True,
    output_first: bool = False,
    modules: Iterable[str] = ("*",),
    skip_modules: Iterable[str] = (),
    workspace: Workspace = ALONE,
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
        symmetric: The weight grid, for the record.
        activation: How the input of every quantized layer is rounded; None is symmetrically, to the
            scheme's bits.
        true_sequential: Whether later layers of a block see its earlier ones quantized.
        output_first: Whether the layers of a block's attention, and those of its feed-forward
            network, are quantized from the last to the first.
        modules: Patterns of the layers to quantize.
        skip_modules: Patterns of those left out.
        workspace: What surrounds the work.
        reads_inputs: Whether the solver wants Hessians.
        prepare: Puts transforms in front of a block's linears, given its inputs; it is not called
            for a block that the workspace restores.

    Raises:
        QuantizationError: If there is no calibration text, a pattern matches nothing, or a layer
            cannot be quantized; the message names the layer.
    """
    chosen = select(model.linears(), modules, skip_modules)
    walked = reads_inputs or prepare is not None
    if walked:
        require_text(calibration)
    activation = activation or ActivationQuantization(bits=scheme.a_bits)
    walk = _Walk(
        layers=LayerQuantizer(model, scheme, solve, activation, symmetric),
        stages=_stages(model, frozenset(chosen), true_sequential, output_first),
        prepare=prepare,
        reads_inputs=reads_inputs,
    )
    records = []
    with evaluating(model.host), exact_products(), torch.no_grad():
        inputs = capture_first_block(model, calibration if walked else ())
        for index, block in enumerate(model.blocks):
            with visiting(block, workspace.device), ExitStack() as repeats:
                make = partial(walk.quantize_block, index, inputs, repeats)
                records.append(workspace.finish(model, index, make))
                if index + 1 < len(model.blocks):
                    inputs.advance(block)
            workspace.progress(index + 1, len(model.blocks))
    return QuantizationReport.of(records, chosen)


def require_text(calibration: Sequence[CalibrationBatch]) -> None:
    """Raise QuantizationError if there is no calibration text, or no token of it counts."""
    if not calibration:
        raise QuantizationError("this method needs calibration text, and there is none")
    if all(batch.weights is not None and not bool(batch.weights.any()) for batch in calibration):
        raise QuantizationError("every token of the calibration text has weight 0: none counts")


@dataclass(frozen=True)
class LayerQuantizer:
    """Quantizes linears that share their input, together.

    Attributes:
        model: Changed in place.
        scheme: Bit-widths and group size.
        solve: Rounds stacked weights.
        activation: How the input is rounded from then on.
        symmetric: The weight grid, for the record.
    """

    model: DiffusionModel
    scheme: QuantScheme
    solve: Solver
    activation: ActivationQuantization
    symmetric: bool

    def quantize(
        self, names: Sequence[str], hessian: Hessian | None = None, weight: Tensor | None = None
    ) -> BlockRecord:
        """Put quantized layers where some linears are.

        Args:
            names: Full names of linears with a common input.
            hessian: Of that input; None for a solver that reads no inputs.
            weight: (m, n), what is rounded; None is the stacked weights of the linears.

        Raises:
            QuantizationError: If the weights cannot be quantized; the message names the linears.
        """
        layers = [self.model.host.get_submodule(name) for name in names]
        if weight is None:
            weight = torch.cat([layer.weight for layer in layers])
        warnings = [] if hessian is None else _few_tokens(hessian)
        total = weight.new_empty(0, 0) if hessian is None else hessian.total
        solution = self._solved(names, weight, total)
        if solution.warning is not None:
            warnings.append(f"{', '.join(names)}: {solution.warning}")
        sizes = [layer.out_features for layer in layers]
        parts = solution.dequantized.split(sizes)
        grids = (None,) * len(sizes) if solution.grid is None else solution.grid.split(sizes)
        stored = _transform_bits(layers)
        rows = []
        for name, part, grid, extra in zip(names, parts, grids, stored, strict=True):
            outputs, inputs = part.shape
            bits = outputs * solution.bits_per_output + inputs * solution.bits_per_input
            row = install(
                self.model.host,
                name,
                part.clone(),
                scheme=self.scheme,
                symmetric=self.symmetric,
                activation=self.activation,
                bits=bits + extra,
                grid=grid,
            )
            rows.append(row)
        return BlockRecord(modules=tuple(rows), warnings=tuple(warnings))

    def _solved(self, names: Sequence[str], weight: Tensor, hessian: Tensor) -> Solution:
        try:
            return self.solve(weight, hessian)
        except QuantizationError as error:
            raise QuantizationError(f"{', '.join(names)}: {error}") from error


def _few_tokens(hessian: Hessian) -> list[str]:
    inputs = len(hessian.total)
    if hessian.tokens >= TOKENS_PER_INPUT * inputs:
        return []
    return [
        f"{hessian.tokens} calibration tokens for layers with {inputs} inputs: use at"
        f" least {TOKENS_PER_INPUT * inputs}, or the method fits this text alone"
    ]


@dataclass(frozen=True, kw_only=True)
class _Walk:
    layers: LayerQuantizer
    stages: tuple[tuple[tuple[Group, ...], ...], ...]
    prepare: Prepare | None
    reads_inputs: bool

    def quantize_block(self, index: int, inputs: BlockInputs, repeats: ExitStack) -> BlockRecord:
        """Quantize the chosen linears of one block, stage by stage.

        A part of the block whose linears are all quantized, while others are not, runs over the
        inputs once more and then repeats its outputs until `repeats` is closed.
        """
        if self.prepare is not None:
            self.prepare(index, inputs)
        block, stages, records = self.layers.model.blocks[index], self.stages[index], []
        for place, stage in enumerate(stages, start=1):
            records.append(self._quantize_stage(index, stage, inputs))
            for name in _finished_parts(stages, place) if self.reads_inputs else ():
                part = block.get_submodule(name)
                repeats.enter_context(replaying(part, len(inputs.hidden)))
        return BlockRecord.joined(records)

    def _quantize_stage(
        self, index: int, stage: tuple[Group, ...], inputs: BlockInputs
    ) -> BlockRecord:
        """Collect the Hessians of some groups in one pass, if they are read; quantize them."""
        model, hessians = self.layers.model, {}
        if self.reads_inputs:
            firsts = [group[0] for group in stage]
            hessians = collect_hessians(model.blocks[index], firsts, inputs)
        prefix = f"{model.block_name(index)}."
        return BlockRecord.joined(
            self.layers.quantize([prefix + name for name in group], hessians.pop(group[0], None))
            for group in stage
        )


def _stages(
    model: DiffusionModel, chosen: frozenset[str], true_sequential: bool, output_first: bool
) -> tuple[tuple[tuple[Group, ...], ...], ...]:
    """Give, for each block, the groups that are quantized at once, in order."""
    order: list[Group] = [group.linears for group in model.family.linear_groups]
    if output_first:
        parents = dict.fromkeys(map(_parent, order))
        order = [group for one in parents for group in reversed(order) if _parent(group) == one]
    found = []
    for index in range(len(model.blocks)):
        prefix = f"{model.block_name(index)}."
        kept = (tuple(name for name in group if prefix + name in chosen) for group in order)
        groups = tuple(group for group in kept if group)
        found.append(tuple((group,) for group in groups) if true_sequential else (groups,))
    return tuple(found)


def _parent(group: Group) -> str:
    return group[0].rpartition(".")[0]


def _finished_parts(stages: Sequence[tuple[Group, ...]], done: int) -> set[str]:
    """Name the parts that stage number `done` finished, if other parts are left."""
    left = {_parent(group) for stage in stages[done:] for group in stage}
    return {_parent(group) for group in stages[done - 1]} - left if left else set()


def _transform_bits(layers: Sequence[nn.Module]) -> list[int]:
    """Bits of each layer's transform; one that several layers share counts for the first."""
    transforms = [transform_of(layer) for layer in layers]
    return [
        0 if transform is None or transform in transforms[:place] else transform.storage_bits()
        for place, transform in enumerate(transforms)
    ]
