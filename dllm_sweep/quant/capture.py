"""Running a model block by block on stored hidden states, and looking at its linears' inputs.

The first block's inputs and the keyword arguments of its call are taken from a real forward pass:
a block that is called on its own with arguments made up by the caller may attend causally, or
without the padding mask, and so compute another function than the model's.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from typing import Any, Protocol

import torch
from torch import Tensor, nn

from dllm_sweep.models.base import DiffusionModel


class TokenBatch(Protocol):
    """The part of a calibration batch that running a model needs."""

    @property
    def input_ids(self) -> Tensor:
        """(B, L) int64."""

    @property
    def attention_mask(self) -> Tensor | None:
        """(B, L) int64, 0 for padding; None if every position is a token."""

    @property
    def weights(self) -> Tensor | None:
        """(B, L) float32, how much a token counts; None if all but padding count the same."""


Visit = Callable[[str, Tensor, int], None]
"""Called with (name of the linear, its input (B, L, n), index of the batch)."""


@dataclass(kw_only=True)
class BlockInputs:
    """What the next block is called with, for every calibration batch.

    Attributes:
        hidden: (B, L, d) for each batch; replaced, never changed in place.
        keywords: Keyword arguments of the block for each batch.
        weights: (B, L) float32 for each batch, how much a token counts, 0 for padding; None if
            all count the same and there is no padding.
    """

    hidden: list[Tensor]
    keywords: list[dict[str, Any]]
    weights: list[Tensor | None]

    def advance(
        self, block: nn.Module, names: Iterable[str] = (), visit: Visit | None = None
    ) -> None:
        """Replace the stored hidden states by the outputs of `block`.

        Args:
            block: The block.
            names: Linears whose input is shown meanwhile, by name within the block.
            visit: Called for each of them and each batch.
        """
        names = tuple(names)
        for index, hidden in enumerate(self.hidden):

            def see(name: str, x: Tensor, index: int = index) -> None:
                if visit is not None:
                    visit(name, x, index)

            with watching(block, names, see):
                self.hidden[index] = run_block(block, hidden, self.keywords[index])


@dataclass(frozen=True, kw_only=True)
class Call:
    """How a module was called once.

    Attributes:
        hidden: (B, L, n), its first argument.
        keywords: The others, by keyword.
    """

    hidden: Tensor
    keywords: dict[str, Any]

    def repeat(self, module: nn.Module) -> Tensor:
        """Call `module` the same way; its output, or the first of several."""
        return run_block(module, self.hidden, self.keywords)


class _Reached(Exception):
    """The module that is watched has been called: what comes after it need not run."""


class _AllSeen(Exception):
    """The rest of the block need not run."""


@torch.no_grad()
def capture_first_block(model: DiffusionModel, batches: Sequence[TokenBatch]) -> BlockInputs:
    """Record what the first block is called with when the model sees each batch."""
    with recording(model.blocks[0]) as calls, evaluating(model.host):
        for batch in batches:
            _forward_to_first_block(model, batch)
    return BlockInputs(
        hidden=[call.hidden for call in calls],
        keywords=[call.keywords for call in calls],
        weights=[token_weights(batch, model.device) for batch in batches],
    )


@torch.no_grad()
def run_block(block: nn.Module, hidden: Tensor, keywords: dict[str, Any]) -> Tensor:
    """Give the output (B, L, d) of one block for the hidden states (B, L, d)."""
    out = block(hidden, **keywords)
    return out[0] if isinstance(out, tuple) else out


def visit_inputs(block: nn.Module, names: Iterable[str], inputs: BlockInputs, visit: Visit) -> None:
    """Run a block on all stored inputs and show what its linears read.

    Args:
        block: The block; the stored hidden states stay as they are.
        names: Linears whose input is shown, by name within the block.
        inputs: What the block is called with.
        visit: Called for every linear and batch, in the order of the forward pass; what comes
            after the last of them is not run.
    """
    names = tuple(names)
    for index, hidden in enumerate(inputs.hidden):
        left = set(names)

        def see(name: str, x: Tensor, index: int = index, left: set[str] = left) -> None:
            visit(name, x, index)
            left.discard(name)
            if not left:
                raise _AllSeen

        with watching(block, names, see), suppress(_AllSeen):
            run_block(block, hidden, inputs.keywords[index])


def record_calls(block: nn.Module, name: str, inputs: BlockInputs) -> list[Call]:
    """Run a block on all stored inputs, up to its submodule `name`, and record how that is called.

    An empty name is the block itself.
    """
    with recording(block.get_submodule(name)) as calls:
        for hidden, keywords in zip(inputs.hidden, inputs.keywords, strict=True):
            with suppress(_Reached):
                run_block(block, hidden, keywords)
    return calls


@contextmanager
def recording(module: nn.Module) -> Iterator[list[Call]]:
    """Record the calls of `module` instead of running it and whatever comes after it."""
    calls: list[Call] = []

    def record(_: nn.Module, args: tuple[Tensor, ...], keywords: dict[str, Any]) -> None:
        hidden = args[0] if args else keywords["hidden_states"]
        rest = {k: v for k, v in keywords.items() if k != "hidden_states"}
        calls.append(Call(hidden=hidden.detach(), keywords=rest))
        raise _Reached

    hook = module.register_forward_pre_hook(record, with_kwargs=True)
    try:
        yield calls
    finally:
        hook.remove()


@contextmanager
def watching(
    module: nn.Module, names: Iterable[str], see: Callable[[str, Tensor], None]
) -> Iterator[None]:
    """Call `see(name, input)` whenever one of the named submodules is about to run."""

    def hook_for(name: str) -> Callable[[nn.Module, tuple[Tensor, ...]], None]:
        return lambda _, args: see(name, args[0].detach())

    hooks = [module.get_submodule(n).register_forward_pre_hook(hook_for(n)) for n in names]
    try:
        yield
    finally:
        for hook in hooks:
            hook.remove()


@contextmanager
def evaluating(host: nn.Module) -> Iterator[None]:
    """Switch dropout and the like off, and back afterwards."""
    training = host.training
    host.eval()
    try:
        yield
    finally:
        host.train(training)


def counted(activations: Tensor, weights: Tensor | None) -> Tensor:
    """Flatten (B, L, n) to (T, n) without tokens of weight 0; `weights` is (B, L) or None."""
    if weights is None:
        return activations.flatten(0, -2)
    return activations[weights.to(activations.device) > 0]


def counted_weights(weights: Tensor | None, device: torch.device) -> Tensor | None:
    """Give the weights (T,) float32 of the tokens that `counted` keeps; None if all are 1."""
    if weights is None:
        return None
    kept = weights.to(device)
    kept = kept[kept > 0]
    return None if bool((kept == 1).all()) else kept


def weighted(values: Tensor, weights: Tensor | None) -> tuple[Tensor, float]:
    """Multiply values of tokens by how much the tokens count: what a weighted mean sums up.

    Args:
        values: (B, L, n).
        weights: (B, L), 0 for padding; None if all tokens count the same.

    Returns:
        (T, n) in the type of `values`, without tokens of weight 0, and the sum of the weights:
        the mean over tokens of several batches is the sum of the ones over the sum of the others.
    """
    kept, each = counted(values, weights), counted_weights(weights, values.device)
    if each is None:
        return kept, float(len(kept))
    return kept * each.to(kept.dtype)[:, None], float(each.double().sum())


def token_weights(batch: TokenBatch, device: torch.device) -> Tensor | None:
    """Give how much each token of a batch counts, (B, L) float32; None if all count the same.

    Padding counts 0, whatever its weight.
    """
    mask = None if batch.attention_mask is None else batch.attention_mask.to(device).float()
    if batch.weights is None:
        return mask
    weights = batch.weights.clone().to(device)
    return weights if mask is None else weights * mask


def _forward_to_first_block(model: DiffusionModel, batch: TokenBatch) -> None:
    # Copies, since a batch's own tensors can neither be written to nor take part in autograd.
    ids, shown = batch.input_ids.clone().to(model.device), batch.attention_mask
    mask = model.host_mask(ids, None if shown is None else shown.clone().to(model.device))
    try:
        model.host(input_ids=ids, attention_mask=mask, use_cache=False)
    except _Reached:
        return
