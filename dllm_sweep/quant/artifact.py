"""What a method changed, as one safetensors file, and back into a fresh full-precision model.

The file holds the quantized linears with their grids, activation settings and input transforms, how
attention rounds its operands, and every other parameter that a method has rewritten: norms,
embeddings, the head, linears left in full precision that take part of a transform. Transforms that
several linears share are stored once.
"""

from __future__ import annotations

import dataclasses
import hashlib
import json
import os
from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor, nn

from dllm_sweep.errors import StoreError
from dllm_sweep.models.base import DiffusionModel
from dllm_sweep.quant import attention
from dllm_sweep.quant.affine import WeightGrid
from dllm_sweep.quant.apply import replace
from dllm_sweep.quant.fuse import RewrittenParameter, rewrite
from dllm_sweep.quant.linear import ActivationQuantization, QuantLinear
from dllm_sweep.quant.transforms import InputTransform, describe, restore
from dllm_sweep.records import Artifact, ModuleRow
from dllm_sweep.spec import QuantScheme

FORMAT = "dllm-sweep quantized weights 3"
"""Older files can be loaded, too: format 2 has no grids, format 1 quantized linears alone."""
_CHUNK = 1 << 22
_TRANSFORM = "transform."
_GRID = ".grid."


def save(
    model: DiffusionModel,
    file: Path,
    *,
    scheme: QuantScheme | None = None,
    modules: Sequence[ModuleRow] = (),
) -> Artifact:
    """Write what was changed in a model: whole and durable under `file`, or not at all.

    Args:
        model: Parameters that no method has rewritten are left out.
        file: Where the file goes; its folder is made.
        scheme: Kept in the file for people.
        modules: Kept in the file as they are.

    Returns:
        Path, SHA-256 and size; the dequantized weights keep the model's dtype.
    """
    linears = model.linears()
    chosen = {name: part for name, part in linears.items() if isinstance(part, QuantLinear)}
    transforms = _distinct_transforms(chosen.values())
    rewritten = {
        name: parameter
        for name, parameter in model.host.named_parameters()
        if isinstance(parameter, RewrittenParameter)
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
        "format": FORMAT,
        "scheme": None if scheme is None else str(scheme),
        "activations": {name: dataclasses.asdict(part.activation) for name, part in chosen.items()},
        "modules": [dataclasses.asdict(row) for row in modules],
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
        "attention": attention.describe(model),
    }
    file.parent.mkdir(parents=True, exist_ok=True)
    _write_whole(file, tensors, json.dumps(header))
    size = file.stat().st_size
    return Artifact(kind="weights", path=str(file), sha256=_sha256(file), bytes=size)


def _distinct_transforms(linears: Iterable[QuantLinear]) -> list[InputTransform]:
    transforms = (part.transform for part in linears)
    return list({id(one): one for one in transforms if one is not None}.values())


def _linear_tensors(linears: Mapping[str, QuantLinear]) -> Iterator[tuple[str, Tensor]]:
    for name, part in linears.items():
        yield f"{name}.weight", part.weight
        if part.bias is not None:
            yield f"{name}.bias", part.bias
        if part.grid is not None:
            yield f"{name}{_GRID}scales", part.grid.scales
            yield f"{name}{_GRID}zeros", part.grid.zeros
            if part.grid.group_of_input is not None:
                yield f"{name}{_GRID}group_of_input", part.grid.group_of_input


def _transform_tensors(transforms: Sequence[InputTransform]) -> Iterator[tuple[str, Tensor]]:
    for number, transform in enumerate(transforms):
        for key, tensor in transform.state_dict().items():
            yield f"{_TRANSFORM}{number}.{key}", tensor


def load(model: DiffusionModel, file: Path, *, sha256: str | None = None) -> tuple[ModuleRow, ...]:
    """Put what was saved into a fresh full-precision model, in place.

    Args:
        model: The model that was quantized, loaded again.
        file: What `save` wrote.
        sha256: The digest that it returned, checked before anything is read; None if the caller
            has checked it.

    Returns:
        The module rows that were saved.

    Raises:
        StoreError: If the file is missing, truncated or altered, or is of another model.
    """
    if not file.is_file():
        raise StoreError(f"the quantized weights {file} are missing; quantize the trial again")
    if sha256 is not None and _sha256(file) != sha256:
        raise StoreError(
            f"the quantized weights {file} are damaged: their SHA-256 is not the recorded one;"
            " remove the file and quantize the trial again"
        )
    header, tensors = _read(file)
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
    attention.restore(model, header.get("attention", {}))
    return tuple(ModuleRow(**row) for row in header["modules"])


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


def _write_whole(file: Path, tensors: Mapping[str, Tensor], header: str) -> None:
    temporary = file.with_name(f".{file.name}.{os.getpid()}.tmp")
    try:
        save_file(dict(tensors), temporary, metadata={"dllm_sweep": header})
        _sync(temporary)
        os.replace(temporary, file)
        _sync(file.parent)
    finally:
        temporary.unlink(missing_ok=True)


def _sync(path: Path) -> None:
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def _read(file: Path) -> tuple[dict[str, Any], dict[str, Tensor]]:
    try:
        with safe_open(file, framework="pt") as opened:
            header = json.loads(opened.metadata()["dllm_sweep"])
            return header, {key: opened.get_tensor(key) for key in opened.keys()}  # noqa: SIM118
    except (SafetensorError, KeyError, TypeError, json.JSONDecodeError) as error:
        raise StoreError(f"{file} does not hold quantized weights: {error}") from error


def _sha256(file: Path) -> str:
    digest = hashlib.sha256()
    with file.open("rb") as opened:
        while chunk := opened.read(_CHUNK):
            digest.update(chunk)
    return digest.hexdigest()
