"""Logits at some positions against all logits of the host's own forward pass."""

from contextlib import ExitStack

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from transformers.integrations.sdpa_attention import sdpa_attention_forward
from transformers.modeling_utils import ALL_ATTENTION_FUNCTIONS

from dllm_sweep import load_model
from dllm_sweep.models.forward import read_at
from dllm_sweep.models.work import Work
from dllm_sweep.quant.linear import ActivationQuantization, QuantLinear

FAMILIES = ("llada", "dream", "sdar", "illada")


def relative_error(found, expected):
    return float((found - expected).abs().max() / expected.abs().max())


def at(logits, positions):
    return logits.gather(1, positions[..., None].expand(-1, -1, logits.shape[2]))


def batch(seed=0, rows=3, length=21, left=(0, 0, 0)):
    """Random ids, and a mask with that much padding on the left of each row."""
    ids = torch.randint(0, 90, (rows, length), generator=torch.Generator().manual_seed(seed))
    shown = torch.ones_like(ids)
    for row, padding in enumerate(left):
        shown[row, :padding] = 0
    return ids, shown


@pytest.mark.parametrize("name", FAMILIES)
@settings(max_examples=12, deadline=None)
@given(
    seed=st.integers(0, 999),
    left=st.tuples(*[st.integers(0, 6)] * 3),
    right=st.integers(0, 4),
    columns=st.lists(st.integers(8, 16), min_size=1, max_size=25),
)
def test_logits_at_positions_are_those_of_the_whole(every_family, name, seed, left, right, columns):
    model = every_family[name]
    ids, shown = batch(seed, left=left)
    shown[0, 21 - right :] = 0
    positions = torch.stack([torch.tensor(columns).roll(row) for row in range(3)])
    found = model.logits_at(ids, positions, shown)
    assert relative_error(found, at(model.logits(ids, shown), positions)) < 1e-5


@pytest.mark.parametrize("name", FAMILIES)
def test_without_padding_every_position_can_be_asked_for(every_family, name):
    model, (ids, shown) = every_family[name], batch()
    every = torch.arange(21).expand(3, -1)
    whole = model.logits(ids)
    assert relative_error(model.logits_at(ids, every), whole) < 1e-5
    assert relative_error(model.logits_at(ids, every, shown), whole) < 1e-5
    assert (
        relative_error(model.logits_at(ids[:, :1], every[:, :1]), model.logits(ids[:, :1])) < 1e-5
    )


@pytest.mark.parametrize("name", FAMILIES)
def test_rows_of_unequal_length_give_what_they_give_alone(every_family, name):
    model, (ids, shown) = every_family[name], batch(left=(0, 3, 8))
    positions = torch.tensor([[12, 20], [12, 20], [12, 20]])
    found = model.logits_at(ids, positions, shown)
    for row, padding in enumerate((0, 3, 8)):
        alone = model.logits(ids[row : row + 1, padding:])
        expected = at(alone, positions[row : row + 1] - padding)
        assert relative_error(found[row : row + 1], expected) < 1e-5


@pytest.mark.parametrize("name", FAMILIES)
def test_linears_that_round_their_input_give_the_same_on_some_positions(every_family, name):
    model = load_model(every_family[name].name, device="cpu")
    rounding = ActivationQuantization(bits=4)
    for block in model.blocks:
        for group in model.family.linear_groups:
            for linear in group.linears:
                old = block.get_submodule(linear)
                block.set_submodule(linear, QuantLinear(old.weight.data, old.bias, rounding))
    ids, shown = batch(left=(0, 2, 5))
    positions = torch.tensor([[9, 20, 9]] * 3)
    found = model.logits_at(ids, positions, shown)
    assert relative_error(found, at(model.logits(ids, shown), positions)) < 1e-5


@pytest.mark.parametrize("name", FAMILIES)
def test_several_devices_give_the_very_logits_of_one(every_family, name):
    one = every_family[name]
    # To torch's bookkeeping these are two devices, and one memory: the movers are all at work.
    two = load_model(one.name, device=("cpu", "cpu:0"))
    ids, shown = batch(left=(0, 2, 5))
    positions = torch.tensor([[9, 20, 9]] * 3)
    found = two.logits_at(ids, positions, shown)
    assert torch.equal(found, one.logits_at(ids, positions, shown))


