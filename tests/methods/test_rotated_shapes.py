"""Rotations keep a model's function for any shape, and sizes without a Hadamard matrix are told."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from dllm_sweep.errors import QuantizationError
from dllm_sweep.methods import build, quantize
from dllm_sweep.methods.quarot import rotate
from dllm_sweep.models.dream import PLUGIN as DREAM
from dllm_sweep.models.family import Widths
from dllm_sweep.models.llada import PLUGIN as LLADA
from dllm_sweep.quant import rotation
from dllm_sweep.spec import QuantScheme
from tests.conftest import small_model

IDS = torch.randint(2, 60, (2, 24), generator=torch.Generator().manual_seed(3))


def made(*, heads, head, grouped=1, ffn, tied=False, biased=True, eps=1e-6, seed=0):
    """A random model of Llama's or Qwen2's class: norms apart from one, embeddings with a mean."""
    from transformers import LlamaConfig, LlamaForCausalLM, Qwen2Config, Qwen2ForCausalLM

    config, host = (Qwen2Config, Qwen2ForCausalLM) if biased else (LlamaConfig, LlamaForCausalLM)
    sizes = config(
        vocab_size=64,
        hidden_size=heads * head,
        intermediate_size=ffn,
        num_hidden_layers=2,
        num_attention_heads=heads,
        num_key_value_heads=heads // grouped,
        max_position_embeddings=32,
        rms_norm_eps=eps,
        tie_word_embeddings=tied,
        use_cache=False,
    )
    sizes.is_causal = False
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        model = host(sizes)
        for name, parameter in model.named_parameters():
            mean = 1.0 if "norm" in name else 0.3 if "embed" in name else 0.0
            scale = 0.4 if "norm" in name else 0.3 if "bias" in name else (heads * head) ** -0.5
            parameter.data = torch.randn(parameter.shape) * scale + mean
    return small_model("random", model, DREAM if biased else LLADA)


def distance(model, expected):
    return ((model.logits(IDS) - expected).abs().max() / expected.abs().max()).item()


shapes = st.fixed_dictionaries(
    {
        "heads": st.sampled_from([1, 2, 4, 12, 20, 28]),
        "head": st.sampled_from([2, 4, 8]),
        "ffn": st.sampled_from([12, 28, 40, 44, 64, 148, 296]),
        "tied": st.booleans(),
        "biased": st.booleans(),
        "eps": st.sampled_from([1e-6, 1e-5, 1e-2]),
        "seed": st.integers(0, 1000),
    }
)


@settings(max_examples=25, deadline=None)
@given(shape=shapes, grouped=st.sampled_from([1, 2, 4]), random=st.booleans())
def test_a_rotated_model_predicts_what_it_did_whatever_its_shape(shape, grouped, random):
    grouped = grouped if shape["heads"] % grouped == 0 else 1
    plain, model = (made(grouped=grouped, **shape) for _ in range(2))
    rotate(model, shape["seed"], frozenset(model.linears()), random=random)
    assert distance(model, plain.logits(IDS)) <= 2e-5


def test_the_embeddings_are_rotated_a_few_rows_at_a_time_with_the_same_result(monkeypatch):
    whole, split = (made(heads=4, head=8, ffn=64, tied=True) for _ in range(2))
    rotate(whole, 0, frozenset(whole.linears()))
    monkeypatch.setattr(rotation, "ROWS", 10)
    rotate(split, 0, frozenset(split.linears()))
    for name, tensor in whole.host.state_dict().items():
        torch.testing.assert_close(split.host.state_dict()[name], tensor, rtol=1e-6, atol=1e-6)


def test_each_weight_is_rounded_to_bfloat16_once():
    sizes = {"heads": 4, "head": 8, "ffn": 64}
    exact, model = made(**sizes), made(**sizes)
    for one in (exact, model):
        one.host.to(torch.bfloat16)
    exact.host.to(torch.float32)
    for one in (exact, model):
        rotate(one, 0, frozenset(one.linears()))
    stored, tensors = model.host.state_dict(), exact.host.state_dict()
    linears = [name for name in tensors if name.endswith(("proj.weight", "head.weight"))]
    assert len(linears) == 15
    for name in linears:
        assert torch.equal(stored[name], tensors[name].bfloat16())


def test_sizes_without_a_hadamard_matrix_are_told_by_the_plan_and_leave_the_model_alone():
    widths = Widths(hidden=4096, ffn=11006, heads=32, head=128)
    scheme, method = QuantScheme.parse("w4a4-kv4"), build("quarot")
    assert "the feed-forward width is 11006: no Hadamard matrix" in method.misfit(scheme, widths)
    odd = Widths(hidden=60, ffn=64, heads=5, head=12)
    assert "the number of heads is 5" in method.misfit(scheme, odd)
    left_out = build("quarot", {"skip_modules": ("*.down_proj",)})
    assert left_out.misfit(scheme, widths) is None
    model = made(heads=4, head=8, ffn=36 + 2, biased=False)
    before = model.logits(IDS)
    with pytest.raises(QuantizationError, match="the feed-forward width is 38"):
        quantize(model, method="quarot", scheme="w4a8", solver="rtn")
    assert torch.equal(model.logits(IDS), before)


def test_only_what_is_rotated_needs_a_hadamard_matrix():
    odd = Widths(hidden=44 * 7, ffn=38, heads=7, head=44)
    for scheme, said in (("w4a4", None), ("w4a4-qkv", None)):
        assert build("duquant").misfit(QuantScheme.parse(scheme), odd) is said
    heads = Widths(hidden=64, ffn=64, heads=1, head=6)
    assert "the size of a head is 6" in build("duquant").misfit(
        QuantScheme.parse("w4a4-qkv"), heads
    )
    assert build("smoothquant").misfit(QuantScheme.parse("w4a4-qkv"), heads) is None
    any_matrix = build("quarot", {"rotation": "random", "skip_modules": ("*_proj",)})
    assert any_matrix.misfit(QuantScheme.parse("w4a4"), odd) is None


@pytest.mark.parametrize("biased", [False, True])
def test_smoothing_first_keeps_the_function_and_takes_outliers_of_down_projections(
    biased, make_batches
):
    def outlying():
        model = made(heads=4, head=8, grouped=2 if biased else 1, ffn=64, biased=biased)
        for block in model.blocks:
            block.mlp.up_proj.weight[5] *= 40
        return model

    plain = outlying().logits(IDS)
    batches = make_batches(8)
    smoothed = build("quarot", {"smoothing": 0.5, "solver": "rtn", "mse_clip": False})
    assert smoothed.needs_calibration
    errors = {}
    for smoothing in (None, 0.5):
        model = outlying()
        quantize(
            model, method="quarot", scheme="w16a4", calibration=batches, solver="rtn",
            smoothing=smoothing, mse_clip=False, modules=["*.down_proj"],
        )  # fmt: skip
        errors[smoothing] = (model.logits(IDS) - plain).norm() / plain.norm()
        for block in model.blocks:
            object.__setattr__(block.mlp.down_proj.activation, "bits", 16)
        assert distance(model, plain) <= 2e-5
    assert errors[0.5] < errors[None]
    assert "leave it out" in smoothed.refusal(QuantScheme.parse("w4a16"))
