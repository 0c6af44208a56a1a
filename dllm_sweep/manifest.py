"""What a folder with a saved quantized model says of itself, without torch: planning asks, too.

Beside the checkpoint's own config.json and tokenizer the folder holds `dllm_sweep.json`, which is
read and written here, and `quantized.safetensors`, which `dllm_sweep.saving` reads and writes.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path

from dllm_sweep.errors import CheckpointError
from dllm_sweep.records import ModuleRow
from dllm_sweep.spec import CalibrationSpec, JsonValue, Parameters, from_json, to_json

MANIFEST = "dllm_sweep.json"
WEIGHTS = "quantized.safetensors"
FORMAT = 1
"""Raised by hand whenever the folder cannot be read by older versions of this program."""

CODES, SCALES, ZEROS, GROUPS = ".codes", ".scales", ".zeros", ".group_of_input"
"""What follows a linear's name in the names of the tensors that stand for its weight."""
TRANSFORM = "transform."
"""What the names of an input transform's tensors begin with, before its number."""


@dataclass(frozen=True, kw_only=True)
class Recipe:
    """How a model was quantized: enough to do it again.

    Attributes:
        method: A name, or `path/to/file.py:Class`.
        method_version: Of the method's results.
        method_sha256: Of the file of a method of the user's own, else None.
        parameters: All of the method's parameters with their values, by name.
        scheme: Bit-widths and grids.
        calibration: What the method saw, with its digest; None if nothing, or token ids.
        calibration_tokens: What was given as token ids instead: shape and SHA-256.
        seed: Of the method's own random choices.
        model: The checkpoint that was quantized, as the user named it.
        model_digest: SHA-256 over its files, or its commit on the hub; set when it is saved.
        family: Its family.
        dtype: In which it was quantized; rounded weights have this type when they are loaded.
        versions: Of the packages and of Python that did it, by name.
    """

    method: str
    method_version: int
    method_sha256: str | None = None
    parameters: Parameters
    scheme: str
    calibration: CalibrationSpec | None
    calibration_tokens: str | None = None
    seed: int
    model: str
    model_digest: str | None
    family: str
    dtype: str
    versions: Parameters

    def __str__(self) -> str:
        return f"{Path(self.method).name} {self.scheme}"


@dataclass(frozen=True, kw_only=True)
class SavedGrid:
    """The grid of a packed weight, beside its scales.

    Attributes:
        bits: Of a code.
        lowest: The code that is packed as 0.
        zero: The code of 0 where all grids of this weight have the same; None if they are stored.
    """

    bits: int
    lowest: int
    zero: int | None


@dataclass(frozen=True, kw_only=True)
class SavedLinear:
    """A linear that is not as the checkpoint's family has it.

    Attributes:
        name: In full.
        shape: (outputs, inputs).
        activation: How its input is rounded, by the names of `ActivationQuantization`; None if it
            is left in full precision behind an input transform.
        grid: What its weight was rounded to; None if the weight is stored in full.
        transform: The number of its input transform; None if it has none.
    """

    name: str
    shape: tuple[int, ...]
    activation: JsonValue
    grid: SavedGrid | None
    transform: int | None


@dataclass(frozen=True, kw_only=True)
class SavedFile:
    """The file of tensors.

    Attributes:
        sha256: Of its content.
        bytes: Its size.
        packed_bytes: Of codes, scales, zeros and group indices alone.
    """

    sha256: str
    bytes: int
    packed_bytes: int


@dataclass(frozen=True, kw_only=True)
class Manifest:
    """All that a folder says beside tensors, configuration and tokenizer.

    Attributes:
        recipe: How the model was quantized.
        file: The file of tensors.
        tied: Whether the output head is the embedding.
        linears: Those that were changed, in depth order.
        transforms: Input transforms as `quant.transforms.describe` gives them.
        attention: Operand rounding as `quant.attention.describe` gives it.
        modules: What was quantized, as results have it.
        warnings: What the user should know.
        format: Of the folder.
    """

    recipe: Recipe
    file: SavedFile
    tied: bool
    linears: tuple[SavedLinear, ...]
    transforms: tuple[JsonValue, ...]
    attention: JsonValue
    modules: tuple[ModuleRow, ...]
    warnings: tuple[str, ...]
    format: int = field(default=FORMAT)

    @property
    def packed_bits(self) -> float | None:
        """Stored bits of a packed weight, with all that its grids take; None if none is packed."""
        packed = [one.shape[0] * one.shape[1] for one in self.linears if one.grid is not None]
        return 8 * self.file.packed_bytes / sum(packed) if packed else None

    def shapes(self, stored: Mapping[str, tuple[int, ...]]) -> dict[str, tuple[int, ...]]:
        """Give the shapes of all parameters, by the host's names.

        Args:
            stored: The shapes of the tensors in the file.
        """
        packed = {one.name for one in self.linears if one.grid is not None}
        shapes = {
            name: shape
            for name, shape in stored.items()
            if not name.startswith(TRANSFORM) and not _stands_for(name, packed)
        }
        return shapes | {f"{one.name}.weight": one.shape for one in self.linears}


def _stands_for(tensor: str, packed: set[str]) -> bool:
    return any(
        tensor.endswith(part) and tensor.removesuffix(part) in packed
        for part in (CODES, SCALES, ZEROS, GROUPS)
    )


def read_manifest(folder: Path) -> Manifest | None:
    """Read what a folder says; None if it holds no saved quantized model.

    Raises:
        CheckpointError: If it is damaged, or of another format than this version reads.
    """
    path = folder / MANIFEST
    if not path.is_file():
        return None
    try:
        value = json.loads(path.read_text(encoding="utf-8"))
        version = value["format"]
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise _damaged(path, error) from error
    if version != FORMAT:
        raise CheckpointError(
            f"{path} has format {version!r}, this version of dllm-sweep reads format {FORMAT}:"
            " quantize the model again, or load it with the version that saved it"
        )
    try:
        return from_json(Manifest, value)
    except (KeyError, TypeError, AttributeError, ValueError) as error:
        raise _damaged(path, error) from error


def write_manifest(folder: Path, manifest: Manifest) -> None:
    """Write what `read_manifest` reads."""
    text = json.dumps(to_json(manifest), indent=1, ensure_ascii=False)
    (folder / MANIFEST).write_text(f"{text}\n", encoding="utf-8")


def _damaged(path: Path, error: Exception) -> CheckpointError:
    reason = " ".join(f"{type(error).__name__}: {error}".split())
    return CheckpointError(f"{path} is damaged ({reason}): quantize the model again")
