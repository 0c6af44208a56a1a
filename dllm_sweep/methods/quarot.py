"""QuaRot (arXiv 2404.00456): rotate activations so that no channel stands out, then round.

A random Hadamard transform of the residual stream is fused into the weights. In front of the down
projection and, across heads, of the output projection a Hadamard transform runs at every call,
before the input is rounded. Weights are solved by GPTQ on rotated activations.

`smoothing` divides the channels of what the output and the down projection read beforehand, as
SmoothQuant does. Behind the norms it would change nothing: rotating folds their weights, and with
them any scales, back into the linears.
"""

from __future__ import annotations

from collections.abc import Collection, Sequence
from dataclasses import dataclass
from typing import ClassVar

import torch

from dllm_sweep.calibration.batch import CalibrationBatch
from dllm_sweep.errors import QuantizationError
from dllm_sweep.methods.base import ALONE, QuantizationReport, Workspace
from dllm_sweep.methods.layerwise import require_text
from dllm_sweep.methods.parameters import require
from dllm_sweep.methods.rounding import Rounding
from dllm_sweep.models.base import DiffusionModel
from dllm_sweep.models.family import Widths
from dllm_sweep.quant.apply import select
from dllm_sweep.quant.fuse import transform_online
from dllm_sweep.quant.hadamard import without_hadamard
from dllm_sweep.quant.hessian import exact_products
from dllm_sweep.quant.rotation import (
    in_float64,
    random_hadamard,
    random_orthogonal,
    rotate_block,
    rotate_ends,
    rotate_values,
)
from dllm_sweep.quant.smoothing import smooth
from dllm_sweep.quant.transforms import BlockRotation, Hadamard, InputTransform
from dllm_sweep.quant.visiting import visiting
from dllm_sweep.spec import FULL_PRECISION_BITS, QuantScheme

ROTATED_ONLINE = (".o_proj", ".down_proj")
"""Linears whose input is rotated at every call; all others read the rotated residual stream."""
ROTATIONS = ("hadamard", "random")
FEW_BITS = 4
"""Up to this width, clipping the activations' range helps; at 8 bits it hurts."""


@dataclass(frozen=True, kw_only=True)
class Quarot(Rounding):
    """QuaRot; the parameters of `Rounding` and these.

    Attributes:
        solver: How weights are rounded, `gptq` as in the paper, or `rtn`.
        mse_clip: Search each weight grid's range for the least error.
        rotation: Of the residual stream: `hadamard` with random signs, or `random`, any orthogonal
            matrix.
        smoothing: Share of the difficulty that smoothing moves into the weights beforehand, in
            [0, 1]; null does not smooth.
    """

    version: ClassVar[int] = 2
    symmetric: ClassVar[bool] = True
    rotates_operands: ClassVar[bool] = True

    solver: str = "gptq"
    mse_clip: bool = True
    rotation: str = "hadamard"
    smoothing: float | None = None

    def __post_init__(self) -> None:
        super().__post_init__()
        require(self.rotation in ROTATIONS, "rotation", self.rotation, " or ".join(ROTATIONS))
        alpha = self.smoothing
        require(alpha is None or 0 <= alpha <= 1, "smoothing", alpha, "[0, 1] or null")

    @property
    def needs_calibration(self) -> bool:
        """Rotations read no text; GPTQ and smoothing do."""
        return self.solver == "gptq" or self.smoothing is not None

    def usual_activation_clip(self, bits: int) -> float:
        """Give the paper's 0.9 up to 4 bits; with more the whole range is better."""
        return 0.9 if bits <= FEW_BITS else 1.0

    def usual_operand_clip(self, bits: int) -> float:
        """Give the paper's 0.95 for keys and values up to 4 bits; with more, the whole range."""
        return 0.95 if bits <= FEW_BITS else 1.0

    def refusal(self, scheme: QuantScheme) -> str | None:
        """Refuse full precision, GPTQ without weights, and smoothing without activations."""
        if self.smoothing is not None and scheme.a_bits == FULL_PRECISION_BITS:
            return f"{scheme}: smoothing makes activations easier to round; leave it out"
        return self.rounding_refusal("quarot", scheme)

    def misfit(self, scheme: QuantScheme, widths: Widths) -> str | None:
        """Say which width has no Hadamard matrix, or None; left-out linears need none."""
        # Patterns are for the names of a loaded model to match: it decides where there are any.
        whole = (self.modules, self.skip_modules) == (("*",), ())
        rotated = ROTATED_ONLINE if whole else ()
        sizes = _sizes(widths, self.rotation == "random", rotated)
        return without_hadamard(sizes | self.operand_sizes(scheme, widths))

    def quantize(
        self,
        model: DiffusionModel,
        scheme: QuantScheme,
        calibration: Sequence[CalibrationBatch],
        *,
        seed: int = 0,
        workspace: Workspace = ALONE,
    ) -> QuantizationReport:
        """Quantize `model` in place; `seed` decides the rotation of the residual stream.

        Raises:
            QuantizationError: If GPTQ has no calibration text, a pattern matches nothing, there
                is no Hadamard matrix of a size, or a layer cannot be quantized.
        """
        chosen = select(model.linears(), self.modules, self.skip_modules)
        if self.smoothing is not None:
            self._smooth(model, calibration, workspace, chosen)
        random = self.rotation == "random"
        rotate(model, seed, frozenset(chosen), random=random, device=workspace.device)
        return self.round(model, scheme, calibration, workspace)

    def _smooth(
        self,
        model: DiffusionModel,
        calibration: Sequence[CalibrationBatch],
        workspace: Workspace,
        chosen: Collection[str],
    ) -> None:
        require_text(calibration)
        with exact_products():
            statistics = workspace.statistics(model, calibration, workspace.device)
        smooth(
            model,
            statistics,
            alpha=self.smoothing,
            norms_only=False,
            chosen=frozenset(name for name in chosen if name.endswith(ROTATED_ONLINE)),
            online=False,
            device=workspace.device,
        )


