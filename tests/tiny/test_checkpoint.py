import json
from random import Random

import pytest
import torch
from safetensors.torch import load_file

from dllm_sweep.models import load_model
from dllm_sweep.models.locate import EMBEDDED
from dllm_sweep.tiny import corpus, facts
from dllm_sweep.tiny.export import export_llada, llada_config
from dllm_sweep.tiny.network import Network, Shape
from dllm_sweep.tiny.tokenizer import END, MASK, START, load_tokenizer, save_tokenizer

FOLDER = EMBEDDED / "llada-tiny"


@pytest.fixture(scope="module")
def tokenizer():
    return load_tokenizer(FOLDER)


def test_the_checkpoint_is_small_enough_to_ship():
    assert sum(path.stat().st_size for path in FOLDER.iterdir()) <= 12_000_000


def test_config_has_lladas_fields():
    config = json.loads((FOLDER / "config.json").read_text())
    assert config == llada_config(Shape())
    assert config["model_type"] == "llada"
    assert config["mask_token_id"] == MASK == 2


def test_weights_have_lladas_names_and_shapes():
    weights = load_file(FOLDER / "model.safetensors")
    assert {weight.dtype for weight in weights.values()} == {torch.bfloat16}
    assert weights["model.transformer.wte.weight"].shape == (1024, 256)
    assert weights["model.transformer.ff_out.weight"].shape == (1024, 256)
    assert weights["model.transformer.blocks.5.ff_out.weight"].shape == (256, 768)
    assert weights["model.transformer.blocks.0.ff_proj.weight"].shape == (768, 256)
    assert len(weights) == 3 + 6 * 9
    assert sum(weight.numel() for weight in weights.values()) == 5_639_424


def test_the_stock_tokenizer_class_loads_it(tokenizer):
    from transformers import AutoTokenizer

    loaded = AutoTokenizer.from_pretrained(FOLDER, trust_remote_code=False)
    assert (loaded.eos_token_id, loaded.pad_token_id, loaded.bos_token_id) == (END, END, START)
    text = "Ada has 47 pens.\nA:1+2=3 #### 3"
    assert loaded(text)["input_ids"] == tokenizer.encode(text).ids
    assert loaded.convert_ids_to_tokens(MASK) == "<|mdm_mask|>"


@pytest.mark.parametrize(
    "text", ["", "12345", "tabs\tand\n\n  spaces  ", "naïve 数学 🙂", "a  b:  c"]
)
def test_text_survives_the_tokenizer(tokenizer, text):
    assert tokenizer.decode(tokenizer.encode(text).ids) == text


def test_digits_stand_alone(tokenizer):
    assert [tokenizer.decode([token]) for token in tokenizer.encode("4071").ids] == list("4071")


def test_values_of_facts_are_single_tokens(tokenizer):
    values = [value for values, _ in facts.ATTRIBUTES.values() for value in values]
    assert all(len(tokenizer.encode(f" {value}").ids) == 1 for value in values)


def test_examples_fit_their_windows(tokenizer):
    rng = Random(2)
    for _ in range(2000):
        item = corpus.example(rng)
        tokens, start = corpus.encoded(rng, tokenizer, item)
        assert start <= 64
        assert len(tokens) <= corpus.LONGEST
        if item.tail:
            assert len(tokens) - start in (corpus.WINDOW, *corpus.OTHER_WINDOWS)


def test_an_exported_network_is_what_the_loader_reads(tmp_path, tokenizer):
    torch.manual_seed(0)
    network = Network(Shape(layers=2)).to(torch.bfloat16).float()
    export_llada(network, tmp_path)
    save_tokenizer(tokenizer, tmp_path)
    tokens = torch.randint(3, 1024, (2, 40))
    visible = torch.ones(2, 1, 40, 40, dtype=torch.bool)
    loaded = load_model(str(tmp_path), device="cpu", dtype="float32")
    with torch.no_grad():
        ours, theirs = network(tokens, visible), loaded.logits(tokens)
    torch.testing.assert_close(ours, theirs, rtol=1e-4, atol=1e-5)