@pytest.mark.parametrize("name", FAMILIES)
def test_bfloat16_stays_within_its_rounding(every_family, name):
    model = load_model(every_family[name].name, device="cpu", dtype="bfloat16")
    ids, shown = batch(left=(0, 2, 5))
    positions = torch.arange(8, 20).expand(3, -1)
    found, whole = model.logits_at(ids, positions, shown), at(model.logits(ids, shown), positions)
    assert found.dtype == torch.bfloat16
    assert relative_error(found.float(), whole.float()) < 3e-2


@pytest.mark.parametrize("name", FAMILIES)
def test_the_head_and_the_last_block_run_only_where_they_are_read(every_family, name):
    model, (ids, _) = every_family[name], batch()
    last = model.blocks[-1]
    watched = {
        "first": model.blocks[0].mlp.up_proj,
        "keys": last.self_attn.k_proj,
        "queries": last.self_attn.q_proj,
        "output": last.self_attn.o_proj,
        "feed-forward": last.mlp.down_proj,
        "norm": model.host.model.norm,
        "head": model.host.lm_head,
    }
    seen = dict.fromkeys(watched, 0)

    def counter(part):
        def count(_, inputs):
            seen[part] = max(seen[part], inputs[0].shape[:-1].numel())

        return count

    with ExitStack() as stack:
        for part, module in watched.items():
            hook = module.register_forward_pre_hook(counter(part))
            stack.callback(hook.remove)
        model.logits_at(ids, torch.tensor([[4, 9]] * 3))
    read = dict.fromkeys(("queries", "output", "feed-forward", "norm", "head"), 6)
    assert seen == {"first": 63, "keys": 63, **read}


def test_work_is_counted_from_zero_on(every_family):
    assert load_model(every_family["llada"].name, device="cpu").work == Work()
    model, (ids, _) = every_family["llada"], batch()
    before = model.work
    model.logits(ids)
    assert model.work - before == Work(calls=1, rows=3, tokens=63, head_tokens=63)
    model.logits_at(ids, torch.tensor([[4, 9]] * 3))
    assert model.work - before == Work(calls=2, rows=6, tokens=126, head_tokens=69)


def test_an_attention_function_of_ones_own_acts_in_every_block(every_family):
    model = load_model(every_family["dream"].name, device="cpu")
    seen = []

    def noted(module, query, key, value, mask, **options):
        seen.append((module.layer_idx, query.shape[2], key.shape[2]))
        return sdpa_attention_forward(module, query, key, value, mask, **options)

    ALL_ATTENTION_FUNCTIONS.register("noted", noted)
    model.host.config._attn_implementation = "noted"
    ids, _ = batch()
    model.logits_at(ids, torch.tensor([[4, 9]] * 3))
    assert seen == [(0, 21, 21), (1, 21, 21), (2, 21, 21), (3, 2, 21)]


def test_a_shifted_prediction_is_read_one_position_earlier():
    assert read_at(1, torch.tensor([0, 1, 5])).tolist() == [0, 0, 4]
    assert read_at(0, torch.tensor([0, 1, 5])).tolist() == [0, 1, 5]
    with pytest.raises(ValueError, match="from 8 on"):
        read_at(1, torch.tensor([7]), start=7)


def test_the_first_token_of_a_shifted_row_is_read_at_itself_however_it_is_padded(every_family):
    model = every_family["dream"]
    ids, shown = batch(left=(0, 5, 20))
    first = torch.tensor([[0], [5], [20]])
    padded = at(model.logits(ids, shown), first), model.logits_at(ids, first, shown)
    alone = torch.stack(
        [model.logits(ids[row : row + 1, place:])[0, :1] for row, place in enumerate(first)]
    )
    assert all(relative_error(found, alone) < 1e-5 for found in padded)
