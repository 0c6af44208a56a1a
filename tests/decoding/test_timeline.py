import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from dllm_sweep import generate
from dllm_sweep.decoding.sampler import sample
from dllm_sweep.decoding.timeline import filtered, shares, transfer_count
from dllm_sweep.spec import DecodingSpec

PROMPTS = [[5, 9, 17, 33], [250], [7] * 13, [3, 1, 4, 1, 5, 9, 2, 6]]
SEEDS = [11, 12, 13, 14]
OPTIONS = {"gen_length": 12, "steps": 5}


@given(st.integers(1, 300), st.integers(1, 300))
def test_the_steps_write_every_position_and_none_twice(masked, steps):
    left = masked
    for share in shares(steps):
        count = transfer_count(left, share)
        assert 0 <= count <= left
        left -= count
    assert left == 0


@given(st.integers(1, 400))
def test_the_grid_falls_in_equal_steps_to_its_end(steps):
    kept = torch.cumprod(1 - shares(steps).double(), 0)
    times = 1 - (1 - 1e-3) * torch.arange(1, steps, dtype=torch.float64) / steps
    assert torch.allclose(kept[:-1], times, rtol=1e-3)
    assert kept[-1] == 0


@pytest.mark.parametrize(
    "options",
    [
        {"algorithm": "origin"},
        {"algorithm": "entropy", "temperature": 0.7, "top_p": 0.9, "top_k": 20},
        {"algorithm": "topk_margin"},
        {"algorithm": "maskgit_plus", "algorithm_temperature": 0.2},
        {"algorithm": "maskgit_plus", "threshold": 0.05, "steps": 4},
    ],
    ids=lambda options: options["algorithm"],
)
def test_answers_do_not_depend_on_batch_size_or_order(shifted, options):
    options = {**OPTIONS, **options}
    alone = generate(shifted, PROMPTS, seeds=SEEDS, batch_size=1, **options)
    assert generate(shifted, PROMPTS, seeds=SEEDS, **options) == alone
    backwards = generate(shifted, PROMPTS[::-1], seeds=SEEDS[::-1], batch_size=3, **options)
    assert backwards == alone[::-1]


def test_steps_that_write_nothing_ask_nothing(shifted):
    # As many steps as tokens: the first is due 0.999 of a token, which is rounded down.
    decoding = DecodingSpec(gen_length=8, steps=8, sampler="timeline", algorithm="entropy")
    (plain,) = sample(shifted, PROMPTS[:1], decoding, plain=True)
    (saved,) = sample(shifted, PROMPTS[:1], decoding)
    assert plain.tokens[: len(saved.tokens)] == saved.tokens
    assert (plain.forwards, saved.forwards) == (8, 7)


def test_more_steps_than_tokens_cost_no_more_than_the_tokens(shifted):
    decoding = DecodingSpec(gen_length=6, steps=60, sampler="timeline", algorithm="maskgit_plus")
    assert sample(shifted, PROMPTS[:1], decoding)[0].forwards <= 6


def test_a_low_threshold_writes_what_is_due_and_a_high_one_the_surest_alone(shifted):
    decoding = {"gen_length": 12, "steps": 4, "algorithm": "maskgit_plus", "sampler": "timeline"}
    low = sample(shifted, PROMPTS, DecodingSpec(**decoding, threshold=1e-9))
    high = sample(shifted, PROMPTS, DecodingSpec(**decoding, threshold=1.0))
    assert {one.forwards for one in low} == {4}
    assert {one.forwards for one in high} == {12}


@given(st.integers(0, 10_000), st.floats(0.05, 1.0), st.integers(1, 12), st.floats(0.1, 3.0))
def test_top_p_and_top_k_keep_the_likeliest_tokens(seed, top_p, top_k, temperature):
    generator = torch.Generator().manual_seed(seed)
    logits = torch.randn(10, generator=generator, dtype=torch.float64)
    decoding = DecodingSpec(top_p=top_p, top_k=top_k, temperature=temperature)
    kept = filtered(logits, decoding).isfinite()
    order = logits.argsort(descending=True)
    probability = (logits / temperature).softmax(0)[order]
    before = probability.cumsum(0) - probability
    nucleus = int((before <= top_p).sum()) if top_p < 1 else 10
    assert set(kept.nonzero()[:, 0].tolist()) == set(order[: min(nucleus, top_k)].tolist())


def test_greedy_answers_do_not_depend_on_top_p_and_top_k_where_only_the_order_is_read(shifted):
    options = {**OPTIONS, "algorithm": "maskgit_plus", "steps": 1}
    plain = generate(shifted, PROMPTS, **options)
    assert generate(shifted, PROMPTS, top_k=3, top_p=0.5, **options) == plain


def test_positions_that_tie_are_taken_as_the_authors_take_them_in_any_batch(shifted):
    # With one token left by top-p every position has probability 1.
    decoding = DecodingSpec(
        sampler="timeline", algorithm="maskgit_plus", gen_length=24, steps=7, top_p=1e-6
    )
    prompts = [[5, 9, 17], [40], [8] * 9]
    together = sample(shifted, prompts, decoding, plain=True)
    for prompt, one in zip(prompts, together, strict=True):
        assert sample(shifted, [prompt], decoding)[0].tokens == one.tokens
        assert list(one.tokens) == tied(shifted, prompt, decoding)


def tied(model, prompt, decoding):
    """Greedy tokens, written where torch.topk finds the equal ones."""
    mask = model.special.mask_id
    ids = torch.tensor([[*prompt, *[mask] * decoding.gen_length]])
    for share in shares(decoding.steps):
        masked = ids[0] == mask
        count = transfer_count(int(masked.sum()), share)
        best = model.logits(ids)[0].argmax(-1)
        sure = torch.where(masked, 1.0, -torch.inf).topk(count).indices
        ids[0, sure] = best[sure]
    return ids[0, len(prompt) :].tolist()
