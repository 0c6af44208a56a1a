"""DuQuant: orthogonal, the same function, a smaller range, on both shapes."""

from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from dllm_sweep.errors import InputError
from dllm_sweep.methods import build, quantize
from dllm_sweep.quant.greedy_rotation import (
    MeanTokens,
    best_rotation,
    fitting_block,
    greedy_rotation,
    rotate_permute_rotate,
    spreading_rotations,
    telling_tokens,
    zigzag,
)
from dllm_sweep.quant.linear import QuantLinear, transform_of
from dllm_sweep.quant.transforms import describe, restore
from dllm_sweep.spec import QuantScheme

DATA = Path(__file__).parents[1] / "data"
IDS = torch.randint(2, 60, (2, 32), generator=torch.Generator().manual_seed(3))
FAST = {"steps": 8, "tokens": 64}
SCHEMES = ("w4a4", "w4a4-g128", "w6a6", "w8a8")


def generator(seed=0):
    return torch.Generator().manual_seed(seed)


def outlying(seed=0, tokens=64, channels=48):
    x = torch.randn(tokens, channels, generator=generator(seed))
    x[:, seed % channels] *= 20
    x[seed % tokens, (seed * 7) % channels] = 300
    return x


def span(x):
    return (x.max() - x.min()).item()


def test_every_rotation_is_orthogonal_and_spreads_the_first_channel_evenly():
    rotations = spreading_rotations(128, 6, generator())
    for rotation in rotations:
        assert (rotation @ rotation.T - torch.eye(128)).abs().max() <= 1e-5
        torch.testing.assert_close(rotation[0], torch.full((128,), 128**-0.5))
    assert not torch.equal(rotations[0], rotations[1])
    assert torch.equal(rotations, spreading_rotations(128, 6, generator()))
    assert not torch.equal(rotations, spreading_rotations(128, 6, generator(1)))


@settings(max_examples=30, deadline=None)
@given(seed=st.integers(0, 10**6), size=st.sampled_from([1, 2, 6, 16, 48]))
def test_the_greedy_rotation_is_orthogonal_and_never_widens_the_range(seed, size):
    x = outlying(seed)
    rotation = greedy_rotation(x, spreading_rotations(size, 12, generator(seed)))
    assert (rotation @ rotation.T - torch.eye(size)).abs().max() <= 1e-5
    assert span(x.reshape(-1, size) @ rotation) <= span(x) * (1 + 1e-5)


@settings(max_examples=20, deadline=None)
@given(seed=st.integers(0, 10**6))
def test_the_search_with_the_smallest_range_counts(seed):
    x = outlying(seed)
    searches = spreading_rotations(12, 9, generator(seed)).unflatten(0, (3, 3))
    spans = [span(x.reshape(-1, 12) @ greedy_rotation(x, one)) for one in searches]
    assert span(x.reshape(-1, 12) @ best_rotation(x, searches)) == min(spans)


def test_a_rotation_of_256_steps_is_still_orthogonal():
    rotations = spreading_rotations(128, 4, generator()).repeat(64, 1, 1)
    x = outlying(tokens=16, channels=256)
    rotation = greedy_rotation(x, rotations)
    assert (rotation @ rotation.T - torch.eye(128)).abs().max() <= 1e-5
    product = torch.eye(128, dtype=torch.float64)
    for step in rotations:
        product = product @ step.double()
    assert (product @ product.T - torch.eye(128)).abs().max() <= 1e-5


@settings(max_examples=30, deadline=None)
@given(seed=st.integers(0, 10**6), blocks=st.sampled_from([1, 2, 3, 8]))
def test_the_zigzag_is_a_permutation_that_balances_the_blocks(seed, blocks):
    size = 48 // blocks
    maxima = torch.randn(48, generator=generator(seed)).exp()
    index = zigzag(maxima, size)
    assert sorted(index.tolist()) == list(range(48))

    def unevenness(values):
        means = values.reshape(blocks, size).mean(1)
        return means.max() - means.min()

    dealt = maxima[index]
    assert unevenness(dealt) <= unevenness(maxima.sort().values) + 1e-6
    assert (dealt.reshape(blocks, size).diff(dim=1) <= 0).all()


