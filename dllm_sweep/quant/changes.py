"""What a method changed in a model, or in a part of it, as tensors with a header in plain JSON.

That is the quantized linears with their grids, activation settings and input transforms, and every
other parameter that a method has rewritten: norms, embeddings, the head, linears left in full
precision that take part of a transform. Transforms that several linears share are there once.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from torch import Tensor, nn

from dllm_sweep.errors import StoreError
from dllm_sweep.models.base import DiffusionModel
from dllm_sweep.quant.affine import WeightGrid
from dllm_sweep.quant.apply import replace
from dllm_sweep.quant.fuse import RewrittenParameter, rewrite
from dllm_sweep.quant.linear import ActivationQuantization, QuantLinear
from dllm_sweep.quant.transforms import InputTransform, describe, restore

_TRANSFORM = "transform."
_GRID = ".grid."


def collect(model: DiffusionModel, prefix: str = "") -> tuple[dict[str, Tensor], dict[str, Any]]:
    """Collect what was changed.

    Args:
        model: Parameters that no method has rewritten are left out.
        prefix: What the full names begin with; what is elsewhere is left out, too.

    Returns:
        Tensors on the CPU, and the header that says how they belong together.
    """
    chosen = {
        name: part
        for name, part in model.linears().items()
        if name.startswith(prefix) and isinstance(part, QuantLinear)
    }
    transforms = _distinct_transforms(chosen.values())
    rewritten = {
        name: parameter
        for name, parameter in model.host.named_parameters()
        if name.startswith(prefix) and isinstance(parameter, RewrittenParameter)
    }
    tensors = {
        name: tensor.detach().cpu().contiguous()
        for name, tensor in (
            *_linear_tensors(chosen),
            *_transform_tensors(transforms),
            *rewritten.items(),
        )
    }
    header = {
        "activations": {name: dataclasses.asdict(part.activation) for name, part in chosen.items()},
        "transforms": [describe(transform) for transform in transforms],
        "inputs": {
            name: transforms.index(part.transform)
            for name, part in chosen.items()
            if part.transform is not None
        },
        "grids": {
            name: {"bits": part.grid.bits, "lowest": part.grid.lowest}
            for name, part in chosen.items()
            if part.grid is not None
        },
        "rewritten": sorted(rewritten),
    }
    return tensors, header


def _distinct_transforms(linears: Iterable[QuantLinear]) -> list[InputTransform]:
    transforms = (part.transform for part in linears)
    return list({id(one): one for one in transforms if one is not None}.values())


def _linear_tensors(linears: Mapping[str, QuantLinear]) -> Iterator[tuple[str, Tensor]]:
    for name, part in linears.items():
        yield f"{name}.weight", part.weight
        if part.bias is not None:
            yield f"{name}.bias", part.bias
        if part.grid is not None:
            yield from _grid_tensors(f"{name}{_GRID}", part.grid)


def _grid_tensors(prefix: str, grid: WeightGrid) -> Iterator[tuple[str, Tensor]]:
    # Layers that were solved together may share them, which safetensors refuses.
    yield f"{prefix}scales", grid.scales.clone()
    yield f"{prefix}zeros", grid.zeros.clone()
    if grid.group_of_input is not None:
        yield f"{prefix}group_of_input", grid.group_of_input.clone()


def _transform_tensors(transforms: Sequence[InputTransform]) -> Iterator[tuple[str, Tensor]]:
    for number, transform in enumerate(transforms):
        for key, tensor in transform.state_dict().items():
            yield f"{_TRANSFORM}{number}.{key}", tensor


def put(
    model: DiffusionModel, tensors: Mapping[str, Tensor], header: Mapping[str, Any], file: Path
) -> None:
    """Put what `collect` gave into a model: all of it, or nothing.

    Args:
        model: Changed in place.
        tensors: On the CPU; on the CPU, the model keeps them as they are.
        header: That of `collect`; what older versions did not write may be missing.
        file: Where they were read, for people.

    Raises:
        StoreError: If they are of another model.
    """
    # Everything is built before anything is put in place: a file of another model changes nothing.
    transforms = _restored_transforms(header, tensors)
    inputs: dict[str, int] = header.get("inputs", {})
    linears = model.linears()
    parts = {}
    for name, settings in header["activations"].items():
        transform = transforms[inputs[name]] if name in inputs else None
        activation = ActivationQuantization(**settings)
        grid = _restored_grid(name, header, tensors)
        parts[name] = _restored(name, linears, tensors, activation, transform, grid, file)
    rewritten = {name: tensors[name] for name in header.get("rewritten", ())}
    _check_rewritten(model, rewritten, file)
    for name, part in parts.items():
        replace(model.host, name, part)
    _put_rewritten(model, rewritten)


def _restored(
    name: str,
    linears: Mapping[str, nn.Module],
    tensors: Mapping[str, Tensor],
    activation: ActivationQuantization,
    transform: InputTransform | None,
    grid: WeightGrid | None,
    file: Path,
) -> QuantLinear:
    weight, bias = tensors[f"{name}.weight"], tensors.get(f"{name}.bias")
    if name not in linears or linears[name].weight.shape != weight.shape:
        raise StoreError(f"{file} is of another model: it holds {name} {tuple(weight.shape)}")
    like = linears[name].weight
    weight = weight.to(like.device, like.dtype)
    bias = None if bias is None else bias.to(like.device, like.dtype)
    transform = None if transform is None else transform.to(like.device)
    grid = None if grid is None else grid.to(like.device)
    return QuantLinear(weight, bias, activation, transform, grid)


def _restored_grid(
    name: str, header: Mapping[str, Any], tensors: Mapping[str, Tensor]
) -> WeightGrid | None:
    settings = header.get("grids", {}).get(name)
    if settings is None:
        return None
    return WeightGrid(
        scales=tensors[f"{name}{_GRID}scales"],
        zeros=tensors[f"{name}{_GRID}zeros"],
        group_of_input=tensors.get(f"{name}{_GRID}group_of_input"),
        **settings,
    )


def _restored_transforms(
    header: Mapping[str, Any], tensors: Mapping[str, Tensor]
) -> list[InputTransform]:
    found = []
    for number, description in enumerate(header.get("transforms", ())):
        prefix = f"{_TRANSFORM}{number}."
        own = {k.removeprefix(prefix): t for k, t in tensors.items() if k.startswith(prefix)}
        found.append(restore(description, own))
    return found


def _check_rewritten(model: DiffusionModel, rewritten: Mapping[str, Tensor], file: Path) -> None:
    # A tied head is listed by its own name, too: the file may hold it untied.
    known = dict(model.host.named_parameters(remove_duplicate=False))
    for name, tensor in rewritten.items():
        if name not in known or known[name].shape != tensor.shape:
            raise StoreError(f"{file} is of another model: it holds {name} {tuple(tensor.shape)}")


def _put_rewritten(model: DiffusionModel, rewritten: Mapping[str, Tensor]) -> None:
    for name, tensor in rewritten.items():
        parent, _, child = name.rpartition(".")
        rewrite(model.host.get_submodule(parent), child, tensor)
    head, embeddings = model.host.get_output_embeddings(), model.host.get_input_embeddings()
    if head.weight is not embeddings.weight:
        model.host.config.tie_word_embeddings = False
