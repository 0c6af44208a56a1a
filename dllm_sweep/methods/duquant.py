"""DuQuant (arXiv 2406.01721): smooth, rotate in blocks, permute, rotate again, then round.

After smoothing as in SmoothQuant on all inputs, each group of linears with a common input gets a
change of basis of its own that runs at every call: block rotations found greedily on calibration
activations, and a permutation between them. Blocks are calibrated in depth order, each on what the
quantized blocks before it give.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import ClassVar

import torch
from torch import Tensor

from dllm_sweep.calibration.batch import CalibrationBatch
from dllm_sweep.methods.base import ALONE, QuantizationReport, Workspace
from dllm_sweep.methods.layerwise import require_text
from dllm_sweep.methods.parameters import require
from dllm_sweep.methods.rounding import Rounding
from dllm_sweep.models.base import DiffusionModel
from dllm_sweep.quant.apply import select
from dllm_sweep.quant.capture import BlockInputs, visit_inputs
from dllm_sweep.quant.fuse import transform_online
from dllm_sweep.quant.greedy_rotation import (
    MeanTokens,
    TellingTokens,
    fitting_block,
    rotate_permute_rotate,
    spreading_rotations,
)
from dllm_sweep.quant.hessian import exact_products
from dllm_sweep.quant.linear import transformed
from dllm_sweep.quant.smoothing import SCALE_FROM, smooth
from dllm_sweep.spec import QuantScheme

FEW_BITS = 4
"""Up to this width, clipping ranges helps; at 8 bits it makes the error several times larger."""
CALIBRATE_ON = ("tokens", "mean")


@dataclass(frozen=True, kw_only=True)
class Duquant(Rounding):
    """DuQuant; the parameters of `Rounding` and these.

    Attributes:
        activation_symmetric: Whether the activation grid is symmetric; not in the paper.
        alpha: Share of the difficulty that smoothing moves into the weights, in [0, 1].
        block_size: Channels that are rotated together; where it does not divide a layer's inputs,
            the largest divisor below it is taken.
        steps: Greedy steps of a search for a rotation, at most.
        searches: How many times each rotation is searched for, with other random numbers; the one
            that leaves the smallest range is kept. The authors make one search of 256 steps.
        permutations: How many; a rotation follows each.
        calibrate_on: What rotations are found on: `tokens`, the largest and an even sample of the
            others, or `mean`, averages over sequences, as the authors do.
        tokens: How many of either, at most.
        scale_from: Whose weights the smoothing scales are computed from, for linears with a common
            input: `all`, or the `first` alone.
    """

    version: ClassVar[int] = 3
    needs_calibration: ClassVar[bool] = True
    symmetric: ClassVar[bool] = False
    rotates_operands: ClassVar[bool] = True

    activation_symmetric: bool = False
    alpha: float = 0.5
    block_size: int = 128
    steps: int = 64
    searches: int = 4
    permutations: int = 1
    calibrate_on: str = "tokens"
    tokens: int = 256
    scale_from: str = "all"

    def __post_init__(self) -> None:
        super().__post_init__()
        require(0 <= self.alpha <= 1, "alpha", self.alpha, "[0, 1]")
        require(self.block_size >= 2, "block_size", self.block_size, "at least 2")
        require(self.steps >= 1, "steps", self.steps, "at least 1")
        require(self.searches >= 1, "searches", self.searches, "at least 1")
        require(self.permutations >= 0, "permutations", self.permutations, "at least 0")
        require(self.tokens >= 2, "tokens", self.tokens, "at least 2")
        for name, choices in (("calibrate_on", CALIBRATE_ON), ("scale_from", SCALE_FROM)):
            given = getattr(self, name)
            require(given in choices, name, given, " or ".join(choices))

    def usual_weight_clip(self, scheme: QuantScheme) -> float:
        """Give the authors' 0.8 up to 4 bits for whole rows; otherwise the whole range is better.

        Groups have narrower ranges already: cutting them more than doubled the error measured.
        """
        return 0.8 if scheme.w_bits <= FEW_BITS and scheme.group_size is None else 1.0

    def usual_activation_clip(self, bits: int) -> float:
        """Give the authors' 0.9 up to 4 bits; with more the whole range is better."""
        return 0.9 if bits <= FEW_BITS else 1.0

    def refusal(self, scheme: QuantScheme) -> str | None:
        """Refuse full precision, and GPTQ without weights to round."""
        return self.rounding_refusal("duquant", scheme)

    def quantize(
        self,
        model: DiffusionModel,
        scheme: QuantScheme,
        calibration: Sequence[CalibrationBatch],
        *,
        seed: int = 0,
        workspace: Workspace = ALONE,
    ) -> QuantizationReport:
        """Quantize `model` in place; `seed` decides the random parts of the rotations.

        Raises:
            QuantizationError: If there is no calibration text, a pattern matches nothing, or a
                layer cannot be quantized.
        """
        chosen = frozenset(select(model.linears(), self.modules, self.skip_modules))
        require_text(calibration)
        with exact_products():
            statistics = workspace.statistics(model, calibration, workspace.device)
        smooth(
            model,
            statistics,
            alpha=self.alpha,
            norms_only=False,
            chosen=chosen,
            scale_from=self.scale_from,
            device=workspace.device,
        )
        search = _Search(self, model, chosen, seed)
        return self.round(model, scheme, calibration, workspace, search.prepare)


PLUGIN = Duquant


@dataclass
class _Search:
    """Finds the change of basis of every group, block by block."""

    method: Duquant
    model: DiffusionModel
    chosen: frozenset[str]
    seed: int
    drawn: dict[tuple[int, torch.device], Tensor] = field(default_factory=dict)

    def prepare(self, index: int, inputs: BlockInputs) -> None:
        """Put the transforms of one block in front of its chosen linears."""
        prefix = f"{self.model.block_name(index)}."
        groups = [
            tuple(prefix + name for name in group.linears if prefix + name in self.chosen)
            for group in self.model.family.linear_groups
        ]
        groups = [names for names in groups if names]
        seen = self._inputs(index, [names[0].removeprefix(prefix) for names in groups], inputs)
        for names in groups:
            x = seen.pop(names[0].removeprefix(prefix))
            transform = rotate_permute_rotate(x, self._searches(x), self.method.permutations)
            for name in names:
                transform_online(self.model.host, name, transform)

    def _inputs(self, index: int, names: Sequence[str], inputs: BlockInputs) -> dict[str, Tensor]:
        """Give a sample (T, n) of what some linears of a block read, transforms included."""
        block, count = self.model.blocks[index], self.method.tokens
        sequences = sum(len(hidden) for hidden in inputs.hidden)
        means = self.method.calibrate_on == "mean"
        seen: dict[str, MeanTokens | TellingTokens] = {
            name: MeanTokens(count) if means else TellingTokens(count, sequences) for name in names
        }

        def see(name: str, activations: Tensor, batch: int) -> None:
            x = transformed(block.get_submodule(name), activations)
            seen[name].add(x, inputs.weights[batch])

        visit_inputs(block, names, inputs, see)
        return {name: sample.tokens() for name, sample in seen.items()}

    def _searches(self, x: Tensor) -> Tensor:
        size, method = fitting_block(x.shape[-1], self.method.block_size), self.method
        key = (size, x.device)
        if key not in self.drawn:
            generator = torch.Generator().manual_seed(self.seed)
            drawn = spreading_rotations(size, method.searches * method.steps, generator)
            searches = drawn.unflatten(0, (method.searches, method.steps))
            self.drawn[key] = searches.to(x.device)
        return self.drawn[key]
