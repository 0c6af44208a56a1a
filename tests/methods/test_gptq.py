"""GPTQ over a whole model."""

import dataclasses

import pytest
import torch

from dllm_sweep.calibration.batch import CalibrationBatch
from dllm_sweep.errors import InputError, QuantizationError
from dllm_sweep.methods import build, quantize
from dllm_sweep.methods.base import Workspace
from dllm_sweep.methods.gptq import quantize_weight
from dllm_sweep.quant.capture import capture_first_block
from dllm_sweep.quant.hessian import collect_hessians
from dllm_sweep.spec import QuantScheme

SCHEME = QuantScheme.parse("w3a16-g16")


def weights(model):
    return {name: part.weight for name, part in model.linears().items()}


def run(model, batches, **parameters):
    progress = []
    report = build("gptq", parameters).quantize(
        model, SCHEME, batches, workspace=Workspace(progress=lambda *done: progress.append(done))
    )
    return report, progress


def test_every_layer_beats_rounding_to_nearest_on_the_inputs_it_was_solved_for(
    make_small_llada, make_batches
):
    batches = make_batches()
    plain, solved, nearest = (make_small_llada() for _ in range(3))
    quantize(solved, method="gptq", scheme=SCHEME, calibration=batches, true_sequential=False)
    quantize(nearest, method="rtn", scheme=SCHEME)
    inputs = capture_first_block(plain, batches)
    groups = plain.family.linear_groups
    hessians = collect_hessians(plain.blocks[0], [group.linears[0] for group in groups], inputs)
    for group in groups:
        for name in group.linears:
            original, ours, theirs = (
                model.blocks[0].get_submodule(name).weight for model in (plain, solved, nearest)
            )
            hessian = hessians[group.linears[0]]
            assert hessian.error(original, ours) <= hessian.error(original, theirs)


def test_the_first_layers_are_what_the_pure_function_gives(make_small_llada, make_batches):
    batches = make_batches()
    plain, solved = make_small_llada(), make_small_llada()
    run(solved, batches)
    inputs = capture_first_block(plain, batches)
    hessian = collect_hessians(plain.blocks[0], ["self_attn.q_proj"], inputs)["self_attn.q_proj"]
    for name in ("q_proj", "k_proj", "v_proj"):
        original = plain.blocks[0].self_attn.get_submodule(name).weight
        alone = quantize_weight(original, hessian.mean(), bits=3, group_size=16)
        torch.testing.assert_close(
            solved.blocks[0].self_attn.get_submodule(name).weight, alone.dequantized
        )


def test_later_layers_see_what_the_quantized_earlier_ones_give(make_small_llada, make_batches):
    batches = make_batches()
    everything, last = make_small_llada(), make_small_llada()
    run(everything, batches)
    run(last, batches, modules=("model.layers.1.*",))
    name = "model.layers.1.mlp.down_proj"
    assert not torch.equal(weights(everything)[name], weights(last)[name])


def test_true_sequential_matters_within_a_block(make_small_llada, make_batches):
    batches = make_batches()
    sequential, at_once = make_small_llada(layers=1), make_small_llada(layers=1)
    run(sequential, batches)
    run(at_once, batches, true_sequential=False)
    same = {
        name.rpartition(".")[2]
        for name in weights(sequential)
        if torch.equal(weights(sequential)[name], weights(at_once)[name])
    }
    assert same == {"q_proj", "k_proj", "v_proj"}


@pytest.mark.parametrize(
    ("output", "read"),
    [("self_attn.o_proj", "self_attn"), ("mlp.down_proj", "mlp")],
)
def test_output_first_solves_an_output_projection_before_what_it_reads(
    output, read, make_small_llada, make_batches
):
    batches = make_batches()
    name, alone = f"model.layers.0.{output}", make_small_llada()
    before = ("*.0.self_attn.*",) if read == "mlp" else ()
    run(alone, batches, modules=(name, *before), output_first=True)
    first, usual = make_small_llada(), make_small_llada()
    run(first, batches, output_first=True)
    run(usual, batches)
    assert torch.equal(weights(first)[name], weights(alone)[name])
    assert not torch.equal(weights(usual)[name], weights(alone)[name])


def test_output_first_is_refused_where_there_is_no_order():
    with pytest.raises(InputError, match="output_first: expected false without true_sequential"):
        build("gptq", {"output_first": True, "true_sequential": False})