PLUGIN = Quarot


@torch.no_grad()
def rotate(
    model: DiffusionModel,
    seed: int,
    chosen: Collection[str],
    *,
    random: bool = False,
    device: torch.device | None = None,
) -> None:
    """Rotate a full-precision model in place; its function stays the same.

    All rotations of a weight are computed in float64 and rounded once.

    Args:
        model: Its fused weights are rewritten.
        seed: Of the residual stream's rotation.
        chosen: Full names of the linears that will be quantized: only they get a transform that
            runs at every call.
        random: Whether that rotation is any orthogonal matrix instead of a Hadamard transform.
        device: Where it is computed, block by block; None is where the weights are.

    Raises:
        QuantizationError: If there is no Hadamard matrix of a size.
    """
    online = [end for end in ROTATED_ONLINE if any(name.endswith(end) for name in chosen)]
    missing = without_hadamard(_sizes(_widths(model), random, online))
    if missing is not None:
        raise QuantizationError(missing)
    residual = _residual(model, seed, random)
    rotate_ends(model, residual, device)
    for index, block in enumerate(model.blocks):
        prefix = f"{model.block_name(index)}."
        with visiting(block, device), in_float64(block):
            rotate_block(model, index, residual)
            if prefix + "self_attn.o_proj" in chosen:
                rotate_values(model, index)
            if prefix + "mlp.down_proj" in chosen:
                width = block.mlp.down_proj.in_features
                transform_online(model.host, prefix + "mlp.down_proj", Hadamard(width))


def _residual(model: DiffusionModel, seed: int, random: bool) -> InputTransform:
    generator = torch.Generator().manual_seed(seed)
    width = model.host.config.hidden_size
    if random:
        return BlockRotation(random_orthogonal(width, generator))
    return random_hadamard(width, generator)


def _sizes(widths: Widths, random: bool, online: Collection[str]) -> dict[str, int]:
    """Give the sizes that have to have a Hadamard matrix."""
    sizes = {} if random else {"the hidden size": widths.hidden}
    if ".o_proj" in online:
        sizes |= {"the number of heads": widths.heads, "the size of a head": widths.head}
    if ".down_proj" in online:
        sizes["the feed-forward width"] = widths.ffn
    return sizes


def _widths(model: DiffusionModel) -> Widths:
    attention, mlp = model.blocks[0].self_attn, model.blocks[0].mlp
    return Widths(
        hidden=model.host.config.hidden_size,
        ffn=mlp.down_proj.in_features,
        heads=attention.o_proj.in_features // attention.head_dim,
        head=attention.head_dim,
    )