def test_the_zigzag_turns_at_both_ends():
    assert zigzag(torch.tensor([8.0, 7, 6, 5, 4, 3]), 3).tolist() == [0, 3, 4, 1, 2, 5]


@pytest.mark.parametrize(
    ("channels", "block"),
    [(256, 128), (768, 128), (18944, 128), (112, 112), (296, 74), (32, 32), (131, 1)],
)
def test_the_block_is_the_largest_that_fits(channels, block):
    assert fitting_block(channels, 128) == block


def test_on_the_authors_kind_of_layer_range_and_error_fall_as_theirs_do():
    with np.load(DATA / "quantizers.npz") as weights, np.load(DATA / "scales.npz") as stored:
        weight, x = torch.from_numpy(weights["weight"]), torch.from_numpy(stored["inputs"])
    rotations = spreading_rotations(128, 64, generator())
    first = greedy_rotation(x, rotations)
    assert span(x.reshape(-1, 128) @ first) <= 0.35 * span(x)  # the authors' code: 0.32
    whole = rotate_permute_rotate(x, rotations[None])
    assert span(whole(x)) <= 0.32 * span(x)
    expected = x @ weight.T
    got = whole(x) @ whole.fold(weight).T
    assert (got - expected).norm() <= 1e-5 * expected.norm()


def test_the_largest_tokens_are_always_seen():
    x = torch.randn(1000, 8, generator=generator())
    x[777, 3] = 100
    chosen = telling_tokens(x, 10)
    assert chosen.shape == (10, 8)
    assert chosen.abs().max() == 100
    assert telling_tokens(x[:10], 10).shape == (10, 8)


def test_means_over_sequences_leave_out_what_does_not_count_however_batches_are_cut():
    x = torch.randn(5, 6, 4, generator=generator())
    weights = torch.ones(5, 6)
    weights[1, 2:] = 0
    weights[2] = 0.5
    weights[:, 5] = 0
    expected = (x * weights[..., None]).sum(0)[:5] / weights.sum(0)[:5, None]
    whole, cut, shorter = (MeanTokens(100) for _ in range(3))
    whole.add(x, weights)
    for part in (slice(0, 3), slice(3, 5)):
        cut.add(x[part], weights[part])
    for sample in (whole, cut):
        torch.testing.assert_close(sample.tokens(), expected)
    shorter.add(x[:2, :4], None)
    shorter.add(x[2:], None)
    torch.testing.assert_close(shorter.tokens()[:4], x[:, :4].mean(0))
    torch.testing.assert_close(shorter.tokens()[4:], x[2:, 4:].mean(0))


@settings(max_examples=20, deadline=None)
@given(seed=st.integers(0, 10**6), permutations=st.integers(0, 3))
def test_each_permutation_adds_a_rotation_and_never_widens_the_range(seed, permutations):
    x = outlying(seed)
    searches = spreading_rotations(12, 6, generator(seed)).unflatten(0, (2, 3))
    transform, fewer = (
        rotate_permute_rotate(x, searches, count) for count in (permutations + 1, permutations)
    )
    assert len(transform.parts) == 2 * permutations + 3
    assert span(transform(x)) <= span(fewer(x)) * (1 + 1e-5) <= span(x) * (1 + 2e-5)
    matrix = transform(torch.eye(48))
    assert (matrix @ matrix.T - torch.eye(48)).abs().max() <= 1e-5
    restored = restore(describe(transform), dict(transform.state_dict()))
    assert torch.equal(restored(x), transform(x))


@pytest.mark.parametrize("options", [{"calibrate_on": "mean"}, {"permutations": 2}])
def test_other_ways_to_find_rotations_keep_the_function(options, make_small_dream, make_batches):
    plain, model = make_small_dream(), make_small_dream()
    batches = make_batches(8)
    quantize(model, method="duquant", scheme="w16a8", calibration=batches, **FAST, **options)
    other = quantize(
        make_small_dream(), method="duquant", scheme="w16a8", calibration=batches, **FAST
    )
    for one in (model, other):
        for part in one.linears().values():
            object.__setattr__(part.activation, "bits", 16)
    expected = plain.logits(IDS)
    assert (model.logits(IDS) - expected).abs().max() <= 1e-4 * expected.abs().max()
    assert not torch.equal(model.logits(IDS), other.logits(IDS))


