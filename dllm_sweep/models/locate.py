"""Where a model's files are and what they contain, without torch: planning needs no more."""

from __future__ import annotations

import hashlib
import json
import re
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from functools import lru_cache
from pathlib import Path
from typing import Any

from dllm_sweep import plugins
from dllm_sweep.errors import CheckpointError, InputError, UnknownName
from dllm_sweep.manifest import MANIFEST, Recipe, read_manifest
from dllm_sweep.models import known
from dllm_sweep.models.family import ModelFamily
from dllm_sweep.models.planted import VARIANTS, PlantedOutliers
from dllm_sweep.spec import ModelRef, sha256_of

EMBEDDED = Path(__file__).parent / "embedded"
FILES = (
    "config.json",
    "*.safetensors",
    "*.safetensors.index.json",
    "tokenizer.json",
    "tokenizer_config.json",
    "tokenizer.model",
    "special_tokens_map.json",
    "added_tokens.json",
    "vocab.json",
    "merges.txt",
    "chat_template.jinja",
    MANIFEST,
)
"""What is read of a checkpoint, and so what its digest covers."""
_HUB_ID = re.compile(r"[A-Za-z0-9][\w.-]*/[\w.-]+")
_COMMIT = re.compile(r"[0-9a-f]{40}")


@dataclass(frozen=True, kw_only=True)
class Location:
    """A model on this machine's disk.

    Attributes:
        name: What the user named.
        folder: Where config.json, weights and tokenizer are.
        planted: The rescaling that makes a variant of an embedded checkpoint; else None.
    """

    name: str
    folder: Path
    planted: PlantedOutliers | None = None


def embedded_names() -> tuple[str, ...]:
    """Names of the models that the package carries, variants included, sorted."""
    folders = {path.parent.name for path in EMBEDDED.glob("*/config.json")}
    variants = {name for name, planted in VARIANTS.items() if planted.base in folders}
    return tuple(sorted(folders | variants))


def locate(name: str, revision: str | None = None) -> Location:
    """Find a model's folder; a hub model is downloaded into the hub's cache if need be.

    Args:
        name: An embedded name (which wins over a folder of that name), a folder, or a hub id,
            with `@revision` after it if `revision` is None.
        revision: Branch, tag or commit on the hub.

    Raises:
        UnknownName: If `name` is none of the three.
        CheckpointError: If the hub cannot be reached or has no such model.
    """
    folder = _local_folder(name)
    if folder is not None:
        return Location(name=name, folder=folder, planted=VARIANTS.get(name))
    hub_id, revision = _split(name, revision)
    return Location(name=hub_id, folder=_download(hub_id, revision))


def resolve_model(text: str) -> ModelRef:
    """Turn what a user wrote into a reference with its digest, and on the hub with its commit.

    Raises:
        UnknownName: If there is no such embedded model or folder and it is no hub id.
        CheckpointError: If the folder holds no checkpoint or the hub cannot be reached.
    """
    if _local_folder(text) is not None:
        return ModelRef(name=text, digest=model_digest(ModelRef(name=text)))
    hub_id, revision = _split(text, None)
    commit = _commit(hub_id, revision)
    return ModelRef(name=hub_id, revision=commit, digest=commit)


def model_digest(ref: ModelRef) -> str:
    """Give the SHA-256 over a checkpoint's files and its variant, or the hub's commit.

    Raises:
        UnknownName: If there is no such embedded model or folder and it is no hub id.
        CheckpointError: If the folder holds no checkpoint or the hub cannot be reached.
    """
    folder = _local_folder(ref.name)
    if folder is None:
        return _commit(*_split(ref.name, ref.revision))
    if not (folder / "config.json").is_file():
        raise CheckpointError(f"model {ref.name!r}: {folder} holds no config.json")
    planted = VARIANTS.get(ref.name)
    variant = None if planted is None else {"name": ref.name, **asdict(planted)}
    return sha256_of({"files": _file_digests(folder), "variant": variant})


@lru_cache
def tensor_shapes(ref: ModelRef) -> dict[str, tuple[int, ...]]:
    """Read the shapes of a local checkpoint's tensors from the headers of its files.

    Returns:
        Shapes by the checkpoint's own tensor names; empty for a model on the hub.
    """
    folder = _local_folder(ref.name)
    return {} if folder is None else parameter_shapes(folder)


def parameter_shapes(folder: Path) -> dict[str, tuple[int, ...]]:
    """Read the shapes of a checkpoint's parameters from the headers of its files.

    Returns:
        Shapes by the names in the files; those of packed weights are what is unpacked.

    Raises:
        CheckpointError: If a file cannot be read.
    """
    files = sorted(folder.glob("*.safetensors"))
    stored = {name: shape for file in files for name, shape in _shapes_in(file).items()}
    manifest = read_manifest(folder)
    return stored if manifest is None else manifest.shapes(stored)


def recipe_of(ref: ModelRef) -> Recipe | None:
    """Say how a local model was quantized; None if it was not, or is not on this machine.

    Raises:
        CheckpointError: If it was, and its folder is damaged.
    """
    folder = _local_folder(ref.name)
    manifest = None if folder is None else read_manifest(folder)
    return None if manifest is None else manifest.recipe


