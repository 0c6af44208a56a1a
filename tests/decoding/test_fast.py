"""Fast-dLLM's options, guidance and the end-of-text switches beyond the golden cases."""

import pytest
import torch
from hypothesis import assume, given
from hypothesis import strategies as st

from dllm_sweep import generate
from dllm_sweep.decoding.blockwise import how_many, schedule
from dllm_sweep.decoding.sampler import sample
from dllm_sweep.spec import DecodingSpec

PROMPTS = [[5, 9, 17, 33], [250], [7] * 13, [3, 1, 4, 1, 5, 9, 2, 6]]
OPTIONS = {"gen_length": 16, "block_length": 8, "steps": 8}


def counts(probabilities, least=1, **options):
    confidence = torch.tensor([probabilities], dtype=torch.float64).logit()
    valid = torch.ones_like(confidence, dtype=torch.bool)
    return int(how_many(confidence, valid, least, DecodingSpec(**options)))


probabilities = st.lists(st.floats(0.01, 0.99), min_size=1, max_size=12)


@given(probabilities, st.floats(0.05, 1.0))
def test_a_threshold_takes_all_that_reach_it_and_at_least_one(values, threshold):
    assume(all(abs(one - threshold) > 1e-9 for one in values))
    assert counts(values, threshold=threshold) == max(1, sum(one >= threshold for one in values))


@given(probabilities, st.floats(0.05, 4.0))
def test_a_factor_takes_the_most_that_satisfy_its_bound_and_leaves_no_single_one(values, factor):
    surest = sorted(values, reverse=True)
    products = [(n + 1) * (1 - one) for n, one in enumerate(surest, start=1)]
    assume(all(abs(one - factor) > 1e-9 for one in products))
    most = max([1, *(n for n, one in enumerate(products, start=1) if one < factor)])
    assert counts(values, factor=factor) == (len(values) if most == len(values) - 1 else most)


def test_without_either_the_schedule_is_followed():
    assert counts([0.9, 0.9, 0.9], least=2) == 2
    assert schedule(DecodingSpec(gen_length=16, block_length=8, steps=6)) == [3, 3, 2]
    assert schedule(DecodingSpec(gen_length=16, block_length=8, steps=6), first_alone=True) == [
        1,
        4,
        3,
    ]


@pytest.mark.parametrize("cache", ["none", "prefix", "dual"])
@pytest.mark.parametrize("adaptive", [{}, {"threshold": 0.05}, {"factor": 1.9}])
def test_answers_do_not_depend_on_the_batch(model, shifted, cache, adaptive):
    decoding = DecodingSpec(**OPTIONS, cache=cache, **adaptive)
    for one in (model, shifted):
        assert sample(one, PROMPTS, decoding, batch_size=1) == sample(one, PROMPTS, decoding)


def test_the_first_token_of_a_block_of_a_shifted_model_is_read_before_the_block(shifted):
    # The block's first model call is a whole one: it agrees with the sampler without a cache.
    cached = DecodingSpec(gen_length=8, block_length=4, steps=4, cache="dual")
    (one,) = sample(shifted, PROMPTS[:1], cached, plain=True)
    ids = torch.tensor([[*PROMPTS[0], *[shifted.special.mask_id] * 8]])
    assert one.tokens[0] == int(shifted.logits(ids)[0, len(PROMPTS[0])].argmax())


def test_guidance_of_zero_strength_is_none(model):
    assert generate(model, PROMPTS, cfg_scale=0.0, **OPTIONS) == generate(model, PROMPTS, **OPTIONS)
    assert generate(model, PROMPTS, cfg_scale=2.0, **OPTIONS) != generate(model, PROMPTS, **OPTIONS)


def end_instead_of(model, monkeypatch, token):
    special = type(model.special)(
        mask_id=model.special.mask_id, end_ids=(token,), pad_id=model.special.pad_id
    )
    monkeypatch.setattr(model, "special", special)


def test_forbidden_end_is_never_written(model, monkeypatch):
    (usual,) = generate(model, PROMPTS[:1], **OPTIONS)
    end_instead_of(model, monkeypatch, usual[0])
    (answer,) = generate(model, PROMPTS[:1], forbid_end=True, **OPTIONS)
    assert usual[0] not in answer


def test_deferred_end_is_written_last(model, monkeypatch):
    options = DecodingSpec(gen_length=8, block_length=8, steps=8)
    seen = []
    (usual,) = sample(
        model, PROMPTS[:1], options, plain=True, on_step=lambda _, step, ids: seen.append(ids[-8:])
    )
    first = next(place for place, one in enumerate(seen[1]) if one != model.special.mask_id)
    end_instead_of(model, monkeypatch, usual.tokens[first])
    seen.clear()
    deferred = DecodingSpec(gen_length=8, block_length=8, steps=8, defer_end=True)
    sample(
        model, PROMPTS[:1], deferred, plain=True, on_step=lambda _, step, ids: seen.append(ids[-8:])
    )
    assert seen[1][first] == model.special.mask_id


def test_a_deferred_end_leaves_the_others_the_probabilities_without_it(model, monkeypatch):
    prompt, end, size = [79, 229], 13, 8
    ids = torch.tensor([[*prompt, *[model.special.mask_id] * size]])
    logits = model.logits(ids)[0, len(prompt) :].double()
    usual = int(logits.softmax(-1).amax(-1).argmax())
    logits[:, end] = -torch.inf
    surest = int(logits.softmax(-1).amax(-1).argmax())
    assert surest != usual
    end_instead_of(model, monkeypatch, end)
    decoding = DecodingSpec(gen_length=size, block_length=size, steps=size, defer_end=True)
    seen = []
    sample(model, [prompt], decoding, plain=True, on_step=lambda _, step, ids: seen.append(ids))
    written = [one != model.special.mask_id for one in seen[1][len(prompt) :]]
    assert written == [place == surest for place in range(size)]
