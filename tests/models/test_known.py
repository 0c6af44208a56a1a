"""The table of published checkpoints, and finding a family without torch."""

import json

import pytest

from dllm_sweep import plugins
from dllm_sweep.errors import CheckpointError, InputError, UnknownName
from dllm_sweep.models import known
from dllm_sweep.models.locate import family_of
from dllm_sweep.spec import ModelRef


@pytest.mark.parametrize(
    ("name", "billions"),
    [
        ("GSAI-ML/LLaDA-8B-Instruct", 8.016),
        ("GSAI-ML/iLLaDA-8B-Base", 7.62),
        ("Dream-org/Dream-v0-Base-7B", 7.616),
        ("JetLM/SDAR-8B-Chat", 8.19),
    ],
)
def test_sizes_are_the_published_ones(name, billions):
    assert known.PUBLISHED[name].parameters == pytest.approx(billions * 1e9, rel=2e-3)


def test_parameters_and_inputs_are_those_of_the_classes_that_host_them(tmp_path):
    """The arithmetic of the table against the tensors of a model built at a small size."""
    import torch
    from transformers import AutoModelForCausalLM

    for name in ("GSAI-ML/LLaDA-1.5", "GSAI-ML/iLLaDA-8B-Base", "apple/DiffuCoder-7B-Base"):
        model = known.PUBLISHED[name]
        family = plugins.load("model family", model.family)
        with torch.device("meta"):
            host = AutoModelForCausalLM.from_config(family.build_config(config_of(model), tmp_path))
        assert sum(one.numel() for one in host.parameters()) == model.parameters
        block = host.model.layers[0]
        linears = [one for group in family.linear_groups for one in group.linears]
        inputs = {block.get_submodule(one).in_features for one in linears}
        assert tuple(sorted(inputs)) == model.input_sizes


def config_of(model):
    if model.family == "llada":
        return {
            "d_model": model.width,
            "n_layers": model.layers,
            "n_heads": model.heads,
            "n_kv_heads": model.key_value_heads,
            "mlp_hidden_size": model.ffn,
            "embedding_size": model.vocabulary,
            "max_sequence_length": model.max_length,
            "rope_theta": 500000.0,
            "weight_tying": model.tied,
            "mask_token_id": model.mask_id,
            "eos_token_id": 126081,
            "block_type": "llama",
            "activation_type": "silu",
            "layer_norm_type": "rms",
            "bias_for_layer_norm": False,
            "include_bias": False,
            "rope": True,
        }
    return {
        "hidden_size": model.width,
        "num_hidden_layers": model.layers,
        "num_attention_heads": model.heads,
        "num_key_value_heads": model.key_value_heads,
        "intermediate_size": model.ffn,
        "vocab_size": model.vocabulary,
        "max_position_embeddings": model.max_length,
        "rope_theta": 1e6,
        "rms_norm_eps": 1e-6,
        "tie_word_embeddings": model.tied,
        "mask_token_id": model.mask_id,
        "eos_token_id": 0,
    }


@pytest.mark.parametrize("name", known.PUBLISHED)
def test_every_published_checkpoint_has_a_family_that_exists(name):
    family = family_of(ModelRef(name=name))
    assert family in plugins.names("model family")
    kind = plugins.load("model family", family)
    assert (known.PUBLISHED[name].block_size is None) == (kind.attention == "full")


def test_a_revision_does_not_hide_a_published_model():
    ref = ModelRef(name="GSAI-ML/LLaDA-8B-Base", revision="0" * 40)
    assert family_of(ref) == "llada"
    assert known.published("GSAI-ML/LLaDA-8B-Base@main") is not None


def test_the_family_of_a_folder_is_read_from_its_config(write_checkpoint, write_dream):
    assert family_of(ModelRef(name=str(write_checkpoint()))) == "llada"
    assert family_of(ModelRef(name=str(write_dream()))) == "dream"
    assert family_of(ModelRef(name="llada-tiny-outliers")) == "llada"


def test_an_unknown_hub_model_is_an_error_that_says_what_to_do():
    with pytest.raises(InputError, match=r"local folder, or write its `family`"):
        family_of(ModelRef(name="somebody/something"))


def test_a_misspelt_name_is_unknown():
    with pytest.raises(UnknownName, match="lada-tiny"):
        family_of(ModelRef(name="lada-tiny"))


@pytest.mark.parametrize("name", known.UNSUPPORTED_IDS)
def test_what_is_not_supported_says_so_with_the_reason(name):
    with pytest.raises(CheckpointError, match=r"is not supported: .*transformers") as caught:
        family_of(ModelRef(name=name))
    assert "\n" not in str(caught.value)


def test_a_mixture_of_experts_under_a_dense_name_is_refused(tmp_path):
    config = {"model_type": "llada", "num_experts": 64, "architectures": ["LLaDAMoEModelLM"]}
    (tmp_path / "config.json").write_text(json.dumps(config))
    with pytest.raises(CheckpointError, match="mixture-of-experts"):
        family_of(ModelRef(name=str(tmp_path)))


def test_what_a_released_config_lacks_is_filled_in_and_what_it_says_stands():
    name = "JetLM/SDAR-8B-Chat-b32"
    found = known.completed(name, {"mask_token_id": 7, "block_size": None})
    assert found == {"mask_token_id": 7, "block_size": 32}
    assert known.completed("my/own", {"a": 1}) == {"a": 1}
