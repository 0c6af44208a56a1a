"""Reading safetensors checkpoints strictly: every tensor is used once and none is missing."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from torch import nn

from dllm_sweep.errors import CheckpointError

_INDEX = "model.safetensors.index.json"
_SINGLE = "model.safetensors"
_NAMES_SHOWN = 5


@dataclass(frozen=True, kw_only=True)
class StoredTensor:
    """A tensor in a checkpoint's file, not yet read."""

    name: str
    """As the checkpoint calls it."""
    file: Path
    shape: tuple[int, ...]


def read_config(folder: Path) -> dict[str, Any]:
    """Read config.json.

    Raises:
        CheckpointError: If it is missing or is not a JSON object.
    """
    return _read_json(folder / "config.json")


def weight_files(folder: Path) -> list[Path]:
    """List the checkpoint's safetensors files: the one, or the shards that its index names.

    Raises:
        CheckpointError: If there are none, or a shard is missing.
    """
    if (folder / _INDEX).is_file():
        shards = sorted(set(_read_json(folder / _INDEX).get("weight_map", {}).values()))
        absent = [name for name in shards if not (folder / name).is_file()]
        if absent or not shards:
            raise CheckpointError(f"{folder}: {_INDEX} names files that are missing: {absent}")
        return [folder / name for name in shards]
    if (folder / _SINGLE).is_file():
        return [folder / _SINGLE]
    raise CheckpointError(f"{folder} holds neither {_SINGLE} nor {_INDEX}")


def match_tensors(
    files: Iterable[Path],
    translate: Callable[[str], str | None],
    expected: Mapping[str, tuple[int, ...]],
    public_name: Callable[[str], str],
) -> dict[str, StoredTensor]:
    """Pair the checkpoint's tensors with the model's parameters, by headers alone.

    Args:
        files: The checkpoint's safetensors files.
        translate: Checkpoint name -> parameter name, None if unknown.
        expected: Parameter name -> shape, all of them.
        public_name: Parameter name -> checkpoint name, for what is missing.

    Raises:
        CheckpointError: If a tensor is missing, unknown, given twice, or of another shape.
    """
    stored = [tensor for file in files for tensor in headers(file)]
    named = [(translate(tensor.name) or "", tensor) for tensor in stored]
    found = {name: tensor for name, tensor in named if name in expected}
    counts = Counter(name for name, _ in named if name in expected)
    problems = {
        "missing": [public_name(name) for name in expected if name not in found],
        "unexpected": [tensor.name for name, tensor in named if name not in expected],
        "given more than once": [public_name(name) for name, count in counts.items() if count > 1],
        "of the wrong shape": [
            f"{tensor.name} is {tensor.shape}, expected {expected[name]}"
            for name, tensor in found.items()
            if tensor.shape != tuple(expected[name])
        ],
    }
    _raise_problems(stored[0].file.parent if stored else Path(), problems)
    return found


@torch.no_grad()
def fill_parameters(
    model: nn.Module,
    tensors: Mapping[str, StoredTensor],
    *,
    device_of: Callable[[str], torch.device],
    dtype: torch.dtype,
) -> None:
    """Replace the parameters of `model` (on the meta device) by the stored tensors, one by one.

    Reading one tensor at a time keeps the host's memory at one copy of the weights.

    Args:
        model: The model.
        tensors: Parameter name -> stored tensor.
        device_of: Parameter name -> where it goes.
        dtype: What it is converted to.

    Raises:
        CheckpointError: If a tensor does not hold finite floating-point numbers.
    """
    by_file: dict[Path, dict[str, str]] = {}
    for name, tensor in tensors.items():
        by_file.setdefault(tensor.file, {})[name] = tensor.name
    for file, names in by_file.items():
        with safe_open(file, framework="pt") as opened:
            for name, stored_name in names.items():
                value = opened.get_tensor(stored_name)
                what = f"{file}: {stored_name}"
                _set_parameter(model, name, _converted(value, device_of(name), dtype, what))


def stored_dtype(tensors: Mapping[str, StoredTensor], name: str) -> torch.dtype:
    """Read the floating-point type in which parameter `name` is stored."""
    with safe_open(tensors[name].file, framework="pt") as opened:
        return opened.get_tensor(tensors[name].name).dtype


def _converted(
    value: torch.Tensor, device: torch.device, dtype: torch.dtype, what: str
) -> torch.Tensor:
    if not value.is_floating_point():
        raise CheckpointError(f"{what} is {value.dtype}, not a float")
    value = value.to(device=device, dtype=dtype)
    # Attention may swallow a NaN, so logits that look well are no proof.
    if not torch.isfinite(value).all():
        raise CheckpointError(f"{what} is not finite in {dtype}")
    return value


def _set_parameter(model: nn.Module, name: str, value: torch.Tensor) -> None:
    module, _, attribute = name.rpartition(".")
    parameter = nn.Parameter(value, requires_grad=False)
    setattr(model.get_submodule(module), attribute, parameter)


def headers(file: Path) -> list[StoredTensor]:
    """List the tensors of a safetensors file, without reading them.

    Raises:
        CheckpointError: If it is no such file.
    """
    try:
        with safe_open(file, framework="pt") as opened:
            return [
                StoredTensor(name=name, file=file, shape=tuple(opened.get_slice(name).get_shape()))
                for name in opened.keys()  # noqa: SIM118 (it is not a mapping)
            ]
    except (SafetensorError, OSError) as error:
        raise CheckpointError(f"{file} is not a readable safetensors file: {error}") from error


def _raise_problems(folder: Path, problems: Mapping[str, list[str]]) -> None:
    lines = [f"{len(names)} {kind}: {_few(names)}" for kind, names in problems.items() if names]
    if lines:
        raise CheckpointError(f"{folder}: tensors do not fit config.json: {'; '.join(lines)}")


def _few(names: list[str]) -> str:
    more = "" if len(names) <= _NAMES_SHOWN else f" and {len(names) - _NAMES_SHOWN} more"
    return ", ".join(names[:_NAMES_SHOWN]) + more


def _read_json(path: Path) -> dict[str, Any]:
    try:
        value = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise CheckpointError(f"{path} cannot be read: {error}") from error
    if not isinstance(value, dict):
        raise CheckpointError(f"{path} is not a JSON object")
    return value
