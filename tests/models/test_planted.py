import pytest
import torch

from dllm_sweep import load_model
from dllm_sweep.models.planted import VARIANTS, plant_outliers, spread

PLANTED = VARIANTS["llada-tiny-outliers"]


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_planted_outliers_leave_the_logits_bit_equal(model, golden, dtype):
    plain = load_model(model.name, device="cpu", dtype=dtype)
    planted = load_model(model.name, device="cpu", dtype=dtype)
    plant_outliers(planted, PLANTED)
    ids = golden["ids_masked"]
    assert torch.equal(planted.logits(ids), plain.logits(ids))


@pytest.mark.parametrize("name", VARIANTS)
def test_the_embedded_variant_is_the_function_of_its_base(name):
    ids = torch.arange(3, 63).reshape(2, 30)
    ids[:, 20:] = 2
    plain, planted = (load_model(one, device="cpu") for one in (VARIANTS[name].base, name))
    assert torch.equal(planted.logits(ids), plain.logits(ids))
    assert planted.special == plain.special


def test_the_input_of_every_down_projection_and_of_the_norms_readers_has_outliers(model, golden):
    planted = load_model(model.name, device="cpu")
    plant_outliers(planted, PLANTED)
    for name in ("self_attn.q_proj", "mlp.gate_proj", "mlp.down_proj"):
        before, after = (largest_channel(one, name, golden) for one in (model, planted))
        assert after > 4 * before


def test_the_scales_are_powers_of_two():
    for scale in (PLANTED.norm_scale, PLANTED.ffn_scale):
        assert scale.is_integer()
        assert int(scale).bit_count() == 1


def test_channels_are_different_and_spread():
    assert spread(256, 4) == [32, 96, 160, 224]
    assert spread(3, 8) == [0, 1, 2]


def largest_channel(model, name, golden):
    """Largest absolute input of a linear in the second block over the median."""
    seen = []
    linear = model.blocks[1].get_submodule(name)
    handle = linear.register_forward_pre_hook(lambda _, inputs: seen.append(inputs[0].abs()))
    model.logits(golden["ids_clean"])
    handle.remove()
    return float(seen[0].max() / seen[0].median())