def test_hessians_are_taken_behind_rounded_operands(make_small_llada, make_batches):
    plain, operands = make_small_llada(), make_small_llada()
    for model, scheme in ((plain, "w3a16-g16"), (operands, "w3a16-kv2-g16")):
        report = quantize(model, method="gptq", scheme=scheme, calibration=make_batches())
    rows = [row.module for row in report.quantization_report.modules if row.weights == 0]
    assert rows[:2] == ["model.layers.0.self_attn.keys", "model.layers.0.self_attn.values"]
    for name, same in (("v_proj", True), ("o_proj", False)):
        full = f"model.layers.0.self_attn.{name}"
        assert torch.equal(weights(plain)[full], weights(operands)[full]) is same


def test_the_same_input_gives_the_same_bits(make_small_llada, make_batches):
    first, second = make_small_llada(), make_small_llada()
    assert run(first, make_batches()) == run(second, make_batches())
    assert all(torch.equal(weights(second)[name], w) for name, w in weights(first).items())


def test_other_text_gives_other_weights(make_small_llada, make_batches):
    first, second = make_small_llada(), make_small_llada()
    run(first, make_batches())
    run(second, make_batches(seed=1))
    assert not any(torch.equal(weights(second)[name], w) for name, w in weights(first).items())


@pytest.mark.parametrize("padding", [0, 6])
def test_the_batch_size_hardly_matters(padding, make_small_llada, make_batches):
    first, second = make_small_llada(), make_small_llada()
    run(first, make_batches(16, 16, padding=padding))
    run(second, make_batches(16, 3, padding=padding))
    changed = total = 0
    for name, weight in weights(first).items():
        changed += (~torch.isclose(weight, weights(second)[name], rtol=1e-3, atol=1e-5)).sum()
        total += weight.numel()
    assert changed / total <= 0.005


def test_padding_has_no_say(make_small_llada, make_batches):
    first, second = make_small_llada(), make_small_llada()
    batches = make_batches(padding=6)
    other = tuple(
        dataclasses.replace(
            batch, input_ids=torch.where(batch.attention_mask == 0, 5, batch.input_ids)
        )
        for batch in batches
    )
    run(first, batches)
    run(second, other)
    assert all(torch.equal(weights(second)[name], w) for name, w in weights(first).items())


def test_calibration_batches_are_shared_and_never_changed(small_llada, make_batches):
    batches = make_batches(padding=2)
    copies = [(b.input_ids.clone(), b.attention_mask.clone()) for b in batches]
    run(small_llada, batches)
    for batch, (ids, mask) in zip(batches, copies, strict=True):
        assert torch.equal(batch.input_ids, ids)
        assert torch.equal(batch.attention_mask, mask)


def test_every_block_is_reported(small_llada, make_batches):
    _, progress = run(small_llada, make_batches())
    assert progress == [(1, 2), (2, 2)]


def test_too_few_tokens_give_one_warning_a_width(make_small_llada, make_batches):
    report, _ = run(make_small_llada(), make_batches(4))
    assert len(report.warnings) == 1
    assert (
        "128 calibration tokens for layers with 64 inputs: use at least 256" in report.warnings[0]
    )
    assert run(make_small_llada(), make_batches(16))[0].warnings == ()


def test_more_damping_than_asked_for_is_a_warning_that_names_the_layers(small_llada, make_batches):
    one = make_batches(1)[0]
    same = CalibrationBatch(
        input_ids=torch.full_like(one.input_ids, 7), attention_mask=None, masked=one.masked
    )
    report, _ = run(small_llada, [same], damping=0.0)
    assert any("q_proj" in w and "needed damping" in w for w in report.warnings)


def test_activations_that_overflow_name_the_layer(small_llada, make_batches):
    small_llada.blocks[1].input_layernorm.weight.data.fill_(torch.inf)
    with pytest.raises(QuantizationError, match=r"layers\.1\.self_attn\.q_proj.*not finite"):
        run(small_llada, make_batches())


def test_without_text_it_says_so(small_llada):
    with pytest.raises(QuantizationError, match="needs calibration text"):
        run(small_llada, ())


def test_groups_out_of_order_cost_an_index(make_small_llada, make_batches):
    static, _ = run(make_small_llada(), make_batches())
    moving, _ = run(make_small_llada(), make_batches(), static_groups=False)
    row, other = static.modules[0], moving.modules[0]
    assert other.bits - row.bits == 32 * 32


def test_skipped_layers_stay_in_full_precision(make_small_llada, make_batches):
    plain, model = make_small_llada(), make_small_llada()
    report, _ = run(model, make_batches(), skip_modules=("*.v_proj", "*.down_proj"))
    assert len(report.modules) == 10
    assert torch.equal(
        weights(model)["model.layers.0.self_attn.v_proj"],
        weights(plain)["model.layers.0.self_attn.v_proj"],
    )
