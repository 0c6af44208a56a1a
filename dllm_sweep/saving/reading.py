"""A saved quantized model back into an empty host, bit for bit as it was."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from torch import Tensor, nn

from dllm_sweep.errors import CheckpointError
from dllm_sweep.manifest import (
    CODES,
    GROUPS,
    SCALES,
    TRANSFORM,
    WEIGHTS,
    ZEROS,
    Manifest,
    SavedGrid,
    SavedLinear,
)
from dllm_sweep.methods.base import QuantizationReport
from dllm_sweep.models.base import DiffusionModel
from dllm_sweep.quant import attention
from dllm_sweep.quant.affine import WeightGrid
from dllm_sweep.quant.apply import replace
from dllm_sweep.quant.linear import ActivationQuantization, QuantLinear, TransformedLinear
from dllm_sweep.quant.packing import packed_bytes, unpack, weight_of
from dllm_sweep.quant.transforms import InputTransform, restore

_WRONG = (SafetensorError, OSError, KeyError, IndexError, AttributeError, RuntimeError, TypeError)
"""What tensors of another model, or none, lead to."""


def fill(
    host: nn.Module,
    folder: Path,
    manifest: Manifest,
    *,
    device_of: Callable[[str], torch.device],
    dtype: torch.dtype,
) -> None:
    """Put what was saved into an empty model of the same configuration.

    Args:
        host: On the meta device; the linears that a method has changed are replaced.
        folder: Where the tensors are.
        manifest: What the folder says.
        device_of: Parameter name -> where it goes.
        dtype: Of the model. Rounded weights are computed in the type in which they were saved, so
            that they are the same bit for bit, and converted then.

    Raises:
        CheckpointError: If the file is missing or altered, or does not fit the configuration.
    """
    file = folder / WEIGHTS
    _check_whole(file, manifest.file.sha256)
    try:
        with safe_open(file, framework="pt") as opened:
            _Filling(host, manifest, opened, device_of, dtype).run()
    except _WRONG as error:
        reason = " ".join(f"{type(error).__name__}: {error}".split())
        raise CheckpointError(f"{file} does not fit what lies beside it ({reason})") from error


def restore_operands(model: DiffusionModel, manifest: Manifest) -> None:
    """Round the operands of attention as the saved model did, and say what was done to it."""
    attention.restore(model, manifest.attention)
    model.recipe = manifest.recipe
    model.quantization_report = QuantizationReport(
        modules=manifest.modules, warnings=manifest.warnings
    )


def _check_whole(file: Path, sha256: str) -> None:
    if not file.is_file():
        raise CheckpointError(f"{file} is missing: copy the whole folder, or quantize again")
    with file.open("rb") as opened:
        found = hashlib.file_digest(opened, "sha256").hexdigest()
    if found != sha256:
        raise CheckpointError(
            f"{file} is damaged: its SHA-256 is not the recorded one; copy it, or quantize, again"
        )


@dataclass(frozen=True)
class _Filling:
    host: nn.Module
    manifest: Manifest
    opened: Any
    device_of: Callable[[str], torch.device]
    dtype: torch.dtype

    def run(self) -> None:
        """Fill the whole model."""
        plain = {name: tuple(part.shape) for name, part in self.host.state_dict().items()}
        if self.manifest.tied:
            plain.pop("lm_head.weight")
        for linear in self.manifest.linears:
            shape = plain.pop(f"{linear.name}.weight")
            if shape != linear.shape:
                raise KeyError(f"{linear.name} is {linear.shape}, expected {shape}")
            bias = plain.pop(f"{linear.name}.bias", None)
            replace(self.host, linear.name, self._linear(linear, biased=bias is not None))
        for name, shape in plain.items():
            parent, _, attribute = name.rpartition(".")
            parameter = nn.Parameter(self._plain(name, shape), requires_grad=False)
            setattr(self.host.get_submodule(parent), attribute, parameter)

    def _plain(self, name: str, shape: tuple[int, ...]) -> Tensor:
        value = self.opened.get_tensor(name)
        if tuple(value.shape) != shape:
            raise KeyError(f"{name} is {tuple(value.shape)}, expected {shape}")
        return value.to(self.device_of(name)).to(self.dtype)

    def _linear(self, saved: SavedLinear, *, biased: bool) -> TransformedLinear:
        name, device = f"{saved.name}.weight", self.device_of(f"{saved.name}.weight")
        bias = self._plain(f"{saved.name}.bias", saved.shape[:1]) if biased else None
        transform = None if saved.transform is None else self.transforms[saved.transform].to(device)
        if saved.activation is None:
            return TransformedLinear(self._plain(name, saved.shape), bias, transform)
        activation = ActivationQuantization(**saved.activation)
        if saved.grid is None:
            return QuantLinear(self._plain(name, saved.shape), bias, activation, transform)
        grid = self._grid(saved.name, saved.grid).to(device)
        weight = self._unpacked(saved, grid, device).to(self.dtype)
        return QuantLinear(weight, bias, activation, transform, grid)

    def _unpacked(self, saved: SavedLinear, grid: WeightGrid, device: torch.device) -> Tensor:
        outputs, inputs = saved.shape
        packed = self.opened.get_tensor(f"{saved.name}{CODES}").to(device)
        if len(packed) != packed_bytes(outputs * inputs, grid.bits):
            raise KeyError(f"{saved.name}: {len(packed)} bytes of codes for {saved.shape}")
        codes = unpack(packed, outputs * inputs, bits=grid.bits, lowest=grid.lowest)
        return weight_of(codes.view(saved.shape), grid, getattr(torch, self.manifest.recipe.dtype))

    def _grid(self, name: str, saved: SavedGrid) -> WeightGrid:
        scales = self.opened.get_tensor(f"{name}{SCALES}")
        groups = f"{name}{GROUPS}"
        scattered = groups in self.names
        return WeightGrid(
            scales=scales,
            zeros=self._zeros(name, saved, scales),
            bits=saved.bits,
            lowest=saved.lowest,
            group_of_input=self.opened.get_tensor(groups).long() if scattered else None,
        )

    def _zeros(self, name: str, saved: SavedGrid, scales: Tensor) -> Tensor:
        if saved.zero is not None:
            return torch.full_like(scales, saved.zero)
        stored = self.opened.get_tensor(f"{name}{ZEROS}")
        if stored.is_floating_point():
            return stored
        zeros = unpack(stored, scales.numel(), bits=saved.bits, lowest=saved.lowest)
        return zeros.view(scales.shape).float()

    @cached_property
    def names(self) -> frozenset[str]:
        """Of all tensors in the file."""
        return frozenset(self.opened.keys())

    @cached_property
    def transforms(self) -> list[InputTransform]:
        """All input transforms."""
        descriptions = enumerate(self.manifest.transforms)
        return [restore(one, self._below(f"{TRANSFORM}{number}.")) for number, one in descriptions]

    def _below(self, prefix: str) -> Mapping[str, Tensor]:
        own = [name for name in self.names if name.startswith(prefix)]
        return {name.removeprefix(prefix): self.opened.get_tensor(name) for name in own}
