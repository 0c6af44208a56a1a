"""examples/quickstart.yaml has all methods, and shows what its page says it shows."""

import json
from pathlib import Path

import pytest
import torch

import dllm_sweep
from dllm_sweep.evaluation import tasks
from dllm_sweep.plan import make_plan
from dllm_sweep.spec import CalibrationSpec
from dllm_sweep.sweep_file import read

QUICKSTART = Path(__file__).parents[2] / "examples" / "quickstart.yaml"
ITEMS, WINDOW, END = 24, 32, 0
QUICKER = {
    "quarot": {"solver": "rtn", "mse_clip": False},
    "duquant": {"steps": 16},
}
"""Parameters that cost the test time and change no order."""


@pytest.fixture(scope="module")
def trials():
    return [trial.spec for trial in make_plan(read(QUICKSTART)).trials]


def load(name):
    return dllm_sweep.load_model(name, device="cpu", dtype="float32")


def masked_states(model):
    """States of denoising: questions that the model never saw, with part of the answers hidden."""
    generator = torch.Generator().manual_seed(0)
    file = Path(tasks.__file__).parent / "tiny_math.jsonl"
    items = [json.loads(line) for line in file.read_text().splitlines()[:ITEMS]]
    texts = [
        [model.tokenizer(item[k])["input_ids"] for k in ("prompt", "response")] for item in items
    ]
    rows = [prompt + answer + [END] * (WINDOW - len(answer)) for prompt, answer in texts]
    length = max(map(len, rows))
    ids = torch.tensor([[END] * (length - len(row)) + row for row in rows])
    shown = torch.tensor([[0] * (length - len(row)) + [1] * len(row) for row in rows])
    hidden = torch.rand(ids.shape, generator=generator) < torch.rand(ITEMS, 1, generator=generator)
    hidden[:, :-WINDOW] = False
    return ids.masked_fill(hidden, model.special.mask_id), shown, hidden


def predictions(model, states):
    ids, shown, hidden = states
    return model.logits(ids, shown)[hidden].log_softmax(-1)


@pytest.fixture(scope="module")
def divergence(trials):
    """Mean Kullback-Leibler divergence from full precision over masked positions, by trial."""
    states = masked_states(load("llada-tiny"))
    full = predictions(load("llada-tiny"), states)

    def of(model, method, scheme, samples=4):
        of_both = (s for s in trials if (s.model.name, s.method) == (model, method))
        (spec,) = (s for s in of_both if str(s.scheme).startswith(f"{scheme}-"))
        parameters = dict(spec.parameters) | QUICKER.get(method, {})
        quantized, text = load(model), CalibrationSpec(samples=samples, masking="uniform")
        dllm_sweep.quantize(
            quantized, method=method, scheme=spec.scheme, calibration=text, **parameters
        )
        got = predictions(quantized, states)
        return float((full.exp() * (full - got)).sum(-1).mean())

    return of


def test_the_leaderboard_has_all_six_methods_and_no_trial_is_skipped(trials):
    assert {spec.method for spec in trials} == {
        "fp",
        "rtn",
        "gptq",
        "awq",
        "smoothquant",
        "quarot",
        "duquant",
    }
    assert {spec.model.name for spec in trials if spec.is_baseline} == {
        "llada-tiny",
        "llada-tiny-outliers",
    }
    assert all(trial.skip_reason is None for trial in make_plan(read(QUICKSTART)).trials)


def test_planted_outliers_ruin_rounding_smoothing_helps_and_rotations_help_most(divergence):
    model = "llada-tiny-outliers"
    found = {
        method: divergence(model, method, "w4a4")
        for method in ("rtn", "smoothquant", "quarot", "duquant")
    }
    assert found["rtn"] > 5 * found["smoothquant"]
    assert found["smoothquant"] > 2 * max(found["quarot"], found["duquant"])
    assert found["rtn"] > 2 * divergence("llada-tiny", "rtn", "w4a4")


def test_weights_alone_hardly_suffer_from_outliers(divergence):
    assert divergence("llada-tiny-outliers", "rtn", "w4a16-g128") < 0.1


def test_two_bits_break_rounding_and_gptq_gives_some_of_it_back(divergence):
    broken = divergence("llada-tiny", "rtn", "w2a16-g128")
    assert broken > 10 * divergence("llada-tiny", "rtn", "w4a16-g128")
    assert divergence("llada-tiny", "gptq", "w2a16-g128", samples=24) < 0.9 * broken
