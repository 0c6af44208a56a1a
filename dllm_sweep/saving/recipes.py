"""Writing down how a model is quantized."""

from __future__ import annotations

import dataclasses
import hashlib
import importlib.metadata
import platform
from collections.abc import Sequence
from functools import cache
from pathlib import Path
from typing import Any

from torch import Tensor

import dllm_sweep
from dllm_sweep.manifest import Recipe
from dllm_sweep.models.base import DiffusionModel
from dllm_sweep.models.locate import model_digest
from dllm_sweep.plan import canonical_scheme
from dllm_sweep.shipping import local
from dllm_sweep.spec import CalibrationSpec, ModelRef, QuantScheme

_PACKAGES = ("torch", "transformers")


def recipe_of(
    model: DiffusionModel,
    *,
    method: str,
    built: Any,
    scheme: QuantScheme,
    calibration: CalibrationSpec | None,
    tokens: Sequence[Tensor],
    seed: int,
) -> Recipe:
    """Write down how `model` is about to be quantized.

    Args:
        model: In full precision.
        method: A name, or `path/to/file.py:Class`.
        built: The method with its parameters.
        scheme: Bit-widths and grids.
        calibration: The text that it sees, if it is a text.
        tokens: (B, L) each, the token ids that it sees, if they were given instead.
        seed: Of its own random choices.
    """
    file = local(method.rpartition(":")[0])
    own = hashlib.sha256(file.read_bytes()).hexdigest() if file.is_file() else None
    values = {one.name: getattr(built, one.name) for one in dataclasses.fields(built)}
    return Recipe(
        method=method,
        method_version=built.version,
        method_sha256=own,
        parameters=tuple(sorted(values.items())),
        scheme=str(canonical_scheme(scheme, default=built.symmetric)),
        calibration=calibration,
        calibration_tokens=_described(tokens) if tokens else None,
        seed=seed,
        model=model.name,
        model_digest=None,
        family=model.family.name,
        dtype=str(model.dtype).removeprefix("torch."),
        versions=versions(),
    )


@cache
def versions() -> tuple[tuple[str, str], ...]:
    """Give the versions of what quantizes, by name."""
    installed = {name: importlib.metadata.version(name) for name in _PACKAGES}
    own = {"dllm-sweep": dllm_sweep.__version__, "python": platform.python_version()}
    return tuple(sorted((own | installed).items()))


def with_digest(recipe: Recipe, folder: Path) -> Recipe:
    """Add what takes reading all files: the checkpoint's digest, unless it is there.

    Args:
        recipe: Written down before.
        folder: Where the checkpoint is; in the hub's cache it is named by the commit.
    """
    if recipe.model_digest is not None:
        return recipe
    cached = folder.parent.name == "snapshots"
    digest = folder.name if cached else model_digest(ModelRef(name=recipe.model))
    return dataclasses.replace(recipe, model_digest=digest)


def _described(tokens: Sequence[Tensor]) -> str:
    digest = hashlib.sha256()
    for part in tokens:
        digest.update(part.cpu().numpy().tobytes())
    sequences, longest = sum(map(len, tokens)), max(part.shape[1] for part in tokens)
    return f"{sequences} sequences of {longest} token ids, SHA-256 {digest.hexdigest()}"
