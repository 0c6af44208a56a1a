"""Checkpoints of LLaDA-8B's and Dream-7B's shapes and layout, with random weights.

python benchmarks/real_checkpoints.py FAMILY FOLDER [--layers N] [--small] [--seed N]
"""

from __future__ import annotations

import json
import sys
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

import click
import torch
from safetensors.torch import save_file
from torch import Tensor

from dllm_sweep.tiny.export import DREAM, LLADA, Layout
from dllm_sweep.tiny.network import Network, Shape

SHARD_BYTES = 4 * 10**9
_STD = 0.02


@dataclass(frozen=True, kw_only=True)
class Published:
    """What is known of a published checkpoint.

    Attributes:
        shape: Sizes of its network.
        layout: Its tensor names and the fields of its config.json.
        special: Fields of config.json that are token ids.
    """

    shape: Shape
    layout: Layout
    special: Mapping[str, int]


PUBLISHED = {
    "llada": Published(
        shape=Shape(
            vocabulary=126_464,
            hidden=4096,
            layers=32,
            heads=32,
            key_heads=32,
            feed_forward=12_288,
            context=4096,
            rope_theta=500_000.0,
        ),
        layout=LLADA,
        special={"mask_token_id": 126_336, "eos_token_id": 126_081, "pad_token_id": 126_081},
    ),
    "dream": Published(
        shape=Shape(
            vocabulary=152_064,
            hidden=3584,
            layers=28,
            heads=28,
            key_heads=4,
            feed_forward=18_944,
            context=131_072,
            rope_theta=1_000_000.0,
            norm_eps=1e-6,
            qkv_bias=True,
        ),
        layout=DREAM,
        special={
            "mask_token_id": 151_666,
            "bos_token_id": 151_643,
            "eos_token_id": 151_643,
            "pad_token_id": 151_643,
        },
    ),
}


def small(published: Published) -> Published:
    """The same kind of checkpoint at a size that a CPU handles in seconds."""
    heads = published.shape.key_heads < published.shape.heads
    shape = replace(
        published.shape,
        vocabulary=512,
        hidden=128,
        layers=2,
        heads=4,
        key_heads=2 if heads else 4,
        feed_forward=256,
        context=1024,
    )
    special = {name: place for place, name in enumerate(published.special, start=500)}
    return replace(published, shape=shape, special=special)


def make_checkpoint(
    folder: Path, published: Published, *, seed: int, device: str, shard_bytes: int = SHARD_BYTES
) -> int:
    """Write config.json and sharded bf16 weights with their index; repeatable on one device.

    Args:
        folder: Where they go.
        published: What is written.
        seed: Seed of the weights.
        device: Where the random numbers are drawn.
        shard_bytes: Size at which a shard ends.

    Returns:
        Bytes of the weights.
    """
    folder.mkdir(parents=True, exist_ok=True)
    config = published.layout.config(published.shape) | dict(published.special)
    (folder / "config.json").write_text(json.dumps(config, indent=2) + "\n")
    shards = list(_shards(published, shard_bytes))
    generator = torch.Generator(device).manual_seed(seed)
    weight_map = {}
    for number, shapes in enumerate(shards, start=1):
        name = f"model-{number:05}-of-{len(shards):05}.safetensors"
        tensors = {key: _draw(shape, key, generator) for key, shape in shapes.items()}
        save_file(tensors, folder / name, metadata={"format": "pt"})
        weight_map |= dict.fromkeys(tensors, name)
    total = sum(_bytes(shape) for shapes in shards for shape in shapes.values())
    index = {"metadata": {"total_size": total}, "weight_map": weight_map}
    (folder / "model.safetensors.index.json").write_text(json.dumps(index, indent=2) + "\n")
    return total


def _shards(published: Published, shard_bytes: int) -> Iterator[dict[str, torch.Size]]:
    with torch.device("meta"):
        weights = Network(published.shape).state_dict()
    shard: dict[str, torch.Size] = {}
    for name, weight in weights.items():
        if shard and sum(map(_bytes, shard.values())) + _bytes(weight.shape) > shard_bytes:
            yield shard
            shard = {}
        shard[published.layout.tensor_name(name)] = weight.shape
    yield shard


def _bytes(shape: torch.Size) -> int:
    return shape.numel() * torch.bfloat16.itemsize


def _draw(shape: torch.Size, name: str, generator: torch.Generator) -> Tensor:
    drawn = torch.empty(shape, dtype=torch.bfloat16, device=generator.device)
    mean = 1.0 if len(shape) == 1 and not name.endswith("bias") else 0.0
    return drawn.normal_(mean, _STD, generator=generator).cpu()


@click.command(help=__doc__)
@click.argument("family", type=click.Choice(list(PUBLISHED)))
@click.argument("folder", type=click.Path(path_type=Path))
@click.option("--layers", type=int, help="Blocks, if not as many as published.")
@click.option("--small", "is_small", is_flag=True, help="A size for a CPU.")
@click.option("--seed", default=0)
def main(family: str, folder: Path, layers: int | None, **options: Any) -> None:
    """Write one checkpoint."""
    published = small(PUBLISHED[family]) if options["is_small"] else PUBLISHED[family]
    if layers is not None:
        published = replace(published, shape=replace(published.shape, layers=layers))
    device = "cuda" if torch.cuda.is_available() else "cpu"
    limit = 10**5 if options["is_small"] else SHARD_BYTES
    total = make_checkpoint(
        folder, published, seed=options["seed"], device=device, shard_bytes=limit
    )
    click.echo(f"{folder}: {total / 1e9:.2f} GB")


if __name__ == "__main__":
    main()
