import json

import pytest
import torch
from safetensors.torch import save_file

from dllm_sweep import generate, load_model
from dllm_sweep.decoding.sampler import sample
from dllm_sweep.errors import InputError
from dllm_sweep.spec import DecodingSpec

CONFIG = {
    "model_type": "sdar",
    "vocab_size": 96,
    "hidden_size": 32,
    "intermediate_size": 48,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "head_dim": 8,
    "max_position_embeddings": 64,
    "rms_norm_eps": 1e-6,
    "rope_theta": 10000.0,
    "tie_word_embeddings": False,
    "hidden_act": "silu",
    "attention_bias": False,
    "block_size": 4,
    "mask_token_id": 95,
    "eos_token_id": 94,
    "pad_token_id": 94,
}
PROMPTS = [[5, 9, 17, 33, 2], [60], [7] * 15, [70, 2], [3, 1, 4, 1], [8] * 10]
OPTIONS = {"gen_length": 12, "block_length": 4, "steps": 6}


def random_tensors(config):
    generator = torch.Generator().manual_seed(3)
    width, size, ffn = config["hidden_size"], config["head_dim"], config["intermediate_size"]
    heads, narrow = config["num_attention_heads"], config["num_key_value_heads"]
    shapes = {
        "model.embed_tokens.weight": (config["vocab_size"], width),
        "lm_head.weight": (config["vocab_size"], width),
        "model.norm.weight": (width,),
    }
    for block in range(config["num_hidden_layers"]):
        parts = {
            "input_layernorm": (width,),
            "self_attn.q_proj": (heads * size, width),
            "self_attn.k_proj": (narrow * size, width),
            "self_attn.v_proj": (narrow * size, width),
            "self_attn.o_proj": (width, heads * size),
            "self_attn.q_norm": (size,),
            "self_attn.k_norm": (size,),
            "post_attention_layernorm": (width,),
            "mlp.gate_proj": (ffn, width),
            "mlp.up_proj": (ffn, width),
            "mlp.down_proj": (width, ffn),
        }
        shapes |= {f"model.layers.{block}.{name}.weight": one for name, one in parts.items()}
    return {
        name: torch.randn(shape, generator=generator) * 0.3 + ("norm" in name)
        for name, shape in shapes.items()
    }


@pytest.fixture(scope="module")
def causal(tmp_path_factory):
    folder = tmp_path_factory.mktemp("sdar")
    (folder / "config.json").write_text(json.dumps(CONFIG))
    save_file(random_tensors(CONFIG), folder / "model.safetensors")
    return load_model(str(folder), device="cpu")


def written_out(model, prompt):
    """SDAR's own procedure for one prompt: blocks of the whole text, two positions a step."""
    size, mask = model.block_size, model.special.mask_id
    wanted = len(prompt) + OPTIONS["gen_length"]
    ids = torch.tensor([[*prompt, *[mask] * (-(-wanted // size) * size - len(prompt))]])
    for first in range(len(prompt) // size * size, ids.shape[1], size):
        block = ids[:, first : first + size]
        while mask in block:
            probability, token = model.logits(ids)[0, first : first + size].softmax(-1).max(-1)
            probability[block[0] != mask] = -1
            chosen = probability.topk(min(2, int((block == mask).sum()))).indices
            block[0, chosen] = token[chosen]
    return ids[0, len(prompt) : wanted].tolist()


def test_blocks_are_those_of_the_attention_wherever_the_prompt_ends(causal):
    expected = [written_out(causal, prompt) for prompt in PROMPTS]
    assert generate(causal, PROMPTS, **OPTIONS) == expected


@pytest.mark.parametrize("options", [{}, {"temperature": 0.8}, {"threshold": 0.2}])
def test_kept_blocks_change_nothing(causal, options):
    decoding = DecodingSpec(**OPTIONS, **options)
    plain = sample(causal, PROMPTS, decoding, plain=True)
    for size in (1, 6):
        saved = sample(causal, PROMPTS, decoding, batch_size=size)
        assert [one.tokens for one in saved] == [
            full.tokens[: len(one.tokens)] for one, full in zip(saved, plain, strict=True)
        ]
        assert sum(one.token_forwards for one in saved) < sum(one.token_forwards for one in plain)


def test_what_an_answer_took_does_not_depend_on_the_batch(causal):
    decoding = DecodingSpec(**OPTIONS)
    assert sample(causal, PROMPTS, decoding, batch_size=1) == sample(causal, PROMPTS, decoding)


def test_each_call_goes_over_the_block_and_the_one_before(causal):
    (one,) = sample(causal, [[1, 2, 3, 4, 5, 6, 7, 8]], DecodingSpec(**OPTIONS))
    # The first call computes the prompt, the first of each later block the block before, too.
    assert one.forwards == 6
    assert one.token_forwards == (12 + 4) + (8 + 4) + (8 + 4)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"block_length": 6}, "block_length 6 must be 4, the block of the model's attention"),
        ({"cache": "prefix"}, "under block-causal attention finished blocks are kept anyway"),
        ({"cfg_scale": 1.0}, "cache and cfg_scale are for full attention"),
        ({"algorithm": "entropy"}, "decoded by the blockwise sampler"),
    ],
)
def test_what_the_attention_does_not_allow_is_refused(causal, options, message):
    with pytest.raises(InputError, match=message):
        generate(causal, PROMPTS, **{**OPTIONS, **options})
