"""The samplers on one GPU write what they write on a CPU: the authors' tokens."""

import json
from functools import cache
from pathlib import Path

import pytest

from dllm_sweep import load_model
from dllm_sweep.decoding.sampler import sample
from dllm_sweep.spec import DecodingSpec

pytestmark = pytest.mark.gpu

DATA = Path(__file__).parents[1] / "data"
CASES = {
    case["id"]: case
    for case in json.loads((DATA / "sampler-golden" / "cases.json").read_text())["cases"]
}
NAMES = sorted(CASES.keys() - {"dream_origin_batch2_seed3"})

load = cache(lambda name: load_model(str(DATA / name), device="cuda"))


@pytest.mark.parametrize("plain", [True, False])
@pytest.mark.parametrize("name", NAMES)
def test_tokens_are_those_of_the_authors_sampler(name, plain):
    case = CASES[name]
    seeds = [case.get("seed", 0)] * len(case["prompts"])
    decoding = DecodingSpec(**case["decoding"])
    answers = sample(load(case["checkpoint"]), case["prompts"], decoding, seeds=seeds, plain=plain)
    for one, expected in zip(answers, case["answers"], strict=True):
        assert list(one.tokens) == expected[: len(one.tokens)]


@pytest.mark.parametrize("checkpoint", ["llada-random", "dream-random"])
def test_bfloat16_decodes_in_every_way(checkpoint):
    model = load_model(str(DATA / checkpoint), device="cuda", dtype="bfloat16")
    for options in (
        {"block_length": 8, "temperature": 0.5, "cache": "dual"},
        {"block_length": 8, "cfg_scale": 0.5, "forbid_end": True, "defer_end": True},
        {"sampler": "timeline", "algorithm": "entropy", "temperature": 0.2, "top_p": 0.95},
        {"sampler": "timeline", "algorithm": "origin", "temperature": 0.2, "top_k": 5},
    ):
        decoding = DecodingSpec(gen_length=16, steps=8, **options)
        answers = sample(model, [[5, 9, 17], [33] * 9], decoding, plain=True)
        assert [len(one.tokens) for one in answers] == [16, 16]
