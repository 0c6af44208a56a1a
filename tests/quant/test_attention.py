"""Queries, keys and values rounded inside attention, on every path through a model."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from dllm_sweep.errors import InputError
from dllm_sweep.kernels.fake_quantize_tokens import fake_quantize_tokens
from dllm_sweep.methods import build
from dllm_sweep.quant import artifact
from dllm_sweep.quant.attention import (
    OperandQuantization,
    operand_settings,
    quantize_operands,
    rounded,
)
from dllm_sweep.spec import QuantScheme
from tests.methods.test_rotated_shapes import made

IDS = torch.randint(2, 60, (2, 32), generator=torch.Generator().manual_seed(3))
FAMILIES = ("make_small_llada", "make_small_dream")


def everywhere(model, **settings):
    quantize_operands(model, dict.fromkeys(range(2), OperandQuantization(**settings)))
    return model


def distance(model, plain):
    expected = plain.logits(IDS)
    return ((model.logits(IDS) - expected).norm() / expected.norm()).item()


@pytest.mark.parametrize("family", FAMILIES)
def test_rotating_queries_and_keys_alone_changes_nothing(family, request):
    make = request.getfixturevalue(family)
    assert distance(everywhere(make(), rotate=True), make()) <= 1e-5
    assert distance(everywhere(make()), make()) == 0


@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.parametrize("operand", ["query_bits", "key_bits", "value_bits"])
def test_every_operand_is_rounded_and_fewer_bits_cost_more(family, operand, request):
    make = request.getfixturevalue(family)
    errors = [distance(everywhere(make(), **{operand: bits}), make()) for bits in (8, 4, 2)]
    assert 0 < errors[0] < errors[1] < errors[2]


def test_other_models_and_blocks_attend_as_before(make_small_llada):
    one, both, plain = (make_small_llada() for _ in range(3))
    everywhere(both, key_bits=3)
    quantize_operands(one, {1: OperandQuantization(key_bits=3)})
    assert set(operand_settings(one)) == {1}
    assert 0 < distance(one, plain) != distance(both, plain)
    assert distance(make_small_llada(), plain) == 0


def test_keys_with_an_outlier_channel_round_better_rotated(make_small_llada):
    def made():
        model = make_small_llada()
        for block in model.blocks:
            block.self_attn.k_proj.weight.data[3::8] *= 30
            block.self_attn.q_proj.weight.data[3::8] /= 30
        return model

    plain, rotated = (
        distance(everywhere(made(), key_bits=4, rotate=rotate), made()) for rotate in (False, True)
    )
    assert rotated < plain


def test_padding_and_chosen_positions_give_the_same_answers(make_small_dream):
    model = everywhere(make_small_dream(), query_bits=4, key_bits=4, value_bits=4, rotate=True)
    whole = model.logits(IDS)
    positions = torch.tensor([[0, 5, 31], [7, 7, 1]])
    index = positions[..., None].expand(-1, -1, whole.shape[-1])
    chosen = model.logits_at(IDS, positions)
    torch.testing.assert_close(chosen, whole.gather(1, index), rtol=1e-4, atol=1e-4)
    padded = torch.cat((IDS, torch.ones(2, 3, dtype=torch.int64)), dim=1)[:, :32]
    mask = torch.ones_like(padded)
    mask[:, 29:] = 0
    torch.testing.assert_close(
        model.logits(padded, mask)[:, :29], model.logits(padded[:, :29]), rtol=1e-4, atol=1e-4
    )


@pytest.mark.parametrize(
    ("method", "scheme", "bits", "rotate"),
    [
        ("rtn", "w4a16-kv8", (16, 8, 8), False),
        ("rtn", "w8a8-qkv", (8, 8, 8), False),
        ("gptq", "w4a16-kv4", (16, 4, 4), False),
        ("awq", "w4a16-kv8-g8", (16, 8, 8), False),
        ("smoothquant", "w8a4-qkv", (4, 4, 4), False),
        ("duquant", "w8a4-qkv", (4, 4, 4), True),
        ("quarot", "w8a8-kv4", (16, 4, 4), True),
        ("quarot", "w8a8-kv3-qkv", (8, 3, 3), True),
    ],
)
def test_methods_round_what_the_scheme_says_and_a_restored_model_does_too(
    method, scheme, bits, rotate, make_small_dream, make_batches, tmp_path
):
    parameters = {
        "awq": {"grid_points": 3, "clip_steps": 4},
        "duquant": {"steps": 4},
        "quarot": {"solver": "rtn", "operand_grids": "token"},
    }
    model, fresh = make_small_dream(), make_small_dream()
    chosen, parsed = build(method, parameters.get(method)), QuantScheme.parse(scheme)
    assert chosen.refusal(parsed) is None
    report = chosen.quantize(model, parsed, make_batches(4))
    for one in operand_settings(model).values():
        assert (one.query_bits, one.key_bits, one.value_bits) == bits
        assert one.rotate is rotate
    assert set(operand_settings(model)) == {0, 1}
    recorded = [(row.module, row.a_bits, row.weights) for row in report.modules[-6:]]
    rounded = [
        (f"model.layers.{index}.self_attn.{name}", width, 0)
        for index in (0, 1)
        for name, width in zip(("queries", "keys", "values"), bits, strict=True)
        if width < 16
    ]
    assert recorded[-len(rounded) :] == rounded
    artifact.save(model, tmp_path / "weights.safetensors")
    artifact.load(fresh, tmp_path / "weights.safetensors")
    assert torch.equal(fresh.logits(IDS), model.logits(IDS))


def operands_of(method, scheme, model):
    build(method, {"solver": "rtn"}).quantize(model, QuantScheme.parse(scheme), ())
    return operand_settings(model).get(0)


def test_keys_and_values_are_clipped_as_in_the_paper_at_four_bits_alone(make_small_llada):
    four = operands_of("quarot", "w4a4-kv4", make_small_llada())
    assert (four.query_clip_ratio, four.clip_ratio) == (1.0, 0.95)
    assert operands_of("quarot", "w8a8-kv8", make_small_llada()).clip_ratio == 1.0
    mixed = operands_of("quarot", "w8a8-kv3-qkv", make_small_llada())
    assert (mixed.query_clip_ratio, mixed.clip_ratio) == (1.0, 0.95)
    assert operands_of("quarot", "w4a4", make_small_llada()) is None
    assert build("quarot").refusal(QuantScheme.parse("w4a16-kv4")) is None


def test_schemes_that_contradict_themselves_are_refused():
    refusal = build("rtn").refusal
    assert "takes the bits of the activations" in refusal(QuantScheme.parse("w4a16-qkv"))
    assert "to 4 bits already" in refusal(QuantScheme.parse("w4a4-kv8-qkv"))
    assert refusal(QuantScheme.parse("w16a16-kv4")) is None
    assert refusal(QuantScheme.parse("w4a8-kv4-qkv")) is None
    with pytest.raises(InputError, match="parameter operand_grids"):
        build("quarot", {"operand_grids": "block"})


def test_a_grid_for_each_token_spans_all_its_heads():
    keys = torch.randn(2, 4, 8, 16, generator=torch.Generator().manual_seed(1))
    keys[:, 2] *= 50
    head, token = (
        rounded(keys, 4, OperandQuantization(grids=grids)) for grids in ("head", "token")
    )
    together = keys.transpose(1, 2).reshape(2, 8, 64)
    expected = fake_quantize_tokens(together, bits=4, symmetric=False)
    assert torch.equal(token.transpose(1, 2).reshape(2, 8, 64), expected)
    assert (head - keys)[:, 0].norm() < 0.2 * (token - keys)[:, 0].norm()


def test_grouped_keys_and_values_are_rounded_as_if_each_query_head_had_its_own():
    shape = {"heads": 12, "head": 8, "ffn": 48}
    grouped, single = made(grouped=4, **shape), made(**shape)
    single.host.load_state_dict(
        {
            name: tensor
            if not name.endswith(("k_proj.weight", "v_proj.weight", "k_proj.bias", "v_proj.bias"))
            else tensor.unflatten(0, (3, 8)).repeat_interleave(4, 0).flatten(0, 1)
            for name, tensor in grouped.host.state_dict().items()
        }
    )
    assert distance(grouped, single) <= 1e-5
    for model in (grouped, single):
        everywhere(model, query_bits=4, key_bits=3, value_bits=4, rotate=True)
    assert distance(grouped, single) <= 0.1 * distance(grouped, made(grouped=4, **shape))


@settings(max_examples=30, deadline=None)
@given(
    seed=st.integers(0, 10**6),
    bits=st.integers(2, 8),
    symmetric=st.booleans(),
    grids=st.sampled_from(["head", "token"]),
    exponent=st.integers(-8, 8),
)
def test_tokens_are_rounded_on_their_own(seed, bits, symmetric, grids, exponent):
    generator = torch.Generator().manual_seed(seed)
    keys = torch.randn(2, 3, 5, 8, generator=generator)
    keys[0, :, 1] = 0
    chosen = OperandQuantization(symmetric=symmetric, grids=grids)
    result = rounded(keys, bits, chosen)
    order = torch.randperm(5, generator=generator)
    assert torch.equal(rounded(keys[:, :, order], bits, chosen), result[:, :, order])
    assert torch.equal(rounded(keys[1:], bits, chosen), result[1:])
    scaled = keys.clone()
    scaled[:, :, 2] *= 2.0**exponent
    assert torch.equal(rounded(scaled, bits, chosen)[:, :, 2], result[:, :, 2] * 2.0**exponent)
    assert (result[0, :, 1] == 0).all()
    if grids == "head":
        heads = torch.randperm(3, generator=generator)
        assert torch.equal(rounded(keys[:, heads], bits, chosen), result[:, heads])
