import pytest
import torch

from dllm_sweep.errors import InputError, QuantizationError
from dllm_sweep.methods import build, quantize
from dllm_sweep.methods.rtn import quantize_weight
from dllm_sweep.quant.affine import GridFamily
from dllm_sweep.quant.linear import QuantLinear
from dllm_sweep.spec import QuantScheme

IDS = torch.randint(2, 60, (4, 32), generator=torch.Generator().manual_seed(3))
METHODS = ("rtn", "gptq")


def weight(rows=24, columns=64):
    return torch.randn(rows, columns, generator=torch.Generator().manual_seed(1))


def test_smaller_groups_have_smaller_errors():
    errors = [
        (quantize_weight(weight(), bits=3, group_size=size).dequantized - weight()).norm()
        for size in (8, 16, 32, None)
    ]
    assert errors == sorted(errors)


def test_one_grid_for_the_whole_weight_is_the_coarsest():
    result = quantize_weight(weight(), bits=4, per_tensor=True)
    assert result.grid.scale.numel() == 1
    assert len(result.dequantized.unique()) <= 16
    per_channel = quantize_weight(weight(), bits=4)
    assert per_channel.grid.scale.numel() == 24
    assert (result.dequantized - weight()).norm() > (per_channel.dequantized - weight()).norm()


def test_zero_rows_stay_zero_and_the_argument_is_not_changed():
    given = weight()
    given[5] = 0
    copy = given.clone()
    for family in GridFamily:
        rounded = quantize_weight(given, bits=2, group_size=16, family=family).dequantized
        assert (rounded[5] == 0).all()
    assert torch.equal(given, copy)


@pytest.mark.parametrize("method", METHODS)
def test_all_linears_of_all_blocks_change_and_nothing_else(method, make_small_llada):
    before = dict(make_small_llada().host.named_parameters())
    model = quantize(make_small_llada(), method=method, scheme="w3a16", calibration=IDS)
    after = {**dict(model.host.named_parameters()), **dict(model.host.named_buffers())}
    changed = {name for name, tensor in before.items() if not torch.equal(tensor, after[name])}
    expected = {
        f"model.layers.{layer}.{name}.weight"
        for layer in (0, 1)
        for name in (
            "self_attn.q_proj", "self_attn.k_proj", "self_attn.v_proj", "self_attn.o_proj",
            "mlp.gate_proj", "mlp.up_proj", "mlp.down_proj",
        )
    }  # fmt: skip
    assert changed == expected
    rows = model.quantization_report.modules
    assert {f"{row.module}.weight" for row in rows} == expected
    assert all(isinstance(part, QuantLinear) for part in model.linears().values())


@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize(
    ("scheme", "bits"), [("w4a16-g16", 4 + (16 + 4) / 16), ("w4a16-g16-sym", 4 + 16 / 16)]
)
def test_the_average_bits_count_scales_and_zeros(method, scheme, bits, make_small_llada):
    model = quantize(make_small_llada(), method=method, scheme=scheme, calibration=IDS)
    report = model.quantization_report
    assert report.average_bits == pytest.approx(bits)
    assert [row.weights for row in report.modules] == [
        part.weight.numel() for part in model.linears().values()
    ]


def test_rounding_activations_alone_leaves_the_weights(make_small_llada):
    plain = make_small_llada()
    model = quantize(make_small_llada(), method="rtn", scheme="w16a8")
    assert all(
        torch.equal(part.weight, plain.linears()[name].weight)
        for name, part in model.linears().items()
    )
    assert not torch.equal(model.logits(IDS), plain.logits(IDS))
    assert model.quantization_report.average_bits == 16


def test_more_bits_come_closer_to_full_precision(make_small_llada):
    expected = make_small_llada().logits(IDS)
    errors = [
        (quantize(make_small_llada(), scheme=f"w{bits}a16").logits(IDS) - expected).norm()
        for bits in (8, 6, 4, 3, 2)
    ]
    assert errors == sorted(errors)
    assert errors[0] < 0.03 * expected.norm()


@pytest.mark.parametrize("method", METHODS)
def test_a_model_in_bfloat16_keeps_its_type(method, make_small_llada):
    model = make_small_llada(dtype=torch.bfloat16)
    quantize(model, method=method, scheme="w4a8", calibration=IDS)
    assert {part.weight.dtype for part in model.linears().values()} == {torch.bfloat16}
    assert torch.isfinite(model.logits(IDS)).all()


@pytest.mark.parametrize("method", METHODS)
def test_a_group_size_that_does_not_fit_names_the_layer(method, small_llada):
    with pytest.raises(QuantizationError, match=r"layers\.0\.self_attn\.q_proj.*48 does not"):
        quantize(small_llada, method=method, scheme="w4a16-g48", calibration=IDS)


@pytest.mark.parametrize("method", METHODS)
def test_the_last_token_still_reaches_the_first_position(method, small_llada):
    quantize(small_llada, method=method, scheme="w4a8", calibration=IDS)
    changed = IDS.clone()
    changed[:, -1] = (changed[:, -1] + 1) % 60
    assert not torch.equal(small_llada.logits(IDS)[:, 0], small_llada.logits(changed)[:, 0])


@pytest.mark.parametrize(
    ("method", "scheme", "reason"),
    [
        ("fp", "w8a16", "quantizes nothing; its only scheme is w16a16"),
        ("rtn", "w16a16", "the full-precision method is fp"),
        ("gptq", "w16a16", "use rtn"),
        ("gptq", "w16a8", "use rtn"),
        ("rtn", "w4a16-qkv", "takes the bits of the activations"),
    ],
)
def test_what_a_method_cannot_do_is_refused(method, scheme, reason, small_llada):
    assert reason in build(method).refusal(QuantScheme.parse(scheme))
    with pytest.raises(InputError, match=reason):
        quantize(small_llada, method=method, scheme=scheme)


def test_a_single_grid_excludes_groups():
    method = build("rtn", {"per_tensor": True})
    assert "exclude each other" in method.refusal(QuantScheme.parse("w4a16-g16"))
    assert method.refusal(QuantScheme.parse("w8a8")) is None


def test_full_precision_changes_nothing(small_llada, make_small_llada):
    quantize(small_llada, method="fp", scheme="w16a16")
    assert small_llada.quantization_report.modules == ()
    assert small_llada.quantization_report.average_bits == 16
    assert torch.equal(small_llada.logits(IDS), make_small_llada().logits(IDS))


def test_a_quantized_model_is_not_quantized_again(small_llada):
    quantize(small_llada, scheme="w4a16")
    with pytest.raises(QuantizationError, match="quantized already; load the model again"):
        quantize(small_llada, scheme="w4a16")
