"""examples/quickstart.yaml has all methods, and its page's own measure shows what the page says."""

import re
from pathlib import Path

import pytest

import dllm_sweep
from dllm_sweep.plan import make_plan
from dllm_sweep.spec import CalibrationSpec
from dllm_sweep.sweep_file import read

ROOT = Path(__file__).parents[2]
QUICKSTART = ROOT / "examples" / "quickstart.yaml"
PAGE = ROOT / "docs" / "what-the-quickstart-shows.md"
QUICKER = {"quarot": {"solver": "rtn", "mse_clip": False}, "duquant": {"steps": 16, "searches": 1}}
"""Parameters that cost the test time and change no order."""


@pytest.fixture(scope="module")
def trials():
    return make_plan(read(QUICKSTART)).trials


@pytest.fixture(scope="module")
def shown():
    """What the page's Python defines; it is run as it stands there."""
    (code,) = re.findall(r"```python\n(.*?)```", PAGE.read_text(encoding="utf-8"), flags=re.DOTALL)
    names = {}
    exec(compile(code, PAGE.name, "exec"), names)
    return names


@pytest.fixture(scope="module")
def divergence(trials, shown):
    """The page's measure of a trial of the quickstart, on some of the page's masked text."""

    def of(model, method, scheme, samples=4):
        ours = (one.spec for one in trials if one.spec.model.name == model)
        (spec,) = (s for s in ours if s.method == method and str(s.scheme).startswith(scheme))
        quantized = dllm_sweep.quantize(
            dllm_sweep.load_model(model, device="cpu", dtype="float32"),
            method=method,
            scheme=spec.scheme,
            calibration=CalibrationSpec(samples=samples, masking="uniform"),
            **dict(spec.parameters) | QUICKER.get(method, {}),
        )
        return shown["divergence"](shown["full"], quantized, shown["batches"][:1])

    return of


def test_the_leaderboard_has_all_six_methods_and_no_trial_is_skipped(trials):
    methods = {trial.spec.method for trial in trials}
    assert methods == {"fp", "rtn", "gptq", "awq", "smoothquant", "quarot", "duquant"}
    baselines = {trial.spec.model.name for trial in trials if trial.spec.is_baseline}
    assert baselines == {"llada-tiny", "llada-tiny-outliers"}
    assert all(trial.skip_reason is None for trial in trials)


def test_planted_outliers_ruin_rounding_smoothing_helps_and_rotations_help_most(divergence):
    found = {
        method: divergence("llada-tiny-outliers", method, "w4a4")
        for method in ("rtn", "smoothquant", "quarot", "duquant")
    }
    assert found["rtn"] > 2 * found["smoothquant"]
    assert found["smoothquant"] > 2 * max(found["quarot"], found["duquant"])


def test_weights_alone_lose_a_fifth_of_that_at_most(divergence):
    ruined = divergence("llada-tiny-outliers", "rtn", "w4a4")
    assert divergence("llada-tiny-outliers", "rtn", "w4a16") < 0.2 * ruined


def test_two_bits_break_rounding_and_gptq_gives_much_of_it_back(divergence):
    broken = divergence("llada-tiny", "rtn", "w2a16")
    assert broken > 10 * divergence("llada-tiny", "rtn", "w4a16")
    assert divergence("llada-tiny", "gptq", "w2a16", samples=24) < 0.7 * broken
