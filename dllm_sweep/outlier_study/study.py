"""Outlier statistics of the input of every linear, at several shares of masked positions."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import torch
from torch import Tensor

from dllm_sweep.calibration.batch import CalibrationBatch
from dllm_sweep.calibration.options import clean
from dllm_sweep.calibration.sequences import load
from dllm_sweep.models.base import DiffusionModel
from dllm_sweep.outlier_study.statistics import ActivationStatistics, Statistic
from dllm_sweep.quant.capture import evaluating, watching
from dllm_sweep.quant.linear import transform_of, transformed
from dllm_sweep.quant.transforms import InputTransform
from dllm_sweep.records import OutlierRow
from dllm_sweep.spec import CalibrationSpec, OutlierSpec

POSITIONS = ("masked", "visible")

Measured = dict[tuple[str, str], ActivationStatistics]
"""Statistics by (name of the linear, `masked` or `visible`)."""


def outliers(
    model: DiffusionModel,
    *,
    spec: OutlierSpec | None = None,
    calibration: CalibrationSpec | Sequence[CalibrationBatch] | None = None,
    batch_size: int = 8,
) -> tuple[OutlierRow, ...]:
    """Measure what every linear of a model reads.

    On a quantized model that is what its grids have to span: the input after its transform, before
    it is rounded. Linears that share an input are measured once, and each gets its rows. A random
    but fixed order of the positions of every sequence decides which are masked, so that the
    positions masked at a small ratio are masked at a greater one too.

    Args:
        model: In full precision or quantized.
        spec: Text, mask ratios and how many channels and tokens are kept.
        calibration: Text to use in place of the spec's, or batches; masked positions of a batch
            stay masked at every ratio.
        batch_size: Sequences in one forward pass; does not change the result.

    Returns:
        The rows by mask ratio, linear in depth order, masked before visible, statistic and rank.

    Raises:
        CalibrationError: If the text cannot be read.
    """
    spec = spec or OutlierSpec()
    batches = _batches(model, spec, calibration, batch_size)
    seed = spec.text.seed
    return tuple(
        row
        for ratio in spec.mask_ratios
        for row in _rows(model, _measure(model, batches, ratio, seed), ratio, spec.top)
    )


def mask_positions(batches: Sequence[CalibrationBatch], ratio: float, seed: int) -> list[Tensor]:
    """Choose the masked positions (B, L) bool of every batch: a share `ratio` of each sequence.

    Positions that are masked already stay masked, and padding is never masked.
    """
    generator = torch.Generator().manual_seed(seed)
    chosen = []
    for batch in batches:
        # Drawn one sequence after the other: the same numbers however the batches are cut.
        draws = [torch.rand(batch.input_ids.shape[1], generator=generator) for _ in batch.input_ids]
        scores = torch.stack(draws).masked_fill(batch.masked.cpu(), -1)
        tokens = _tokens(batch)
        ranks = (
            scores.masked_fill(~tokens, 2).argsort(dim=1, stable=True).argsort(dim=1, stable=True)
        )
        wanted = (ratio * tokens.sum(1, keepdim=True)).round()
        chosen.append(((ranks < wanted) | batch.masked.cpu()) & tokens)
    return chosen


def _batches(
    model: DiffusionModel,
    spec: OutlierSpec,
    calibration: CalibrationSpec | Sequence[CalibrationBatch] | None,
    batch_size: int,
) -> tuple[CalibrationBatch, ...]:
    if calibration is None or isinstance(calibration, CalibrationSpec):
        return load(clean(calibration or spec.text), model, batch_size=batch_size)
    return tuple(calibration)


@torch.no_grad()
def _measure(
    model: DiffusionModel, batches: Sequence[CalibrationBatch], ratio: float, seed: int
) -> Measured:
    measured: Measured = {}
    firsts = [names[0] for _, names in _groups(model)]
    offset = 0
    with evaluating(model.host):
        for batch, masked in zip(batches, mask_positions(batches, ratio, seed), strict=True):
            where = {
                "masked": masked.flatten().nonzero()[:, 0],
                "visible": (_tokens(batch) & ~masked).flatten().nonzero()[:, 0],
            }
            ids = batch.input_ids.cpu().masked_fill(masked, model.special.mask_id)

            def see(
                name: str, x: Tensor, where: dict[str, Tensor] = where, at: int = offset
            ) -> None:
                read = transformed(model.host.get_submodule(name), x)
                _add(measured, name, read.flatten(0, -2), where, at)

            mask = batch.attention_mask
            with watching(model.host, firsts, see):
                model.logits(ids.to(model.device), None if mask is None else mask.to(model.device))
            offset += batch.input_ids.numel()
    return measured


def _add(measured: Measured, name: str, x: Tensor, where: dict[str, Tensor], offset: int) -> None:
    for positions, chosen in where.items():
        key = (name, positions)
        if key not in measured:
            measured[key] = ActivationStatistics.empty(x.shape[-1], x.device)
        measured[key].add(x[chosen.to(x.device)], chosen + offset)


def _groups(model: DiffusionModel) -> Iterator[tuple[int, tuple[str, ...]]]:
    """Give each block's number with the linears that read the same after their transforms."""
    for index in range(len(model.blocks)):
        for group in model.family.linear_groups:
            names = [f"{model.block_name(index)}.{name}" for name in group.linears]
            sharing: dict[InputTransform | None, list[str]] = {}
            for name in names:
                sharing.setdefault(transform_of(model.host.get_submodule(name)), []).append(name)
            yield from ((index, tuple(same)) for same in sharing.values())


def _rows(
    model: DiffusionModel, measured: Measured, ratio: float, top: int
) -> Iterator[OutlierRow]:
    for layer, names in _groups(model):
        parts = [(p, part) for p in POSITIONS for part in measured[names[0], p].summary(top)]
        for name in names:
            for positions, part in parts:
                yield _row(layer, name, ratio, positions, part)


def _row(layer: int, name: str, ratio: float, positions: str, part: Statistic) -> OutlierRow:
    return OutlierRow(
        layer=layer,
        module=name,
        mask_ratio=ratio,
        positions=positions,
        statistic=part.statistic,
        rank=part.rank,
        index=part.index,
        value=part.value,
    )


def _tokens(batch: CalibrationBatch) -> Tensor:
    if batch.attention_mask is None:
        return torch.ones_like(batch.input_ids, dtype=torch.bool, device="cpu")
    return batch.attention_mask.cpu().bool()
