import json
from dataclasses import replace
from random import Random

import pytest
import torch
from safetensors.torch import load_file

from dllm_sweep.models import load_model
from dllm_sweep.models.locate import EMBEDDED
from dllm_sweep.tiny import corpus, facts, masking, measure
from dllm_sweep.tiny.export import export
from dllm_sweep.tiny.families import FAMILIES
from dllm_sweep.tiny.network import Network
from dllm_sweep.tiny.tokenizer import END, MASK, START, load_tokenizer, save_tokenizer

FOLDER = EMBEDDED / "llada-tiny"
DREAM = EMBEDDED / "dream-tiny"


@pytest.fixture(scope="module")
def tokenizer():
    return load_tokenizer(FOLDER)


@pytest.mark.parametrize("folder", [FOLDER, DREAM])
def test_the_checkpoint_is_small_enough_to_ship(folder):
    assert sum(path.stat().st_size for path in folder.iterdir()) <= 12_000_000


@pytest.mark.parametrize("name", FAMILIES)
def test_config_has_the_familys_fields(name):
    config = json.loads((EMBEDDED / f"{name}-tiny" / "config.json").read_text())
    family = FAMILIES[name]
    assert config == family.layout.config(family.shape)
    assert config["model_type"].lower() == name
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


def test_dream_weights_have_qwens_names_fewer_keys_and_biases_that_count():
    weights = load_file(DREAM / "model.safetensors")
    assert weights["lm_head.weight"].shape == weights["model.embed_tokens.weight"].shape
    assert not torch.equal(weights["lm_head.weight"], weights["model.embed_tokens.weight"])
    assert weights["model.layers.0.self_attn.k_proj.weight"].shape == (64, 256)
    assert weights["model.layers.5.mlp.down_proj.weight"].shape == (256, 896)
    biases = [weight for name, weight in weights.items() if name.endswith("bias")]
    assert len(biases) == 3 * 6
    assert all(bias.abs().max() > 0.05 for bias in biases)
    assert len(weights) == 3 + 6 * 12
    assert sum(weight.numel() for weight in weights.values()) == 5_641_728


def test_both_models_share_their_tokenizer():
    for name in ("tokenizer.json", "tokenizer_config.json"):
        assert (FOLDER / name).read_bytes() == (DREAM / name).read_bytes()


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


@pytest.mark.parametrize("name", FAMILIES)
def test_an_exported_network_is_what_the_loader_reads(name, tmp_path, tokenizer):
    torch.manual_seed(0)
    family = FAMILIES[name]
    network = Network(replace(family.shape, layers=2))
    for key, weight in network.named_parameters():
        if key.endswith("bias"):
            torch.nn.init.normal_(weight, std=0.5)
    network = network.to(torch.bfloat16).float()
    export(network, tmp_path, family.layout)
    save_tokenizer(tokenizer, tmp_path)
    tokens = torch.randint(3, 1024, (2, 40))
    visible = torch.ones(2, 1, 40, 40, dtype=torch.bool)
    loaded = load_model(str(tmp_path), device="cpu", dtype="float32")
    with torch.no_grad():
        ours, theirs = network(tokens, visible), loaded.logits(tokens)
    ours = masking.read_earlier(ours) if family.shifted else ours
    torch.testing.assert_close(ours, theirs, rtol=1e-4, atol=1e-5)


def test_a_framed_example_starts_with_a_token_that_is_never_hidden(tokenizer):
    rng = Random(3)
    rows = [corpus.encoded(rng, tokenizer, corpus.example(rng), framed=True) for _ in range(500)]
    assert all(start > 0 for _, start in rows)
    opened = [tokens[0] == START for tokens, _ in rows]
    assert 0.4 < sum(opened) / len(rows) < 0.7
    assert all(START not in tokens[1:] for tokens, _ in rows)


def test_both_models_know_the_answer_to_a_sum():
    prompt = "Ada has 40 coins. Ada finds 2 more. Ada loses 10. How many coins are there now?\nA:"
    wanted = "40+2=42; 42-10=32 #### 32"
    for name in FAMILIES:
        model = load_model(f"{name}-tiny", device="cpu")
        ids = [*model.tokenizer(prompt)["input_ids"], *model.tokenizer(wanted)["input_ids"]]
        hidden = len(ids) - 1
        shown = torch.tensor([[*ids[:hidden], MASK, END]])
        assert int(model.logits(shown)[0, hidden].argmax()) == ids[hidden]


@pytest.mark.parametrize("name", FAMILIES)
def test_a_checkpoint_is_measured_with_its_familys_sampler(name):
    model, tokenizer = load_model(f"{name}-tiny", device="cpu"), load_tokenizer(FOLDER)
    problems = measure.sample_problems("chain-2", 6, seed=1)
    said = measure.continuations(model, tokenizer, [one.prompt for one in problems], steps=16)
    right = [
        measure.answer_in(text) == one.answer for text, one in zip(said, problems, strict=True)
    ]
    assert all(right)
    asked = measure.sample_questions("frequent", 6, seed=1)
    assert sum(measure.chosen_rightly(model, tokenizer, asked)) >= 5
