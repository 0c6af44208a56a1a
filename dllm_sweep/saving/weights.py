"""The tensors of a quantized model as one safetensors file: rounded weights as packed codes with
their grids, everything else as it is in memory."""

from __future__ import annotations

import dataclasses
from pathlib import Path

import torch
from safetensors.torch import save_file
from torch import Tensor

from dllm_sweep.errors import QuantizationError
from dllm_sweep.manifest import CODES, GROUPS, SCALES, TRANSFORM, ZEROS, SavedGrid, SavedLinear
from dllm_sweep.models.base import DiffusionModel
from dllm_sweep.quant.affine import WeightGrid
from dllm_sweep.quant.linear import QuantLinear, TransformedLinear
from dllm_sweep.quant.packing import codes_of, pack
from dllm_sweep.quant.transforms import InputTransform

Tensors = dict[str, Tensor]


def changed_linears(model: DiffusionModel) -> dict[str, TransformedLinear]:
    """Give the linears that are not as the family has them, by full name, in depth order."""
    linears = model.linears().items()
    return {name: part for name, part in linears if isinstance(part, TransformedLinear)}


def transforms_of(model: DiffusionModel) -> list[InputTransform]:
    """Give all input transforms; one that several linears share is given once."""
    transforms = [part.transform for part in changed_linears(model).values()]
    return list({id(one): one for one in transforms if one is not None}.values())


def is_tied(model: DiffusionModel) -> bool:
    """Say whether the output head is the embedding."""
    head, embeddings = model.host.get_output_embeddings(), model.host.get_input_embeddings()
    return head.weight is embeddings.weight


def plain_tensors(model: DiffusionModel) -> Tensors:
    """Give every tensor outside the changed linears, by its name in the host; a tied head not."""
    inside = tuple(f"{name}." for name in changed_linears(model))
    kept = {k: t for k, t in model.host.state_dict().items() if not k.startswith(inside)}
    if is_tied(model):
        kept.pop("lm_head.weight")
    return kept


def write(model: DiffusionModel, file: Path) -> tuple[tuple[SavedLinear, ...], int]:
    """Write all tensors of a model.

    Args:
        model: A quantized model, on any device.
        file: A new file.

    Returns:
        What the file does not say of the changed linears, and how many bytes of it stand for
        packed weights.

    Raises:
        QuantizationError: If a weight is not on the grid that it was rounded to.
    """
    transforms = transforms_of(model)
    tensors, linears, packed_bytes = plain_tensors(model), [], 0
    for name, part in changed_linears(model).items():
        grid = part.grid if isinstance(part, QuantLinear) else None
        tensors |= {f"{name}.weight": part.weight} if grid is None else {}
        tensors |= {} if part.bias is None else {f"{name}.bias": part.bias}
        saved, packed = (None, {}) if grid is None else _packed(name, part.weight, grid)
        packed_bytes += sum(tensor.nbytes for tensor in packed.values())
        tensors |= packed
        linears.append(_described(name, part, saved, transforms))
    for number, transform in enumerate(transforms):
        state = transform.state_dict().items()
        tensors |= {f"{TRANSFORM}{number}.{key}": tensor for key, tensor in state}
    ready = {name: tensor.detach().cpu().contiguous() for name, tensor in tensors.items()}
    save_file(ready, file, metadata={"format": "pt"})
    return tuple(linears), packed_bytes


def _packed(name: str, weight: Tensor, grid: WeightGrid) -> tuple[SavedGrid, Tensors]:
    try:
        codes = codes_of(weight, grid)
    except QuantizationError as error:
        raise QuantizationError(f"{name}: {error}") from error
    packed = {f"{name}{CODES}": pack(codes, bits=grid.bits, lowest=grid.lowest).cpu()}
    packed[f"{name}{SCALES}"] = grid.scales.cpu()
    common = _common_zero(grid)
    if common is None:
        are_codes = grid.zeros_are_codes()
        zeros = pack(grid.zeros, bits=grid.bits, lowest=grid.lowest) if are_codes else grid.zeros
        packed[f"{name}{ZEROS}"] = zeros.cpu()
    if grid.group_of_input is not None:
        packed[f"{name}{GROUPS}"] = grid.group_of_input.to(torch.int32).cpu()
    return SavedGrid(bits=grid.bits, lowest=grid.lowest, zero=common), packed


def _common_zero(grid: WeightGrid) -> int | None:
    """Give the integer that all zeros are; None if there is none."""
    low, high = (float(zero) for zero in grid.zeros.aminmax())
    return int(low) if low == high and low.is_integer() else None


def _described(
    name: str,
    part: TransformedLinear,
    grid: SavedGrid | None,
    transforms: list[InputTransform],
) -> SavedLinear:
    rounded = isinstance(part, QuantLinear)
    return SavedLinear(
        name=name,
        shape=tuple(part.weight.shape),
        activation=dataclasses.asdict(part.activation) if rounded else None,
        grid=grid,
        transform=None if part.transform is None else transforms.index(part.transform),
    )
