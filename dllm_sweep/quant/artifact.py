"""Quantized weights as one safetensors file, and back into a fresh full-precision model."""

from __future__ import annotations

import dataclasses
import hashlib
import json
import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor, nn

from dllm_sweep.errors import StoreError
from dllm_sweep.models.base import DiffusionModel
from dllm_sweep.quant.apply import replace
from dllm_sweep.quant.linear import ActivationQuantization, QuantLinear
from dllm_sweep.records import Artifact, ModuleRow
from dllm_sweep.spec import QuantScheme

FORMAT = "dllm-sweep quantized weights 1"
_CHUNK = 1 << 22


def save(
    model: DiffusionModel,
    file: Path,
    *,
    scheme: QuantScheme | None = None,
    modules: Sequence[ModuleRow] = (),
) -> Artifact:
    """Write a model's quantized linears: whole and durable under `file`, or not at all.

    Args:
        model: Its linears that are no `QuantLinear` are left out.
        file: Where the file goes; its folder is made.
        scheme: Kept in the file for people.
        modules: Kept in the file as they are.

    Returns:
        Path, SHA-256 and size; the dequantized weights keep the model's dtype.
    """
    linears = model.linears()
    chosen = {name: part for name, part in linears.items() if isinstance(part, QuantLinear)}
    tensors = {
        f"{name}.{key}": tensor.detach().cpu().contiguous()
        for name, part in chosen.items()
        for key, tensor in part.named_buffers()
    }
    header = {
        "format": FORMAT,
        "scheme": None if scheme is None else str(scheme),
        "activations": {name: dataclasses.asdict(part.activation) for name, part in chosen.items()},
        "modules": [dataclasses.asdict(row) for row in modules],
    }
    file.parent.mkdir(parents=True, exist_ok=True)
    _write_whole(file, tensors, json.dumps(header))
    size = file.stat().st_size
    return Artifact(kind="weights", path=str(file), sha256=_sha256(file), bytes=size)


def load(model: DiffusionModel, file: Path, *, sha256: str | None = None) -> tuple[ModuleRow, ...]:
    """Put saved quantized linears into a fresh full-precision model, in place.

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
    linears = model.linears()
    # All layers are built before any is put in place: a file of another model changes nothing.
    parts = {
        name: _restored(name, linears, tensors, ActivationQuantization(**settings), file)
        for name, settings in header["activations"].items()
    }
    for name, part in parts.items():
        replace(model.host, name, part)
    return tuple(ModuleRow(**row) for row in header["modules"])


def _restored(
    name: str,
    linears: Mapping[str, nn.Module],
    tensors: Mapping[str, Tensor],
    activation: ActivationQuantization,
    file: Path,
) -> QuantLinear:
    weight, bias = tensors[f"{name}.weight"], tensors.get(f"{name}.bias")
    if name not in linears or linears[name].weight.shape != weight.shape:
        raise StoreError(f"{file} is of another model: it holds {name} {tuple(weight.shape)}")
    like = linears[name].weight
    weight = weight.to(like.device, like.dtype)
    bias = None if bias is None else bias.to(like.device, like.dtype)
    return QuantLinear(weight, bias, activation)


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
