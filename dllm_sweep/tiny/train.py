"""Train a tiny diffusion language model from nothing: `python -m dllm_sweep.tiny.train --out DIR`.

Everything is generated and seeded: the tokenizer, the stream of examples, the weights. The
checkpoint in DIR has the public layout of its family and is rewritten while training goes on.
"""

from __future__ import annotations

import argparse
import math
import time
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor, nn

from dllm_sweep.tiny.export import export
from dllm_sweep.tiny.families import FAMILIES, Family
from dllm_sweep.tiny.masking import hidden, read_earlier, segment_loss, visibility
from dllm_sweep.tiny.network import Network
from dllm_sweep.tiny.stream import corpus_tokenizer, make_stream
from dllm_sweep.tiny.tokenizer import MASK, save_tokenizer

Loss = Callable[[Tensor, Tensor, Tensor, Tensor], Tensor]


@dataclass(frozen=True, kw_only=True)
class Plan:
    """How long, how fast and on what to train."""

    out: Path
    steps: int
    batch: int
    sequences: int
    length: int
    rate: float
    warmup: int
    seed: int
    workers: int
    device: str
    compile: bool
    save_every: int
    family: str

    @property
    def trained(self) -> Family:
        """The family of the model."""
        return FAMILIES[self.family]


def main() -> None:
    """Read the command line, train, and write the checkpoint."""
    plan = _arguments()
    torch.manual_seed(plan.seed)
    torch.set_float32_matmul_precision("high")
    began = time.perf_counter()
    save_tokenizer(corpus_tokenizer(), plan.out)
    stream = make_stream(
        plan.out,
        sequences=plan.sequences,
        length=plan.length,
        seed=plan.seed,
        workers=plan.workers,
        device=plan.device,
        framed=plan.trained.shifted,
    )
    print(f"stream of {len(stream.tokens)} sequences, {_since(began)}", flush=True)
    network = Network(plan.trained.shape).to(plan.device)
    generator = torch.Generator().manual_seed(plan.seed)
    train(network, stream.batches(plan.batch, generator), plan)
    export(network, plan.out, plan.trained.layout)
    print(f"{sum(weight.numel() for weight in network.parameters())} parameters, {_since(began)}")


def train(network: Network, batches: Iterable[tuple[Tensor, ...]], plan: Plan) -> None:
    """Take `plan.steps` steps, print the loss, and save the weights now and then."""
    optimizer = _optimizer(network, plan)
    schedule = torch.optim.lr_scheduler.LambdaLR(optimizer, lambda step: rate_at(step, plan))
    loss_of = _loss_of(network, plan)
    began, summed = time.perf_counter(), torch.zeros((), device=plan.device)
    for step, batch in zip(range(1, plan.steps + 1), batches, strict=False):
        summed += _step(network, optimizer, loss_of, batch)
        schedule.step()
        if step % 250 == 0:
            print(f"step {step} loss {summed.item() / 250:.4f} {_since(began)}", flush=True)
            summed.zero_()
        if step % plan.save_every == 0:
            export(network, plan.out, plan.trained.layout)


def rate_at(step: int, plan: Plan) -> float:
    """Share of the peak learning rate: a linear warm-up, then a cosine to one percent."""
    if step < plan.warmup:
        return (step + 1) / plan.warmup
    done = (step - plan.warmup) / max(1, plan.steps - plan.warmup)
    return 0.01 + 0.99 * 0.5 * (1 + math.cos(math.pi * done))


def _step(
    network: Network, optimizer: torch.optim.Optimizer, loss_of: Loss, batch: tuple[Tensor, ...]
) -> Tensor:
    tokens, segments, offsets = batch
    chosen = hidden(tokens, segments, offsets)
    loss = loss_of(tokens.masked_fill(chosen, MASK), tokens, segments, chosen)
    optimizer.zero_grad(set_to_none=True)
    loss.backward()
    nn.utils.clip_grad_norm_(network.parameters(), 1.0)
    optimizer.step()
    return loss.detach()


def _loss_of(network: Network, plan: Plan) -> Loss:
    kind, shifted = torch.device(plan.device).type, plan.trained.shifted

    def loss(seen: Tensor, tokens: Tensor, segments: Tensor, chosen: Tensor) -> Tensor:
        with torch.autocast(kind, torch.bfloat16, enabled=kind == "cuda"):
            logits = network(seen, visibility(segments))
            logits = read_earlier(logits) if shifted else logits
        return segment_loss(logits, tokens, segments, chosen)

    return torch.compile(loss) if plan.compile else loss


def _optimizer(network: Network, plan: Plan) -> torch.optim.Optimizer:
    matrices = [weight for weight in network.blocks.parameters() if weight.dim() == 2]
    inside = {id(weight) for weight in matrices}
    others = [weight for weight in network.parameters() if id(weight) not in inside]
    groups = [
        {"params": matrices, "weight_decay": 0.05},
        {"params": others, "weight_decay": 0.0},
    ]
    fused = torch.device(plan.device).type == "cuda"
    return torch.optim.AdamW(groups, lr=plan.rate, betas=(0.9, 0.98), fused=fused)


def _since(began: float) -> str:
    return f"{time.perf_counter() - began:.0f} s"


def _arguments() -> Plan:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--out", type=Path, required=True, help="folder of the checkpoint")
    parser.add_argument("--family", choices=tuple(FAMILIES), default="llada")
    parser.add_argument("--steps", type=int, default=20_000)
    parser.add_argument("--batch", type=int, default=256, help="packed sequences a step")
    parser.add_argument("--sequences", type=int, default=1_200_128, help="size of the stream")
    parser.add_argument("--length", type=int, default=256, help="tokens of a packed sequence")
    parser.add_argument("--rate", type=float, default=2e-3, help="peak learning rate")
    parser.add_argument("--warmup", type=int, default=1000)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--workers", type=int, default=16, help="processes that generate data")
    parser.add_argument("--device", default="cuda")
    parser.add_argument("--compile", action=argparse.BooleanOptionalAction, default=True)
    parser.add_argument("--save-every", type=int, default=4000)
    return Plan(**vars(parser.parse_args()))


if __name__ == "__main__":
    main()
