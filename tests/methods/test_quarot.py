"""QuaRot: the rotated model is the same function, on both shapes, and rounds better."""

import pytest
import torch

from dllm_sweep import load_model
from dllm_sweep.calibration import load
from dllm_sweep.errors import InputError, QuantizationError
from dllm_sweep.methods import build, quantize
from dllm_sweep.methods.base import Workspace
from dllm_sweep.methods.quarot import rotate
from dllm_sweep.quant.capture import capture_first_block
from dllm_sweep.quant.fuse import RewrittenParameter
from dllm_sweep.quant.hessian import collect_hessians
from dllm_sweep.quant.linear import QuantLinear, transform_of
from dllm_sweep.quant.transforms import Hadamard
from dllm_sweep.spec import CalibrationSpec, QuantScheme

IDS = torch.randint(2, 60, (2, 32), generator=torch.Generator().manual_seed(3))
MODELS = {
    "llada": lambda request: request.getfixturevalue("make_small_llada"),
    "dream": lambda request: request.getfixturevalue("make_small_dream"),
    "tied dream": lambda request: lambda: request.getfixturevalue("make_small_dream")(tied=True),
    "llada-tiny": lambda _: lambda: load_model("llada-tiny", device="cpu"),
    "outliers": lambda _: lambda: load_model("llada-tiny-outliers", device="cpu"),
}


def distance(model, expected):
    logits = model.logits(IDS)
    return ((logits - expected).abs().max() / expected.abs().max()).item()


@pytest.mark.parametrize("which", MODELS)
@pytest.mark.parametrize("random", [False, True])
def test_a_rotated_model_predicts_what_the_original_does(which, random, request):
    make = MODELS[which](request)
    plain, model = make(), make()
    rotate(model, 1, frozenset(model.linears()), random=random)
    assert distance(model, plain.logits(IDS)) <= 1e-5
    block = model.blocks[0]
    assert (block.input_layernorm.weight == 1).all()
    assert not torch.equal(
        model.host.get_input_embeddings().weight, plain.host.get_input_embeddings().weight
    )
    assert (
        block.input_layernorm.variance_epsilon == plain.blocks[0].input_layernorm.variance_epsilon
    )


def test_the_mean_of_the_embeddings_and_the_biases_of_values_are_what_the_test_needs(
    make_small_dream,
):
    model = make_small_dream()
    assert model.host.get_input_embeddings().weight.mean() > 0.05
    assert model.blocks[0].self_attn.v_proj.bias.abs().min() > 0
    assert model.blocks[0].input_layernorm.variance_epsilon == 1e-6


def test_no_tensor_of_the_model_is_changed_in_place(make_small_dream):
    model = make_small_dream(tied=True)
    given = {name: parameter.data for name, parameter in model.host.named_parameters()}
    copies = {name: tensor.clone() for name, tensor in given.items()}
    rotate(model, 0, frozenset(model.linears()))
    assert all(torch.equal(given[name], copy) for name, copy in copies.items())
    assert isinstance(model.host.lm_head.weight, RewrittenParameter)
    assert model.host.config.tie_word_embeddings is False


def test_a_rotated_tied_model_is_saved_and_restored_untied(
    make_small_dream, make_batches, tmp_path
):
    from dllm_sweep.quant import artifact

    model, fresh = make_small_dream(tied=True), make_small_dream(tied=True)
    quantize(model, method="quarot", scheme="w4a4", calibration=make_batches())
    artifact.save(model, tmp_path / "weights.safetensors")
    artifact.load(fresh, tmp_path / "weights.safetensors")
    assert torch.equal(fresh.logits(IDS), model.logits(IDS))
    assert fresh.host.config.tie_word_embeddings is False


def test_gptq_sees_rotated_inputs(make_small_llada, make_batches):
    plain, model = make_small_llada(), make_small_llada()
    rotate(model, 0, frozenset(model.linears()))
    name = "mlp.down_proj"
    before, after = (
        collect_hessians(one.blocks[0], [name], capture_first_block(one, make_batches()))[name]
        for one in (plain, model)
    )
    transform = Hadamard(64)
    expected = transform(transform(before.mean()).T).T
    torch.testing.assert_close(after.mean(), expected, rtol=1e-3, atol=1e-4)


@pytest.mark.parametrize("solver", ["rtn", "gptq"])
@pytest.mark.parametrize("family", ["make_small_llada", "make_small_dream"])
def test_all_linears_are_quantized_and_only_two_of_a_block_transform_online(
    solver, family, request, make_batches
):
    model = request.getfixturevalue(family)()
    progress = []
    build("quarot", {"solver": solver}).quantize(
        model,
        QuantScheme.parse("w4a4"),
        make_batches() if solver == "gptq" else (),
        workspace=Workspace(progress=lambda done, total: progress.append((done, total))),
    )
    assert progress == [(1, 2), (2, 2)]
    online = {name for name, part in model.linears().items() if transform_of(part) is not None}
    assert online == {
        f"model.layers.{index}.{name}"
        for index in (0, 1)
        for name in ("self_attn.o_proj", "mlp.down_proj")
    }
    for part in model.linears().values():
        assert isinstance(part, QuantLinear)
        assert (part.activation.bits, part.activation.clip_ratio) == (4, 0.9)
        assert max(len(row.unique()) for row in part.weight) <= 16