@pytest.mark.parametrize("family", ["make_small_llada", "make_small_dream"])
@pytest.mark.parametrize("solver", ["rtn", "gptq"])
def test_with_wide_grids_the_model_predicts_what_the_original_does(
    family, solver, request, make_batches
):
    make = request.getfixturevalue(family)
    plain, model = make(), make()
    scheme = "w8a16" if solver == "gptq" else "w16a8"
    quantize(
        model, method="duquant", scheme=scheme, calibration=make_batches(), solver=solver, **FAST
    )
    expected = plain.logits(IDS)
    assert (model.logits(IDS) - expected).norm() <= 0.06 * expected.norm()
    for part in model.linears().values():
        assert isinstance(part, QuantLinear)
        assert transform_of(part) is not None


@pytest.mark.parametrize("family", ["make_small_llada", "make_small_dream"])
def test_with_quantization_off_the_function_is_kept(family, request, make_batches):
    make = request.getfixturevalue(family)
    plain, model = make(), make()
    quantize(model, method="duquant", scheme="w16a8", calibration=make_batches(), **FAST)
    for part in model.linears().values():
        object.__setattr__(part.activation, "bits", 16)
    expected = plain.logits(IDS)
    assert (model.logits(IDS) - expected).abs().max() <= 1e-4 * expected.abs().max()


def test_layers_with_a_common_input_share_their_transform(make_small_llada, make_batches):
    model = make_small_llada()
    quantize(model, method="duquant", scheme="w4a4", calibration=make_batches(), **FAST)
    attention, ffn = model.blocks[0].self_attn, model.blocks[0].mlp
    assert attention.q_proj.transform is attention.k_proj.transform is attention.v_proj.transform
    assert ffn.gate_proj.transform is ffn.up_proj.transform
    assert attention.q_proj.transform is not model.blocks[1].self_attn.q_proj.transform
    first, second = (row.bits for row in model.quantization_report.modules[:2])
    assert first - second == attention.q_proj.transform.storage_bits() > 0


def test_the_seed_decides(make_small_llada, make_batches):
    scheme, batches = QuantScheme.parse("w4a4"), make_batches()
    models = [make_small_llada() for _ in range(3)]
    for model, seed in zip(models, (0, 0, 1), strict=True):
        build("duquant", FAST).quantize(model, scheme, batches, seed=seed)
    first, second, other = (model.blocks[1].mlp.down_proj.weight for model in models)
    assert torch.equal(first, second)
    assert not torch.equal(first, other)


def test_clip_ratios_are_the_authors_at_four_bits_and_none_at_eight(make_small_llada, make_batches):
    for scheme, clip in (("w4a4", 0.9), ("w8a8", 1.0)):
        model = make_small_llada(layers=1)
        quantize(model, method="duquant", scheme=scheme, calibration=make_batches(4), **FAST)
        assert model.blocks[0].mlp.up_proj.activation.clip_ratio == clip
        assert not model.blocks[0].mlp.up_proj.activation.symmetric
    clips = [build("duquant").usual_weight_clip(QuantScheme.parse(text)) for text in SCHEMES]
    assert clips == [0.8, 1.0, 1.0, 1.0]


def test_schemes_and_parameters_it_cannot_do_are_refused():
    assert build("duquant").refusal(QuantScheme.parse("w4a4-qkv")) is None
    assert "solver rtn" in build("duquant", {"solver": "gptq"}).refusal(QuantScheme.parse("w16a4"))
    wrong_sizes = {"alpha": -0.1, "block_size": 1, "steps": 0, "tokens": 1, "permutations": -1}
    for name, value in {**wrong_sizes, "calibrate_on": "rows", "scale_from": "last"}.items():
        with pytest.raises(InputError, match=f"parameter {name}"):
            build("duquant", {name: value})
