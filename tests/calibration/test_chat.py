"""Prompts with masked answers."""

import json
from dataclasses import replace

import pytest
import torch

from dllm_sweep import load_model
from dllm_sweep.calibration import load
from dllm_sweep.errors import CalibrationError
from dllm_sweep.spec import CalibrationSpec

SPEC = CalibrationSpec(source="tiny-chat", samples=12, length=128, masking="chat")
TEMPLATE = "{% for m in messages %}<|{{ m.role }}|>{{ m.content }}{% endfor %}<|assistant|>"


@pytest.fixture(scope="module")
def model():
    return load_model("llada-tiny", device="cpu")


@pytest.fixture
def pairs(tmp_path):
    path = tmp_path / "pairs.jsonl"
    rows = [{"ask": "How many maps? " * n, "say": f"#### {n}"} for n in range(1, 9)]
    path.write_text("\n".join(map(json.dumps, rows)))
    return replace(SPEC, source=str(path), prompt_field="ask", answer_field="say", samples=8)


def tokens(model, text):
    return model.tokenizer(text, add_special_tokens=False)["input_ids"]


def test_conversations_are_padded_and_only_answers_are_masked(pairs, model):
    (batch,) = load(pairs, model, batch_size=8)
    mask_id, end = model.special.mask_id, model.special.end_ids[0]
    seen = set()
    for ids, shown, masked in zip(
        batch.input_ids.tolist(), batch.attention_mask.tolist(), batch.masked, strict=True
    ):
        size = sum(shown)
        assert shown == [1] * size + [0] * (len(ids) - size)
        for n in range(1, 9):
            prompt = tokens(model, "How many maps? " * n)
            answer = [*tokens(model, f"#### {n}"), end]
            if ids[: len(prompt)] == prompt and size == len(prompt) + len(answer):
                seen.add(n)
                assert not masked[: len(prompt)].any()
                pairs_of = zip(ids[len(prompt) : size], answer, strict=True)
                assert all(found in (wanted, mask_id) for found, wanted in pairs_of)
    assert seen == set(range(1, 9))


def test_every_answer_has_a_rate_of_its_own(model):
    (batch,) = load(replace(SPEC, samples=300), model, batch_size=300)
    answers = batch.attention_mask.bool()
    shares = batch.masked.sum(1) / answers.sum(1)
    assert shares.unique().numel() > 50


def test_prompts_without_room_for_an_answer_are_passed_over_and_answers_are_cut(pairs, model):
    size = len(tokens(model, "How many maps? " * 3))
    spec = replace(pairs, length=size + 1, samples=3)
    (batch,) = load(spec, model, batch_size=3)
    assert batch.attention_mask is None or int(batch.attention_mask.sum(1).max()) == size + 1
    assert batch.input_ids.shape == (3, size + 1)
    with pytest.raises(
        CalibrationError, match=f"3 of 8 prompts leave room for an answer in {size + 1}"
    ):
        load(replace(spec, samples=4), model, batch_size=4)


def test_the_checkpoints_chat_template_is_used_where_it_has_one(pairs):
    model = load_model("llada-tiny", device="cpu")
    model.tokenizer.chat_template = TEMPLATE
    (batch,) = load(replace(pairs, samples=1), model, batch_size=1)
    start = tokens(model, "<|user|>How")
    assert batch.input_ids[0, : len(start)].tolist() == start


def test_dreams_prompts_begin_with_begin_of_text(pairs):
    model = load_model("dream-tiny", device="cpu")
    (batch,) = load(pairs, model, batch_size=8)
    assert (batch.input_ids[:, 0] == model.special.bos_id).all()


def test_the_packages_conversations_need_no_network(model):
    batches = load(SPEC, model, batch_size=5)
    assert sum(len(batch.input_ids) for batch in batches) == 12
    assert any(bool(batch.masked.any()) for batch in batches)
    assert all(torch.equal(b.weights, b.attention_mask.float()) for b in batches)


def test_missing_columns_are_named_with_the_option_that_chooses_them(pairs, model):
    with pytest.raises(CalibrationError, match=r"no column 'answer'; set answer_field to .*say"):
        load(replace(pairs, answer_field="answer"), model, batch_size=4)
