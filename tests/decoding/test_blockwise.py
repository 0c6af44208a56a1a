import copy
from dataclasses import replace

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from dllm_sweep import generate, load_model
from dllm_sweep.decoding.blockwise import highest, transfer_counts
from dllm_sweep.errors import InputError, UnknownName

PROMPTS = [[5, 9, 17, 33], [250], [7] * 21, [3, 1, 4, 1, 5, 9, 2, 6], [100, 101]]
OPTIONS = {"gen_length": 16, "block_length": 8, "steps": 8}


@pytest.mark.parametrize("temperature", [0.0, 0.8])
@pytest.mark.parametrize("algorithm", ["low_confidence", "random"])
def test_answers_do_not_depend_on_batch_size_or_order(model, temperature, algorithm):
    options = {**OPTIONS, "temperature": temperature, "algorithm": algorithm}
    seeds = [11, 12, 13, 14, 15]
    alone = [
        generate(model, [prompt], seeds=[seed], **options)[0]
        for prompt, seed in zip(PROMPTS, seeds, strict=True)
    ]
    for size in (2, 5, None):
        assert generate(model, PROMPTS, seeds=seeds, batch_size=size, **options) == alone
    backwards = generate(model, PROMPTS[::-1], seeds=seeds[::-1], **options)
    assert backwards == alone[::-1]


def test_inputs_are_not_changed_and_answers_have_the_window_s_length(model):
    prompts = copy.deepcopy(PROMPTS)
    answers = generate(model, prompts, **OPTIONS)
    assert prompts == PROMPTS
    assert [len(answer) for answer in answers] == [16] * 5


def test_seeds_change_samples_and_only_samples(model):
    sampled = [generate(model, PROMPTS[:1], seeds=[seed], temperature=1.0)[0] for seed in (0, 1)]
    greedy = [generate(model, PROMPTS[:1], seeds=[seed])[0] for seed in (0, 1)]
    assert sampled[0] != sampled[1]
    assert greedy[0] == greedy[1]


def test_equal_prompts_are_sampled_apart_without_seeds(model):
    first, second = generate(model, [PROMPTS[0]] * 2, temperature=1.0)
    assert first != second


def test_an_empty_prompt_is_continued_beside_a_long_one(model):
    alone = generate(model, [[]], **OPTIONS)
    assert generate(model, [[], PROMPTS[2]], **OPTIONS)[:1] == alone


def test_a_mask_token_that_the_model_writes_is_a_mask_still_in_later_blocks(model, monkeypatch):
    prompt, mask = PROMPTS[0], 126
    monkeypatch.setattr(model, "special", replace(model.special, mask_id=mask))
    ids, masks = torch.tensor([[*prompt, *[mask] * 8]]), []
    for end in (8, 12):
        for _ in range(2):
            probability, tokens = model.logits(ids)[0].softmax(-1).max(-1)
            candidates = [place for place in range(4, end) if ids[0, place] == mask]
            for place in sorted(candidates, key=lambda one: -float(probability[one]))[:2]:
                ids[0, place] = tokens[place]
        masks.append([place for place in range(4, end) if ids[0, place] == mask])
    assert masks == [[6, 7], [7, 8, 10, 11]]
    answer = generate(model, [prompt], gen_length=8, block_length=4, steps=4)
    assert answer == [ids[0, 4:].tolist()]


def test_no_prompts_give_no_answers(model):
    assert generate(model, []) == []


def test_bfloat16_decodes(model):
    small = load_model(model.name, device="cpu", dtype="bfloat16")
    assert len(generate(small, PROMPTS[:2], **OPTIONS)[0]) == 16


def test_progress_counts_prompts(model):
    seen = []
    generate(model, PROMPTS, batch_size=2, progress=lambda *at: seen.append(at), **OPTIONS)
    assert seen == [(2, 5), (4, 5), (5, 5)]


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"gen_length": 32, "block_length": 12}, "block_length 12 does not divide"),
        ({"gen_length": 32, "block_length": 8, "steps": 6}, "6 do not divide into the 4 blocks"),
        ({"gen_length": 8, "block_length": 8, "steps": 16}, "more than the gen_length"),
        ({"steps": 0}, "at least 1"),
        ({"temperature": -1.0}, "temperature"),
        ({"temperature": float("nan")}, "temperature"),
        ({"batch_size": 0}, "batch_size"),
        ({"seeds": [1, 2]}, "2 seeds for 1 prompts"),
        ({"gen_length": 512, "block_length": 512, "steps": 512}, "more than the model's 512"),
    ],
)
def test_options_that_do_not_fit_are_refused(model, options, message):
    with pytest.raises(InputError, match=message):
        generate(model, [[1, 2]], **options)


def test_an_unknown_algorithm_is_refused_with_the_nearest(model):
    with pytest.raises(UnknownName, match="did you mean 'low_confidence'"):
        generate(model, [[1]], algorithm="low_confidense")


def test_a_token_outside_the_vocabulary_is_refused(model):
    with pytest.raises(InputError, match="prompt 1: token id 320"):
        generate(model, [[1], [320]])


@given(st.integers(1, 64), st.integers(1, 64))
def test_transfer_counts_share_all_positions_evenly(masked, steps):
    counts = transfer_counts(masked, steps)
    assert sum(counts) == masked
    assert counts == sorted(counts, reverse=True)
    assert max(counts) - min(counts) <= 1


def test_equal_confidences_are_taken_from_the_left():
    valid = torch.tensor([[True, False, True, True], [True, True, True, True]])
    chosen = highest(torch.zeros(2, 4, dtype=torch.float64), valid, torch.tensor([2, 3]))
    assert chosen.tolist() == [[True, False, True, False], [True, True, True, False]]


def test_what_is_not_masked_is_never_taken():
    confidence = torch.tensor([[5.0, -torch.inf, 2.0]], dtype=torch.float64)
    valid = torch.tensor([[False, True, True]])
    assert highest(confidence, valid, torch.tensor([3])).tolist() == [[False, True, True]]