def family_of(ref: ModelRef) -> str:
    """Name the family of a checkpoint: what the reference says, else what its config.json here
    says, else the table of published ones; nothing is downloaded.

    Raises:
        UnknownName: If there is no such embedded model or folder and it is no hub id.
        CheckpointError: If its kind is not supported, with the reason.
        InputError: If its config.json is not on this machine and it is not in the table.
    """
    if ref.family is not None:
        return ref.family
    config = local_config(ref)
    if config is not None:
        return find_family(config, Path(ref.name)).name
    refusal = known.refusal(ref.name)
    if refusal is not None:
        raise CheckpointError(refusal)
    published = known.published(ref.name)
    if published is None:
        raise InputError(
            f"model {str(ref)!r}: its family is not known before it is downloaded: name a local"
            " folder, or write its `family`"
        )
    return published.family


def find_family(config: Mapping[str, Any], folder: Path) -> ModelFamily:
    """Find the family that loads checkpoints with this config's `model_type`.

    Raises:
        CheckpointError: If there is none, with the reason if it is known.
    """
    refusal = known.refusal(str(folder), config)
    if refusal is not None:
        raise CheckpointError(refusal)
    model_type = config.get("model_type")
    types: list[str] = []
    for name in plugins.names("model family"):
        family: ModelFamily = plugins.load("model family", name)
        if model_type in family.model_types:
            return family
        types.extend(family.model_types)
    raise CheckpointError(
        f"{folder}/config.json: model_type {model_type!r} is not supported"
        f" (supported: {', '.join(sorted(types))})"
    )


def local_config(ref: ModelRef) -> dict[str, Any] | None:
    """Read config.json of an embedded model, a folder, or in the hub's cache, with what the table
    of published checkpoints adds to it; None if it is not on this machine.

    Raises:
        UnknownName: If there is no such embedded model or folder and it is no hub id.
        CheckpointError: If it cannot be read.
    """
    folder = _local_folder(ref.name)
    path = _cached_config(ref) if folder is None else folder / "config.json"
    if path is None:
        return None
    try:
        value = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise CheckpointError(f"{path} cannot be read: {error}") from error
    if not isinstance(value, dict):
        raise CheckpointError(f"{path} is not a JSON object")
    return known.completed(ref.name, value)


def _cached_config(ref: ModelRef) -> Path | None:
    from huggingface_hub import try_to_load_from_cache

    hub_id, revision = _split(ref.name, ref.revision)
    cached = try_to_load_from_cache(hub_id, "config.json", revision=revision)
    return Path(cached) if isinstance(cached, str) else None


def _shapes_in(path: Path) -> dict[str, tuple[int, ...]]:
    try:
        with path.open("rb") as file:
            header = json.loads(file.read(int.from_bytes(file.read(8), "little")))
    except (OSError, ValueError, OverflowError, MemoryError) as error:
        raise CheckpointError(f"{path} is not a readable safetensors file: {error}") from error
    header.pop("__metadata__", None)
    return {name: tuple(tensor["shape"]) for name, tensor in header.items()}


def _local_folder(name: str) -> Path | None:
    if name in embedded_names():
        return EMBEDDED / (VARIANTS[name].base if name in VARIANTS else name)
    path = Path(name).expanduser()
    return path if path.is_dir() else None


def _split(name: str, revision: str | None) -> tuple[str, str | None]:
    hub_id, _, written = name.partition("@")
    if not _HUB_ID.fullmatch(hub_id):
        raise UnknownName("model", name, embedded_names(), "a folder or a hub id org/name")
    return hub_id, revision or written or None


def _file_digests(folder: Path) -> dict[str, str]:
    paths = sorted({path for pattern in FILES for path in folder.glob(pattern)})
    return {path.name: file_digest(path) for path in paths}


def file_digest(path: Path) -> str:
    """Give a file's SHA-256; a file that is as it was is read once a process."""
    status = path.stat()
    return _hash_file(path, status.st_size, status.st_mtime_ns)


@lru_cache(maxsize=1024)
def _hash_file(path: Path, size: int, modified_ns: int) -> str:
    # Size and time are in the cache's key: a large model is read once a process, not once a trial.
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def _download(hub_id: str, revision: str | None) -> Path:
    from huggingface_hub import snapshot_download

    try:
        return Path(snapshot_download(hub_id, revision=revision, allow_patterns=list(FILES)))
    except Exception as error:
        raise _unreachable(hub_id, revision, error) from error


def _commit(hub_id: str, revision: str | None) -> str:
    if revision is not None and _COMMIT.fullmatch(revision):
        return revision
    from huggingface_hub import HfApi, try_to_load_from_cache

    cached = try_to_load_from_cache(hub_id, "config.json", revision=revision)
    try:
        return str(HfApi().model_info(hub_id, revision=revision).sha)
    except Exception as error:
        if isinstance(cached, str):
            return Path(cached).parent.name
        raise _unreachable(hub_id, revision, error) from error


def _unreachable(hub_id: str, revision: str | None, error: Exception) -> CheckpointError:
    wanted = hub_id if revision is None else f"{hub_id}@{revision}"
    reason = next(iter(str(error).splitlines()), "")
    return CheckpointError(
        f"model {wanted!r} is neither embedded, nor a folder, nor to be had from the hub"
        f" ({type(error).__name__}: {reason}); without the hub, name a local folder or pin a"
        f" commit: {hub_id}@<40 hex digits>"
    )
