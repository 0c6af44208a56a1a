"""QuaRot (arXiv 2404.00456): rotate activations so that no channel stands out, then round.

A random Hadamard transform of the residual stream is fused into the weights. In front of the down
projection and, across heads, of the output projection a Hadamard transform runs at every call,
before the input is rounded. Weights are solved by GPTQ on rotated activations.
"""

from __future__ import annotations

from collections.abc import Collection, Sequence
from dataclasses import dataclass
from typing import ClassVar

import torch

from dllm_sweep.calibration.batch import CalibrationBatch
from dllm_sweep.methods.base import ALONE, QuantizationReport, Workspace
from dllm_sweep.methods.parameters import require
from dllm_sweep.methods.rounding import Rounding
from dllm_sweep.models.base import DiffusionModel
from dllm_sweep.quant.apply import select
from dllm_sweep.quant.fuse import transform_online
from dllm_sweep.quant.rotation import (
    random_hadamard,
    random_orthogonal,
    rotate_residual,
    rotate_values,
)
from dllm_sweep.quant.transforms import BlockRotation, Hadamard, InputTransform
from dllm_sweep.spec import QuantScheme

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
    """

    version: ClassVar[int] = 1
    symmetric: ClassVar[bool] = True
    rotates_operands: ClassVar[bool] = True

    solver: str = "gptq"
    mse_clip: bool = True
    rotation: str = "hadamard"

    def __post_init__(self) -> None:
        super().__post_init__()
        require(self.rotation in ROTATIONS, "rotation", self.rotation, " or ".join(ROTATIONS))

    @property
    def needs_calibration(self) -> bool:
        """Rotations read no text; GPTQ does."""
        return self.solver == "gptq"

    def usual_activation_clip(self, bits: int) -> float:
        """Give the paper's 0.9 up to 4 bits; with more the whole range is better."""
        return 0.9 if bits <= FEW_BITS else 1.0

    def usual_operand_clip(self, bits: int) -> float:
        """Give the paper's 0.95 for keys and values up to 4 bits; with more, the whole range."""
        return 0.95 if bits <= FEW_BITS else 1.0

    def refusal(self, scheme: QuantScheme) -> str | None:
        """Refuse full precision, and GPTQ without weights to round."""
        return self.rounding_refusal("quarot", scheme)

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
        rotate(model, seed, frozenset(chosen), random=self.rotation == "random")
        return self.round(model, scheme, calibration, workspace)


PLUGIN = Quarot


def rotate(
    model: DiffusionModel, seed: int, chosen: Collection[str], *, random: bool = False
) -> None:
    """Rotate a full-precision model in place; its function stays the same.

    Args:
        model: Its fused weights are rewritten.
        seed: Of the residual stream's rotation.
        chosen: Full names of the linears that will be quantized: only they get a transform that
            runs at every call.
        random: Whether that rotation is any orthogonal matrix instead of a Hadamard transform.

    Raises:
        QuantizationError: If there is no Hadamard matrix of a size.
    """
    rotate_residual(model, _residual(model, seed, random))
    for index, block in enumerate(model.blocks):
        prefix = f"{model.block_name(index)}."
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
