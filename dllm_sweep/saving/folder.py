"""Writing a quantized model's folder: whole, or not at all."""

from __future__ import annotations

import json
import os
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from safetensors import SafetensorError

from dllm_sweep.errors import DiskFull, InputError
from dllm_sweep.manifest import MANIFEST, WEIGHTS, Manifest, Recipe, SavedFile, write_manifest
from dllm_sweep.models.base import DiffusionModel
from dllm_sweep.models.checkpoint import read_config
from dllm_sweep.models.known import completed
from dllm_sweep.models.locate import FILES, file_digest
from dllm_sweep.quant import attention
from dllm_sweep.quant.transforms import describe
from dllm_sweep.saving import compressed_tensors, weights
from dllm_sweep.saving.card import model_card
from dllm_sweep.saving.recipes import with_digest

OWN_LAYOUT = "dllm-sweep"
LAYOUTS = (OWN_LAYOUT, compressed_tensors.LAYOUT)
"""What `load_model` reads, for every method; and what transformers reads, for weights alone."""
_TOKENIZER_FILES = frozenset(FILES) - {"config.json", MANIFEST}


@dataclass(frozen=True, kw_only=True)
class SavedModel:
    """A folder that was written.

    Attributes:
        folder: Where it is.
        recipe: How the model was quantized.
        bytes: Of all its files.
        average_bits: Mean bits of a quantized weight as results count them: 16-bit scales.
        stored_bits: Mean bits that a packed weight takes in the folder, with its float32 scales;
            None if no weight is packed.
    """

    folder: Path
    recipe: Recipe
    bytes: int
    average_bits: float
    stored_bits: float | None


def save_quantized(
    model: DiffusionModel, folder: str | Path, *, layout: str = OWN_LAYOUT
) -> SavedModel:
    """Write a quantized model to a new folder.

    Args:
        model: Loaded by `load_model` and quantized by `quantize`, or loaded from such a folder.
        folder: Must not exist, or be empty; appears only once it is whole.
        layout: `dllm-sweep`, which `load_model` gives back bit for bit, or `compressed-tensors`,
            which transformers reads.

    Raises:
        InputError: If the folder is in the way, the model is not quantized, or the layout does not
            exist or cannot hold it.
        DiskFull: If the folder cannot be written.
    """
    target = free_folder(folder)
    if layout not in LAYOUTS:
        raise InputError(f"layout {layout!r} is not known: write one of {', '.join(LAYOUTS)}")
    if model.recipe is None or model.quantization_report is None or model.folder is None:
        raise InputError(
            f"{model.name} was not quantized by `dllm_sweep.quantize`: there is nothing to save"
        )
    dtype = str(model.dtype).removeprefix("torch.")
    if dtype != model.recipe.dtype:
        raise InputError(
            f"{model.name} was quantized in {model.recipe.dtype} and is {dtype} now, in which its"
            f" weights are others: save it in {model.recipe.dtype}"
        )
    reason = None if layout == OWN_LAYOUT else compressed_tensors.refusal(model)
    if reason is not None:
        raise InputError(f"layout {layout}: {reason}; save it in the layout {OWN_LAYOUT}")
    recipe = model.recipe = with_digest(model.recipe, model.folder)
    with _whole(target) as new:
        if layout == OWN_LAYOUT:
            stored_bits = _write_own(model, recipe, model.folder, new)
        else:
            stored_bits = compressed_tensors.write(model, new)
        _copy_tokenizer(model.folder, new)
        report = model.quantization_report
        size = sum(file.stat().st_size for file in new.iterdir())
        card = model_card(
            model, recipe, layout=layout, name=target.name, bytes=size, bits=stored_bits
        )
        (new / "README.md").write_text(card, encoding="utf-8")
        _share_alike(new)
    return SavedModel(
        folder=target,
        recipe=recipe,
        bytes=sum(file.stat().st_size for file in target.iterdir()),
        average_bits=report.average_bits,
        stored_bits=stored_bits,
    )


def free_folder(folder: str | Path) -> Path:
    """Give the whole path of a folder that can be made.

    Raises:
        InputError: If something is there already, or may not be written there.
    """
    try:
        path = Path(folder).expanduser().absolute()
        empty = path.is_dir() and not any(path.iterdir())
        taken = not empty and (path.exists() or path.is_symlink())
        above = next(one for one in path.parents if one.exists())
    except (OSError, RuntimeError) as error:
        reason = getattr(error, "strerror", None) or error
        raise InputError(f"{folder} cannot be made: {reason}") from error
    if taken:
        raise InputError(f"{folder} is there already: name a new folder, or remove this one")
    if not above.is_dir() or not os.access(above, os.W_OK):
        raise InputError(f"{folder} cannot be made: {above} is no folder that may be written")
    return path


@contextmanager
def _whole(target: Path) -> Iterator[Path]:
    """Give a new folder that takes `target`'s place at the end, and vanishes if anything fails."""
    new = target.with_name(f".{target.name}.{os.getpid()}.tmp")
    try:
        new.mkdir(parents=True)
        yield new
        os.replace(new, target)
    except (OSError, SafetensorError) as error:
        reason = getattr(error, "strerror", None) or error
        raise DiskFull(f"{target} cannot be written: {reason}") from error
    finally:
        shutil.rmtree(new, ignore_errors=True)


def _write_own(model: DiffusionModel, recipe: Recipe, source: Path, folder: Path) -> float | None:
    config = completed(model.name, read_config(source))
    config.pop("auto_map", None)  # the checkpoint's own code does not come along
    (folder / "config.json").write_text(f"{json.dumps(config, indent=2)}\n", encoding="utf-8")
    file = folder / WEIGHTS
    linears, packed_bytes = weights.write(model, file)
    report = model.quantization_report
    manifest = Manifest(
        recipe=recipe,
        file=SavedFile(
            sha256=file_digest(file), bytes=file.stat().st_size, packed_bytes=packed_bytes
        ),
        tied=weights.is_tied(model),
        linears=linears,
        transforms=tuple(describe(transform) for transform in weights.transforms_of(model)),
        attention=attention.describe(model),
        modules=report.modules,
        warnings=report.warnings,
    )
    write_manifest(folder, manifest)
    return manifest.packed_bits


def _share_alike(folder: Path) -> None:
    # safetensors writes for the owner alone; the folder is there to be given away.
    mode = (folder / "README.md").stat().st_mode
    for file in folder.iterdir():
        file.chmod(mode)


def _copy_tokenizer(source: Path, folder: Path) -> None:
    for pattern in sorted(_TOKENIZER_FILES):
        for file in [] if "safetensors" in pattern else source.glob(pattern):
            shutil.copyfile(file, folder / file.name)
