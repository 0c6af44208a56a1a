"""The authors' samplers on random checkpoints: tokens, their order, and what they took."""

import json
from functools import cache
from pathlib import Path

import pytest
import torch

from dllm_sweep import load_model
from dllm_sweep.decoding import timeline
from dllm_sweep.decoding.origin import PLUGIN as ORIGIN
from dllm_sweep.decoding.sampler import sample
from dllm_sweep.decoding.window import Windows
from dllm_sweep.spec import DecodingSpec

DATA = Path(__file__).parents[1] / "data"
CASES = {
    case["id"]: case
    for case in json.loads((DATA / "sampler-golden" / "cases.json").read_text())["cases"]
}
JOINT = "dream_origin_batch2_seed3"
"""The one case in which several prompts draw from one stream of random numbers."""
ALONE = sorted(CASES.keys() - {JOINT})
ORDERED = [name for name in ALONE if "written_after_call" in CASES[name]]

load = cache(lambda name: load_model(str(DATA / name), device="cpu"))


def decode(case, **options):
    seeds = [case.get("seed", 0)] * len(case["prompts"])
    decoding = DecodingSpec(**case["decoding"])
    return sample(load(case["checkpoint"]), case["prompts"], decoding, seeds=seeds, **options)


def seen_masked(states, answer):
    """For each token, how many model calls saw its position without it."""
    windows = [state[-len(answer) :] for state in states]
    return [sum(window[place] != token for window in windows) for place, token in enumerate(answer)]


@pytest.mark.parametrize("name", ALONE)
def test_tokens_agree_with_the_authors_sampler(name):
    case = CASES[name]
    for one, expected in zip(decode(case), case["answers"], strict=True):
        assert list(one.tokens) == expected[: len(one.tokens)]
        if "tokens_forwarded" in case:
            assert one.forwards == one.steps == case["calls"]
            assert one.token_forwards == case["tokens_forwarded"]


@pytest.mark.parametrize("name", ORDERED)
def test_each_token_is_written_after_the_authors_model_call(name):
    case, states = CASES[name], []
    answers = decode(case, plain=True, on_step=lambda _, step, ids: states.append(ids))
    assert [list(one.tokens) for one in answers] == case["answers"]
    for prompt, answer, calls in zip(
        case["prompts"], case["answers"], case["written_after_call"], strict=True
    ):
        of_row = [state for state in states if state[: -len(answer)] == prompt]
        assert seen_masked(of_row, answer) == calls


def test_positions_are_drawn_in_the_authors_order_for_a_whole_batch():
    case = CASES[JOINT]
    decoding = DecodingSpec(**case["decoding"])
    stream = torch.Generator().manual_seed(case["seed"])
    sizes = [decoding.gen_length] * 2
    model = load(case["checkpoint"])
    windows = Windows(model, case["prompts"], sizes, decoding, [stream, stream])
    timeline.write(windows, ORIGIN)
    assert [list(one.tokens) for one in windows.generations()] == case["answers"]
