"""What is not computed changes nothing that is scored."""

import pytest

from dllm_sweep import generate, load_model
from dllm_sweep.decoding import window
from dllm_sweep.decoding.sampler import sample
from dllm_sweep.spec import DecodingSpec

TEXTS = [
    "June has 19 shells. The pile grows to 2 times its size. June buys 50 more. June loses 29."
    " How many shells are there now?\nA:",
    "1",
]
DECODINGS = [
    DecodingSpec(gen_length=64, steps=8, block_length=32),
    DecodingSpec(gen_length=32, steps=8, block_length=8, temperature=0.5, algorithm="random"),
    DecodingSpec(gen_length=32, steps=8, block_length=8, cfg_scale=0.5, threshold=0.9),
    DecodingSpec(gen_length=32, steps=8, sampler="timeline", algorithm="entropy"),
    DecodingSpec(gen_length=32, steps=8, sampler="timeline", algorithm="origin", temperature=0.5),
]


@pytest.fixture(scope="module")
def trained():
    return load_model("llada-tiny", device="cpu")


@pytest.fixture(scope="module")
def prompts(trained):
    return [trained.tokenizer(text)["input_ids"] for text in TEXTS]


def cut(model, tokens):
    """The tokens before end-of-text: what is scored."""
    ends = [place for place, one in enumerate(tokens) if one in model.special.end_ids]
    return tuple(tokens[: ends[0]]) if ends else tuple(tokens)


@pytest.mark.parametrize("decoding", DECODINGS, ids=lambda one: one.algorithm)
def test_saved_answers_are_the_plain_ones_up_to_end_of_text(trained, prompts, decoding):
    plain = sample(trained, prompts, decoding, plain=True)
    for size in (1, None):
        saved = sample(trained, prompts, decoding, batch_size=size)
        for one, full in zip(saved, plain, strict=True):
            assert one.tokens == full.tokens[: len(one.tokens)]
            assert cut(trained, one.tokens) == cut(trained, full.tokens)
            assert one.token_forwards <= full.token_forwards
    assert [len(one.tokens) for one in plain] == [decoding.gen_length] * len(prompts)


def test_blocks_behind_a_finished_answer_cost_nothing(trained, prompts):
    decoding = DecodingSpec(gen_length=64, steps=16, block_length=32)
    (saved,) = sample(trained, prompts[:1], decoding)
    assert trained.tokenizer.decode(cut(trained, saved.tokens)).endswith("#### 59")
    assert saved.steps == saved.forwards == 8
    assert saved.token_forwards == 8 * (len(prompts[0]) + 64)


def test_a_stop_rule_sees_growing_fronts_without_masks(trained, prompts):
    fronts = []

    def stop(front):
        fronts.append(list(front))
        return len(front) >= 5

    decoding = DecodingSpec(gen_length=32, steps=32, block_length=8)
    (one,) = sample(trained, prompts[:1], decoding, stop=stop)
    assert all(trained.special.mask_id not in front for front in fronts)
    assert [len(front) for front in fronts] == sorted({len(front) for front in fronts})
    assert 5 <= len(one.tokens) == len(fronts[-1]) <= 8
    whole = generate(trained, prompts[:1], gen_length=32, steps=32, block_length=8)[0]
    assert list(one.tokens) == whole[: len(one.tokens)]


def test_answers_know_what_they_took(trained, prompts):
    for guided, scale in ((1, 0.0), (2, 0.5)):
        options = DecodingSpec(gen_length=8, steps=4, block_length=8, cfg_scale=scale)
        for one, prompt in zip(sample(trained, prompts, options, plain=True), prompts, strict=True):
            assert (one.steps, one.forwards) == (4, 4 * guided)
            assert one.token_forwards == one.forwards * (len(prompt) + 8)


def test_what_an_answer_took_does_not_depend_on_the_batch(trained, prompts):
    decoding = DecodingSpec(gen_length=16, steps=8, block_length=8)
    assert sample(trained, prompts, decoding, batch_size=1) == sample(trained, prompts, decoding)


def test_logits_in_small_parts_give_the_same_answers(trained, prompts, monkeypatch):
    decoding = DecodingSpec(gen_length=8, steps=4, block_length=8, temperature=0.3)
    whole = sample(trained, prompts, decoding)
    monkeypatch.setattr(window, "_WIDE", 1)
    assert sample(trained, prompts, decoding) == whole


def test_more_places_than_are_masked_give_the_same_answers(trained, prompts, monkeypatch):
    chosen = (DECODINGS[1], DECODINGS[4])
    usual = [sample(trained, prompts, decoding) for decoding in chosen]
    monkeypatch.setitem(window._MULTIPLE, "cpu", 16)
    assert [sample(trained, prompts, decoding) for decoding in chosen] == usual


def test_prompts_may_hold_mask_tokens(trained, prompts):
    prompt = [*prompts[0], trained.special.mask_id, *prompts[1]]
    decoding = DecodingSpec(gen_length=8, steps=4, block_length=8)
    (one,) = sample(trained, [prompt], decoding, plain=True)
    assert one.forwards == 4
    assert trained.special.mask_id not in one.tokens
