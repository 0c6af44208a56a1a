"""The prompts of one batch with their windows of mask tokens, while these are being written.

Rows end at one column: shorter prompts are padded on the left, and the padding is hidden. The
window stays visible to its end: a model trained to end texts early has learned from the tail.
Everything but the model's predictions lies on the CPU.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch
from torch import Tensor

from dllm_sweep.decoding.base import Generation, StepCallback, StopRule
from dllm_sweep.decoding.batching import pad
from dllm_sweep.decoding.draws import Draws
from dllm_sweep.models.base import DiffusionModel
from dllm_sweep.spec import DecodingSpec

Choice = Callable[[Tensor, Draws], tuple[Tensor, ...]]

_CPU = torch.device("cpu")
_WIDE = 2**27
"""Logits that are turned into float64 at once; every copy of them takes a gibibyte."""
_MULTIPLE = {"cpu": 1, "cuda": 16}
"""What the number of columns that the model is asked about is raised to. A GPU takes 10 ms a linear
for the first product of a new shape: with one shape for each number of masks that is left, a
window's first pass would take four times as long as its second."""


class Windows:
    """One batch.

    Args:
        model: The model.
        prompts: Token ids, of any lengths.
        width: Tokens in each row's window; the first `decoding.gen_length` are the answer.
        decoding: How it is written.
        generators: Random numbers of each row.
        stop: Says when an answer is complete; None writes every window to its end.
        plain: Ask the model for all positions of all rows.
        on_step: Called with (row, step, token ids without padding) for each row of each model call.

    Attributes:
        ids: (B, L) int64 on the CPU.
        length: Columns.
        multiple: What the number of columns that the model is asked about is raised to.
    """

    def __init__(
        self,
        model: DiffusionModel,
        prompts: Sequence[Sequence[int]],
        width: Sequence[int],
        decoding: DecodingSpec,
        generators: Sequence[torch.Generator],
        *,
        stop: StopRule | None = None,
        plain: bool = False,
        on_step: StepCallback | None = None,
    ) -> None:
        self.model, self.decoding, self.generators = model, decoding, generators
        self.plain, self._on_step = plain, on_step
        mask = [model.special.mask_id]
        rows = [[*prompt, *mask * size] for prompt, size in zip(prompts, width, strict=True)]
        self.ids, shown = pad(rows, model.special.pad_id, left=True, device=_CPU)
        self.length = self.ids.shape[1]
        self.multiple = _MULTIPLE["cpu" if model.device.type == "cpu" else "cuda"]
        self.shown = torch.ones_like(self.ids) if shown is None else shown
        self.lengths = [len(row) for row in rows]
        self.starts = [self.length - size for size in width]
        self._inside = torch.arange(self.length) >= torch.tensor(self.starts)[:, None]
        self._stop, self._done = stop, [False] * len(rows)
        self._fronts = [0] * len(rows)
        self._steps, self._forwards, self._tokens = ([0] * len(rows) for _ in range(3))

    def open(self, first: int, last: int) -> list[int]:
        """The rows that are not complete and have a mask in the columns [first, last)."""
        masked = self._masked[:, first:last].any(1).tolist()
        return [row for row, some in enumerate(masked) if some and not self._done[row]]

    def columns(self, rows: Sequence[int], first: int, last: int) -> tuple[Tensor, Tensor]:
        """The masked columns of rows within [first, last), from the left.

        Returns:
            Columns (B, W) int64 and (B, W) bool, False where a row has fewer masks than another:
            the column there is the last one.
        """
        order, valid = compact(self._masked[list(rows), first:last], multiple=self.multiple)
        return (order + first).masked_fill(~valid, last - 1), valid

    def draws(self, rows: Sequence[int], columns: Tensor, valid: Tensor) -> Draws:
        """Random numbers for columns (B, W) of rows, in this step."""
        lengths = [self.lengths[row] for row in rows]
        places = columns - (self.length - torch.tensor(lengths))[:, None]
        generators = [self.generators[row] for row in rows]
        return Draws(generators, lengths, places, valid.sum(1).tolist())

    def predict(self, rows: Sequence[int], columns: Tensor) -> Tensor:
        """Ask the model about columns (B, W) of rows.

        Returns:
            (B, W, V) in the model's dtype, float32 with guidance.
        """
        ids, scale = self.ids[list(rows)], self.decoding.cfg_scale
        logits = self._ask(ids, rows, columns)
        if scale:
            hidden = ids.masked_fill(~self._inside[list(rows)], self.model.special.mask_id)
            without = self._ask(hidden, rows, columns).float()
            logits = without + (scale + 1) * (logits.float() - without)
        for row in rows:
            self.count(row, 0, self.length, calls=2 if scale else 1)
        return logits

    def choose(
        self, rows: Sequence[int], columns: Tensor, valid: Tensor, logits: Tensor, rule: Choice
    ) -> tuple[Tensor, ...]:
        """Apply a rule to logits, in parts that bound the memory; without forbidden tokens.

        Args:
            rows: The rows.
            columns: (B, W), where the logits are.
            valid: (B, W) bool, False for fillers.
            logits: (B, W, V) in any dtype; changed in place.
            rule: Given float64 logits of some rows and their random numbers, gives tensors
                (rows, W).

        Returns:
            What the rule gives, of all rows, on the CPU.
        """
        if self.decoding.forbid_end:
            logits[..., list(self.model.special.end_ids)] = -torch.inf
        size = max(1, _WIDE // logits[0].numel())
        parts = []
        for start in range(0, len(rows), size):
            part = slice(start, start + size)
            draws = self.draws(rows[part], columns[part], valid[part])
            parts.append(rule(logits[part].double(), draws))
        return tuple(torch.cat(some).cpu() for some in zip(*parts, strict=True))

    def count(self, row: int, start: int, end: int, *, calls: int = 1) -> None:
        """Note a step of a row, with so many calls on its columns [start, end)."""
        padding = self.length - self.lengths[row]
        if self._on_step is not None:
            self._on_step(row, self._steps[row], self.ids[row, padding:].tolist())
        self._steps[row] += 1
        self._forwards[row] += calls
        self._tokens[row] += calls * (end - max(start, padding))

    def is_done(self, row: int) -> bool:
        """Whether a row's answer is complete."""
        return self._done[row]

    def write(self, rows: Sequence[int], columns: Tensor, tokens: Tensor, chosen: Tensor) -> None:
        """Write `tokens` (B, W) into the columns of rows where `chosen` (B, W) is True."""
        number = torch.tensor(list(rows))[:, None].expand_as(columns)
        self.ids[number[chosen], columns[chosen]] = tokens.cpu()[chosen]
        if self._stop is not None:
            for row in rows:
                self._done[row] = self._is_complete(row)

    def generations(self) -> list[Generation]:
        """What stands in the windows, cut to the answer's length."""
        size = self.decoding.gen_length
        return [
            Generation(
                tokens=tuple(self._front(row) if done else self._window(row)[:size]),
                steps=self._steps[row],
                forwards=self._forwards[row],
                token_forwards=self._tokens[row],
            )
            for row, done in enumerate(self._done)
        ]

    @property
    def _masked(self) -> Tensor:
        # A prompt may hold mask tokens, too: they are no part of the answer.
        return (self.ids == self.model.special.mask_id) & self._inside

    def _ask(self, ids: Tensor, rows: Sequence[int], columns: Tensor) -> Tensor:
        device, shown = self.model.device, self.shown[list(rows)]
        if self.plain:
            logits = self.model.logits(ids.to(device), _mask(shown, device))
            index = columns[..., None].expand(-1, -1, logits.shape[-1])
            return logits.gather(1, index.to(logits.device))
        # Padding that only rows needed which have left the batch is not computed any more.
        first = int((shown.sum(0) == 0).sum())
        places, mask = (columns - first).to(device), _mask(shown[:, first:], device)
        return self.model.logits_at(ids[:, first:].to(device), places, mask)

    def _window(self, row: int) -> list[int]:
        window: list[int] = self.ids[row, self.starts[row] :].tolist()
        return window

    def _front(self, row: int) -> list[int]:
        """The answer's tokens up to the first that is still masked."""
        window, mask = self._window(row), self.model.special.mask_id
        written = window.index(mask) if mask in window else len(window)
        return window[: min(written, self.decoding.gen_length)]

    def _is_complete(self, row: int) -> bool:
        front = self._front(row)
        if len(front) == self._fronts[row]:
            return False
        self._fronts[row] = len(front)
        ended = any(one in self.model.special.end_ids for one in front)
        return ended or (self._stop is not None and self._stop(front))


def compact(chosen: Tensor, *, multiple: int = 1) -> tuple[Tensor, Tensor]:
    """Where each row of `chosen` (B, N) is True, from the left.

    Returns:
        Indices (B, W) int64, W being the most of any row, raised to a multiple, and (B, W) bool,
        False behind a row's own.
    """
    width = -(-int(chosen.sum(1).max()) // multiple) * multiple
    order = chosen.int().argsort(dim=1, descending=True, stable=True)[:, :width]
    return order, chosen.gather(1, order)


def _mask(shown: Tensor, device: torch.device) -> Tensor | None:
    return None if bool(shown.all()) else shown.to(device)