def test_outliers_that_ruin_rounding_hardly_matter_after_rotation():
    def made():
        return load_model("llada-tiny-outliers", device="cpu")

    full = made()
    text = load(CalibrationSpec(samples=12, length=64, masking="uniform"), full, batch_size=4)
    calibration, ids = text[:2], text[2].input_ids
    expected = full.logits(ids)

    def error(method, **parameters):
        model = quantize(
            made(), method=method, scheme="w4a4", calibration=calibration, **parameters
        )
        return ((model.logits(ids) - expected).norm() / expected.norm()).item()

    nearest, smoothed = error("rtn"), error("smoothquant")
    rotated = error("quarot", solver="rtn", mse_clip=False)
    permuted = error("duquant", steps=32)
    assert smoothed < nearest
    assert max(rotated, permuted) < 0.7 * smoothed


def test_the_seed_decides_the_rotation_and_nothing_else_is_random(make_small_llada):
    scheme = QuantScheme.parse("w4a4")
    models = [make_small_llada() for _ in range(3)]
    for model, seed in zip(models, (0, 0, 1), strict=True):
        build("quarot", {"solver": "rtn"}).quantize(model, scheme, (), seed=seed)
    first, second, other = (model.blocks[0].self_attn.q_proj.weight for model in models)
    assert torch.equal(first, second)
    assert not torch.equal(first, other)


def test_layers_left_out_expect_rotated_hidden_states_and_stay_in_full_precision(
    make_small_dream,
):
    plain, model = make_small_dream(), make_small_dream()
    build("quarot", {"solver": "rtn", "skip_modules": ("*.down_proj", "*.o_proj")}).quantize(
        model, QuantScheme.parse("w8a16"), ()
    )
    down = model.blocks[0].mlp.down_proj
    assert isinstance(down.weight, RewrittenParameter)
    assert distance(model, plain.logits(IDS)) < 0.05


def test_at_eight_bits_nothing_is_clipped():
    method = build("quarot")
    assert [method.usual_activation_clip(bits) for bits in (3, 4, 6, 8)] == [0.9, 0.9, 1.0, 1.0]
    assert build("quarot", {"activation_clip": 0.8}).activation_clip == 0.8


def test_without_gptq_it_reads_no_text(small_llada):
    assert build("quarot").needs_calibration
    assert not build("quarot", {"solver": "rtn"}).needs_calibration
    with pytest.raises(QuantizationError, match="needs calibration text"):
        build("quarot").quantize(small_llada, QuantScheme.parse("w4a4"), ())


def test_schemes_and_parameters_it_cannot_do_are_refused():
    refusal = build("quarot").refusal
    assert "solver rtn" in refusal(QuantScheme.parse("w16a4"))
    assert "takes the bits of the activations" in refusal(QuantScheme.parse("w4a16-qkv"))
    assert refusal(QuantScheme.parse("w4a16-g128")) is None
    assert build("quarot", {"solver": "rtn"}).refusal(QuantScheme.parse("w16a4")) is None
    with pytest.raises(InputError, match="parameter rotation"):
        build("quarot", {"rotation": "householder"})


def test_parameters_without_effect_or_in_conflict_are_refused():
    scheme = QuantScheme.parse("w4a4")
    for parameters in ({"activation_order": True}, {"damping": 0.1}):
        said = build("quarot", {"solver": "rtn", **parameters}).refusal(scheme)
        assert "the solver rtn reads neither damping nor activation_order" in said
        assert build("quarot", parameters).refusal(scheme) is None
    assert "set mse_clip to false" in build("quarot", {"weight_clip": 0.9}).refusal(scheme)
    assert build("quarot", {"weight_clip": 0.9, "mse_clip": False}).refusal(scheme) is None
    assert build("duquant", {"mse_clip": True}).refusal(scheme) is None


def test_bfloat16_weights_are_rotated_in_float64(make_small_dream):
    plain = make_small_dream(dtype=torch.bfloat16)
    model = make_small_dream(dtype=torch.bfloat16)
    rotate(model, 0, frozenset(model.linears()))
    assert model.dtype == torch.bfloat16
    assert {p.dtype for p in model.host.parameters()} == {torch.bfloat16}
    expected = plain.logits(IDS).float()
    assert (model.logits(IDS).float() - expected).norm() <= 0.05 * expected.norm()
