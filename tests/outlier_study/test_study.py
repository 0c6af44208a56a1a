import dataclasses
import math

import pytest
import torch

from dllm_sweep.methods import quantize
from dllm_sweep.outlier_study import outliers
from dllm_sweep.outlier_study.study import mask_positions
from dllm_sweep.quant.capture import watching
from dllm_sweep.quant.fuse import transform_online
from dllm_sweep.quant.transforms import Scaling
from dllm_sweep.spec import OutlierSpec

SPEC = OutlierSpec(mask_ratios=(0.0, 0.5, 1.0), top=3)


def by_key(rows):
    return {
        (r.module, r.mask_ratio, r.positions, r.statistic, r.rank): (r.index, r.value) for r in rows
    }


def test_every_linear_is_reported_at_every_ratio(small_llada, make_batches):
    rows = outliers(small_llada, spec=SPEC, calibration=make_batches())
    assert {row.module for row in rows} == set(small_llada.linears())
    assert {(row.mask_ratio, row.positions) for row in rows} == {
        (0.0, "visible"), (0.5, "visible"), (0.5, "masked"), (1.0, "masked"),
    }  # fmt: skip
    assert all(row.module.startswith(f"model.layers.{row.layer}.") for row in rows)
    assert all(type(row.value) is float and math.isfinite(row.value) for row in rows)


@pytest.mark.parametrize("padding", [0, 6])
def test_rows_equal_a_direct_computation_over_stored_inputs(padding, small_llada, make_batches):
    batches = make_batches(padding=padding)
    (masked,) = [torch.cat(mask_positions(batches, 0.5, 0))]
    ids = torch.cat([batch.input_ids for batch in batches])
    tokens = (
        torch.cat([batch.attention_mask for batch in batches]).bool()
        if padding
        else torch.ones_like(masked)
    )
    stored = {}
    with watching(
        small_llada.host, small_llada.linears(), lambda name, x: stored.update({name: x})
    ):
        hidden = ids.masked_fill(masked, small_llada.special.mask_id)
        small_llada.logits(hidden, tokens.long() if padding else None)
    found = by_key(outliers(small_llada, spec=SPEC, calibration=batches))
    for name, x in stored.items():
        for positions, chosen in (("masked", masked), ("visible", tokens & ~masked)):
            magnitude = x[chosen].abs()
            places = chosen.flatten().nonzero()[:, 0]
            index, value = found[name, 0.5, positions, "channel_max", 0]
            assert value == pytest.approx(magnitude.max().item(), rel=1e-4)
            assert magnitude[:, index].max().item() == pytest.approx(value, rel=1e-4)
            index, value = found[name, 0.5, positions, "token_max", 0]
            row = int((places == index).nonzero()[0, 0])
            assert magnitude[row].max().item() == pytest.approx(value, rel=1e-4)
            _, median = found[name, 0.5, positions, "median", 0]
            assert median == pytest.approx(magnitude.double().median().item(), rel=2e-3)


def test_the_batch_size_does_not_matter(small_llada, make_batches):
    one = by_key(outliers(small_llada, spec=SPEC, calibration=make_batches(8, 1)))
    many = by_key(outliers(small_llada, spec=SPEC, calibration=make_batches(8, 8)))
    assert one.keys() == many.keys()
    assert all(one[key][1] == pytest.approx(many[key][1], rel=2e-3) for key in one)


def test_planted_outliers_are_found(small_llada, make_batches):
    channel, factor = 11, 1000.0
    block = small_llada.blocks[1]
    block.mlp.up_proj.weight.data[channel] *= factor
    found = by_key(outliers(small_llada, spec=SPEC, calibration=make_batches()))
    name = "model.layers.1.mlp.down_proj"
    assert found[name, 0.0, "visible", "channel_max", 0][0] == channel
    assert found[name, 0.0, "visible", "max_to_median", 0][1] > 500
    assert found[name, 0.0, "visible", "tokens_above_100x_median", 0][1] > 0.3
    other = found["model.layers.0.mlp.down_proj", 0.0, "visible", "max_to_median", 0][1]
    assert other < 500


def test_linears_with_a_common_input_have_the_same_numbers(small_llada, make_batches):
    found = by_key(outliers(small_llada, spec=SPEC, calibration=make_batches()))
    prefix = "model.layers.0.self_attn"
    queries = {key[1:]: value for key, value in found.items() if key[0] == f"{prefix}.q_proj"}
    values = {key[1:]: value for key, value in found.items() if key[0] == f"{prefix}.v_proj"}
    assert queries == values


def test_a_quantized_model_is_measured_before_its_inputs_are_rounded(
    make_small_llada, make_batches
):
    plain, rounded = make_small_llada(), make_small_llada()
    quantize(rounded, scheme="w16a4")
    one, other = (
        by_key(outliers(model, spec=SPEC, calibration=make_batches())) for model in (plain, rounded)
    )
    first = [key for key in one if key[0] == "model.layers.0.self_attn.q_proj"]
    assert all(one[key] == other[key] for key in first)
    assert any(one[key] != other[key] for key in one)


def test_what_a_transform_makes_of_an_input_is_measured(make_small_llada, make_batches):
    plain, scaled = make_small_llada(), make_small_llada()
    changed = [f"model.layers.0.self_attn.{name}" for name in ("q_proj", "v_proj")]
    for name in changed:
        transform_online(scaled.host, name, Scaling(torch.full((32,), 8.0)))
    spec = OutlierSpec(mask_ratios=(0.0,))
    before, after = (
        by_key(outliers(model, spec=spec, calibration=make_batches())) for model in (plain, scaled)
    )
    for (name, *key), (index, value) in before.items():
        if name.startswith("model.layers.0.self_attn") and key[2] == "token_max":
            scale = 8 if name in changed else 1
            assert after[name, *key] == (index, pytest.approx(value / scale, rel=1e-5))


@pytest.mark.parametrize("ratio", [0.0, 0.25, 0.5, 1.0])
def test_each_sequence_has_its_share_of_masks_and_padding_none(ratio, make_batches):
    batches = make_batches(padding=8)
    for batch, masked in zip(batches, mask_positions(batches, ratio, 0), strict=True):
        tokens = batch.attention_mask.bool()
        assert not masked[~tokens].any()
        assert torch.equal(masked.sum(1), (ratio * tokens.sum(1)).round().long())


def test_what_is_masked_at_a_small_ratio_stays_masked_at_a_greater(make_batches):
    batches = make_batches()
    small, great = (torch.cat(mask_positions(batches, ratio, 0)) for ratio in (0.25, 0.75))
    assert great[small].all()


def test_positions_that_are_masked_in_the_batch_stay_masked(make_batches):
    (batch,) = make_batches(4)
    given = torch.zeros_like(batch.masked)
    given[:, 3:9] = True
    (masked,) = mask_positions([dataclasses.replace(batch, masked=given)], 0.0, 0)
    assert torch.equal(masked, given)


def test_measuring_leaves_no_trace(small_llada, make_batches):
    batches = make_batches()
    before = small_llada.logits(batches[0].input_ids)
    copy = batches[0].input_ids.clone()
    outliers(small_llada, spec=SPEC, calibration=batches)
    assert torch.equal(batches[0].input_ids, copy)
    assert torch.equal(small_llada.logits(batches[0].input_ids), before)
    assert not any(module._forward_pre_hooks for module in small_llada.host.modules())
