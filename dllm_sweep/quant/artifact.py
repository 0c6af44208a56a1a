"""What a method changed in a model, as one safetensors file, and back into a fresh model.

The file holds what `quant/changes.py` collects, and how attention rounds its operands.
"""

from __future__ import annotations

import dataclasses
import hashlib
import json
import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor

from dllm_sweep.errors import StoreError
from dllm_sweep.models.base import DiffusionModel
from dllm_sweep.quant import attention, changes
from dllm_sweep.records import Artifact, ModuleRow
from dllm_sweep.spec import QuantScheme

FORMAT = "dllm-sweep quantized weights 3"
"""Older files can be loaded, too: format 2 has no grids, format 1 quantized linears alone."""
_CHUNK = 1 << 22


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
    tensors, header = changes.collect(model)
    header |= {
        "format": FORMAT,
        "scheme": None if scheme is None else str(scheme),
        "modules": [dataclasses.asdict(row) for row in modules],
        "attention": attention.describe(model),
    }
    file.parent.mkdir(parents=True, exist_ok=True)
    _write_whole(file, tensors, json.dumps(header))
    size = file.stat().st_size
    return Artifact(kind="weights", path=str(file), sha256=_sha256(file), bytes=size)


@dataclass(frozen=True, kw_only=True, eq=False)
class BlockContent:
    """What was changed in one block, ready to be written while the work goes on.

    Attributes:
        tensors: On the CPU, where the model itself may hold them: the block must not change again.
        header: How they belong together, as JSON.
    """

    tensors: dict[str, Tensor]
    header: str

    @classmethod
    def of(
        cls,
        model: DiffusionModel,
        index: int,
        *,
        modules: Sequence[ModuleRow] = (),
        warnings: Sequence[str] = (),
    ) -> BlockContent:
        """Collect it from a model.

        How attention rounds its operands is left out: methods set that for the whole model.

        Args:
            model: What else was changed in it is left out.
            index: Of the block.
            modules: Written as they are.
            warnings: The same.
        """
        tensors, header = changes.collect(model, f"{model.block_name(index)}.")
        header |= {
            "format": FORMAT,
            "modules": [dataclasses.asdict(row) for row in modules],
            "warnings": list(warnings),
        }
        return cls(tensors=tensors, header=json.dumps(header))

    def write(self, file: Path) -> None:
        """Write it for `load_block`; a crash may leave the file cut."""
        save_file(self.tensors, file, metadata={"dllm_sweep": self.header})


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
    header, tensors = _read(file, model.device)
    changes.put(model, tensors, header, file)
    attention.restore(model, header.get("attention", {}))
    return tuple(ModuleRow(**row) for row in header["modules"])


def load_block(model: DiffusionModel, file: Path) -> tuple[tuple[ModuleRow, ...], tuple[str, ...]]:
    """Put the content of one block into a model whose other blocks stay as they are.

    Args:
        model: Prepared as it was before its blocks were quantized one by one.
        file: Known to be whole.

    Returns:
        The module rows and the warnings that were saved.

    Raises:
        StoreError: If the file is of another model.
    """
    header, tensors = _read(file, model.device)
    changes.put(model, tensors, header, file)
    return tuple(ModuleRow(**row) for row in header["modules"]), tuple(header["warnings"])


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


def _read(file: Path, device: torch.device) -> tuple[dict[str, Any], dict[str, Tensor]]:
    # Tensors that stay on the CPU are copied: the file's own memory is not aligned, and products of
    # matrices that lie otherwise in memory may differ in their last bits.
    stay = device.type == "cpu"
    try:
        with safe_open(file, framework="pt") as opened:
            header = json.loads(opened.metadata()["dllm_sweep"])
            read = ((key, opened.get_tensor(key)) for key in opened.keys())  # noqa: SIM118
            return header, {key: tensor.clone() if stay else tensor for key, tensor in read}
    except (SafetensorError, KeyError, TypeError, json.JSONDecodeError) as error:
        raise StoreError(f"{file} does not hold quantized weights: {error}") from error


def _sha256(file: Path) -> str:
    digest = hashlib.sha256()
    with file.open("rb") as opened:
        while chunk := opened.read(_CHUNK):
            digest.update(chunk)
    return digest.hexdigest()
