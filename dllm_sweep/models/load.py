"""From a name to a model that is ready to predict."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from math import prod
from pathlib import Path
from typing import Any

import torch
from torch import nn

from dllm_sweep import plugins
from dllm_sweep.errors import CheckpointError, InputError
from dllm_sweep.manifest import Manifest, read_manifest
from dllm_sweep.models.base import DiffusionModel
from dllm_sweep.models.checkpoint import (
    fill_parameters,
    headers,
    match_tensors,
    read_config,
    stored_dtype,
    weight_files,
)
from dllm_sweep.models.family import ModelFamily, Special
from dllm_sweep.models.known import completed
from dllm_sweep.models.locate import find_family, locate, parameter_shapes
from dllm_sweep.models.placement import Placement, connect
from dllm_sweep.models.planted import plant_outliers
from dllm_sweep.models.tokenizer import load_tokenizer, with_tokenizers_ids
from dllm_sweep.models.work import Work

_EMBEDDING = "model.embed_tokens.weight"
_HEAD = "lm_head.weight"
_SELF_TEST_LENGTH = 8
DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16, "float16": torch.float16}


def load_model(
    name: str,
    *,
    device: str | torch.device | Sequence[str | torch.device] | None = None,
    dtype: str | torch.dtype | None = None,
    revision: str | None = None,
    family: str | None = None,
) -> DiffusionModel:
    """Load a masked diffusion language model; no code of the checkpoint is ever run.

    A folder that holds a saved quantized model gives that model, bit for bit as it was.

    Args:
        name: An embedded name, a folder, or a hub id, optionally with `@revision`.
        device: Where it goes; None is the GPU if there is one. Several devices share the blocks,
            each a run of them; ids go in and logits come out on the first.
        dtype: `float32`, `bfloat16` or `float16`; None is float32 on a CPU and the checkpoint's
            own type on a GPU, and for a quantized model always the type that it was quantized in.
        revision: Branch, tag or commit on the hub.
        family: Name of its family; None or `auto` finds it from config.json.

    Raises:
        UnknownName: If there is no such model or family.
        CheckpointError: If the checkpoint cannot be loaded completely and exactly.
    """
    location = locate(name, revision)
    folder = location.folder
    config = completed(name, read_config(folder))
    kind = _family(family, config, folder)
    with _reading_config(folder):
        host_config = kind.build_config(config, folder)
    special = _check_special(kind.special(config), host_config.vocab_size, folder)
    manifest = read_manifest(folder)
    host = _build_host(kind, host_config, folder, _devices(device), _dtype(dtype), manifest)
    tokenizer = load_tokenizer(folder, kind)
    model = DiffusionModel(
        name=name,
        host=host,
        family=kind,
        tokenizer=tokenizer,
        special=with_tokenizers_ids(special, kind, tokenizer, size=host_config.vocab_size),
        max_length=kind.max_length(config),
        block_size=kind.block_size(config),
        folder=folder,
    )
    if manifest is not None:
        from dllm_sweep.saving.reading import restore_operands

        restore_operands(model, manifest)
    if location.planted is not None:
        plant_outliers(model, location.planted)
    check_bidirectional(model)
    model.work = Work()
    return model


def weight_bytes(name: str, *, dtype: str, revision: str | None = None) -> int:
    """Bytes that a checkpoint's weights take in memory, from the headers of its files.

    Raises:
        UnknownName: If there is no such model.
        CheckpointError: If its files cannot be read.
    """
    folder = locate(name, revision).folder
    if read_manifest(folder) is None:
        shapes = [tensor.shape for file in weight_files(folder) for tensor in headers(file)]
    else:
        shapes = list(parameter_shapes(folder).values())
    weights: int = sum(map(prod, shapes))
    size: int = DTYPES[dtype].itemsize
    return weights * size


def _family(name: str | None, config: Mapping[str, Any], folder: Path) -> ModelFamily:
    if name in (None, "auto"):
        return find_family(config, folder)
    family: ModelFamily = plugins.load("model family", str(name))
    return family


def _devices(
    given: str | torch.device | Sequence[str | torch.device] | None,
) -> tuple[torch.device, ...]:
    if given is None:
        given = "cuda" if torch.cuda.is_available() else "cpu"
    several = (given,) if isinstance(given, str | torch.device) else given
    return tuple(torch.device(one) for one in several)


def check_bidirectional(model: DiffusionModel) -> None:
    """Make sure that the first position sees just what it should and the logits are finite.

    It should see the whole sequence, or with block-causal attention the first block alone.

    Raises:
        CheckpointError: If attention is another or the weights give NaN or infinity.
    """
    size = model.block_size or _SELF_TEST_LENGTH
    ids = torch.arange(2 * size, device=model.device)[None] % model.host.config.vocab_size
    # The last token of the block alone: a model of smaller blocks would see the others, too.
    start = size - 1 if model.block_size else 1
    first, inside = model.logits(ids), model.logits(_changed(model, ids, start, size))
    if not bool(torch.isfinite(first).all()):
        raise CheckpointError(f"model {model.name!r}: its logits are not finite; weights damaged?")
    if torch.equal(first[:, 0], inside[:, 0]):
        raise CheckpointError(
            f"model {model.name!r}: attention is causal, or empty: the first position does not"
            " see the others; a diffusion language model needs bidirectional attention"
        )
    outside = model.logits(_changed(model, ids, size, 2 * size))
    if torch.equal(first[:, 0], outside[:, 0]) != (model.block_size is not None):
        raise CheckpointError(
            f"model {model.name!r}: attention is not {model.family.attention}: the first position"
            f" {'sees' if model.block_size else 'does not see'} what comes after {size} tokens"
        )


def _changed(model: DiffusionModel, ids: torch.Tensor, start: int, stop: int) -> torch.Tensor:
    changed, size = ids.clone(), model.host.config.vocab_size
    changed[:, start:stop] = (ids[:, start:stop] + (_SELF_TEST_LENGTH % size or 1)) % size
    return changed


@contextmanager
def _reading_config(folder: Path) -> Iterator[None]:
    """Name config.json where a value is of another type than the host class takes."""
    try:
        yield
    except CheckpointError:
        raise
    except Exception as error:
        reason = " ".join(str(error).split())
        raise CheckpointError(f"{folder}/config.json cannot be loaded: {reason}") from error


def _build_host(
    family: ModelFamily,
    host_config: Any,
    folder: Path,
    devices: tuple[torch.device, ...],
    dtype: torch.dtype | None,
    manifest: Manifest | None,
) -> nn.Module:
    from transformers import AutoModelForCausalLM

    if manifest is not None:
        host_config.tie_word_embeddings = manifest.tied
    with _reading_config(folder), torch.device("meta"):
        host = AutoModelForCausalLM.from_config(host_config, attn_implementation="sdpa")
    expected = {name: tuple(value.shape) for name, value in host.state_dict().items()}
    if host_config.tie_word_embeddings:
        expected.pop(_HEAD)
    placement = Placement.even(expected, devices)
    if manifest is None:
        dtype = _fill(host, family, folder, expected, placement, dtype)
    else:
        from dllm_sweep.saving.reading import fill

        dtype = dtype or DTYPES[manifest.recipe.dtype]
        fill(host, folder, manifest, device_of=placement.of, dtype=dtype)
    if host_config.tie_word_embeddings:
        host.lm_head.weight = host.model.embed_tokens.weight
    host.config.dtype = dtype
    _finish(host, devices[0])
    connect(host, placement)
    return host


def _fill(
    host: nn.Module,
    family: ModelFamily,
    folder: Path,
    expected: Mapping[str, tuple[int, ...]],
    placement: Placement,
    dtype: torch.dtype | None,
) -> torch.dtype:
    """Fill a host from a checkpoint; give the type that it has then."""
    tensors = match_tensors(
        weight_files(folder), family.tensor_name, expected, family.checkpoint_name
    )
    if dtype is None:
        on_cpu = placement.rest.type == "cpu"
        dtype = torch.float32 if on_cpu else stored_dtype(tensors[_EMBEDDING])
    fill_parameters(host, tensors, device_of=placement.of, dtype=dtype)
    return dtype


def _finish(host: nn.Module, device: torch.device) -> None:
    # The rotary frequencies are no parameters: made anew, in float32 whatever the weights are.
    host.model.rotary_emb = type(host.model.rotary_emb)(config=host.config).to(device)
    # A block called on its own does not see the configuration, so each attention is told, too.
    for block in host.model.layers:
        block.self_attn.is_causal = False
    host.requires_grad_(False).eval()


def _dtype(dtype: str | torch.dtype | None) -> torch.dtype | None:
    if dtype is None or dtype in DTYPES.values():
        return dtype
    if dtype not in DTYPES:
        raise InputError(f"dtype {dtype!r} is not supported: write one of {', '.join(DTYPES)}")
    return DTYPES[dtype]


def _check_special(special: Special, size: int, folder: Path) -> Special:
    ids = (special.mask_id, special.pad_id, *special.end_ids)
    wrong = [one for one in ids if type(one) is not int or not 0 <= one < size]
    if wrong:
        raise CheckpointError(
            f"{folder}/config.json: token id {wrong[0]!r} is outside the vocabulary of {size}"
        )
    return special
