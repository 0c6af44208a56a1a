"""Reading safetensors checkpoints strictly: every tensor is used once and none is missing."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Callable, Iterable, Mapping
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack
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
_READERS = 8
_DTYPES = {"F32": torch.float32, "BF16": torch.bfloat16, "F16": torch.float16}


@dataclass(frozen=True, kw_only=True)
class StoredTensor:
    """A tensor in a checkpoint's file, not yet read."""

    name: str
    """As the checkpoint calls it."""
    file: Path
    shape: tuple[int, ...]
    dtype: str
    """As safetensors writes it, such as `BF16`."""


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
        places = _read_json(folder / _INDEX).get("weight_map")
        shards = sorted(set(places.values())) if isinstance(places, dict) else []
        absent = [name for name in shards if not (folder / name).is_file()]
        if not shards:
            raise CheckpointError(f"{folder}: {_INDEX} has no weight_map that names files")
        if absent:
            raise CheckpointError(
                f"{folder}: {_INDEX} names files that are missing: {', '.join(absent)}"
            )
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
    """Replace the parameters of `model` (on the meta device) by the stored tensors.

    Each goes from the mapped file straight to its device and is converted and checked there, so
    that the host's memory holds no copy of a GPU's weights.

    Args:
        model: The model.
        tensors: Parameter name -> stored tensor.
        device_of: Parameter name -> where it goes.
        dtype: What it is converted to.

    Raises:
        CheckpointError: If a tensor does not hold finite floating-point numbers.
    """
    on_cpu = all(device_of(name).type == "cpu" for name in tensors)
    with ExitStack() as stack:
        files = {tensor.file for tensor in tensors.values()}
        opened = {
            file: stack.enter_context(safe_open(file, framework="pt")) for file in sorted(files)
        }

        def read(name: str) -> torch.Tensor:
            tensor = tensors[name]
            value = opened[tensor.file].get_tensor(tensor.name)
            return _converted(value, device_of(name), dtype, f"{tensor.file}: {tensor.name}")

        # A GPU waits for the disk: several readers at once. On a CPU torch's threads are enough.
        with ThreadPoolExecutor(1 if on_cpu else _READERS) as pool:
            for name, value in zip(tensors, pool.map(read, tensors), strict=True):
                _set_parameter(model, name, value)


def stored_dtype(tensor: StoredTensor) -> torch.dtype:
    """Give the type in which a tensor is stored; float32 where it is none of the usual ones."""
    return _DTYPES.get(tensor.dtype, torch.float32)


def _converted(
    value: torch.Tensor, device: torch.device, dtype: torch.dtype, what: str
) -> torch.Tensor:
    if not value.is_floating_point():
        raise CheckpointError(f"{what} is {value.dtype}, not a float")
    value = value.to(device).to(dtype)
    # Attention may swallow a NaN, so logits that look well are no proof. Both ends carry one on,
    # in one pass that is many times faster than asking each weight.
    if not all(bool(torch.isfinite(end)) for end in torch.aminmax(value)):
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
                StoredTensor(
                    name=name, file=file, shape=tuple(part.get_shape()), dtype=part.get_dtype()
                )
                for name in opened.keys()  # noqa: SIM118 (it is not a mapping)
                for part in (opened.get_slice(name),)
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
