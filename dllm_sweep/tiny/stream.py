"""The training stream made by many processes and held in device memory."""

from __future__ import annotations

import itertools
from collections.abc import Iterator
from dataclasses import dataclass
from multiprocessing import get_context
from pathlib import Path
from random import Random

import torch
from tokenizers import Tokenizer
from torch import Tensor

from dllm_sweep.tiny.corpus import Packed, pack, told, training_texts
from dllm_sweep.tiny.facts import ATTRIBUTES, roll_call
from dllm_sweep.tiny.tokenizer import load_tokenizer, train_tokenizer

#: Sequences a process makes at a time; each portion has a seed and one rare fact of its own.
PORTION = 256
TOKENIZER_TEXTS = 60_000

_tokenizer: Tokenizer


@dataclass(frozen=True, kw_only=True)
class Stream:
    """Packed sequences (N, L): tokens, segments and offsets, on one device."""

    tokens: Tensor
    segments: Tensor
    offsets: Tensor

    def batches(self, size: int, generator: torch.Generator) -> Iterator[tuple[Tensor, ...]]:
        """Endless batches of (tokens, segments, offsets), each pass in a new order."""
        while True:
            order = torch.randperm(len(self.tokens), generator=generator)
            for places in order.split(size):
                if len(places) == size:
                    chosen = places.to(self.tokens.device)
                    yield tuple(
                        part[chosen].long() for part in (self.tokens, self.segments, self.offsets)
                    )


def corpus_tokenizer(seed: int = 0) -> Tokenizer:
    """The tokenizer trained on the start of the training stream.

    The values of facts are added, so that each of them is a single token.
    """
    values = [f" {value}" for values, _ in ATTRIBUTES.values() for value in values]
    texts = itertools.islice(training_texts(seed), TOKENIZER_TEXTS)
    return train_tokenizer(itertools.chain(texts, values * 2000))


def make_stream(
    folder: Path,
    *,
    sequences: int,
    length: int,
    seed: int,
    workers: int,
    device: str,
    framed: bool = False,
) -> Stream:
    """Generate the stream with the tokenizer in `folder`; the same for any number of workers."""
    portions = [(seed, place, length, framed) for place in range(sequences // PORTION)]
    packed = Packed()
    with get_context("spawn").Pool(workers, _start_worker, (folder,)) as pool:
        for part in pool.imap(_portion, portions):
            packed.append(part)
    return _on_device(packed, length, device)


def _start_worker(folder: Path) -> None:
    global _tokenizer
    _tokenizer = load_tokenizer(folder)


def _portion(task: tuple[int, int, int, bool]) -> Packed:
    seed, place, length, framed = task
    rng = Random(f"stream {seed} {place}")
    rare = [told(rng, fact) for fact in roll_call()[place : place + 1]]
    return pack(rng, _tokenizer, PORTION, length, rare, framed=framed)


def _on_device(packed: Packed, length: int, device: str) -> Stream:
    # Token ids stay under 2 ** 15, so int16 reads the unsigned array rightly.
    tokens = torch.frombuffer(packed.tokens, dtype=torch.int16)
    segments = torch.frombuffer(packed.segments, dtype=torch.uint8)
    offsets = torch.frombuffer(packed.offsets, dtype=torch.uint8)
    return Stream(
        tokens=tokens.view(-1, length).to(device),
        segments=segments.view(-1, length).to(device),
        offsets=offsets.view(-1, length).to(device),
    )
