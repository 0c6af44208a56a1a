"""Estimates against what was measured on two cores, and how they grow."""

from pathlib import Path

import pytest

from dllm_sweep import costs
from dllm_sweep.plan import make_plan
from dllm_sweep.spec import FULL_PRECISION, ModelRef, ProtocolSpec, TaskSpec, TrialSpec
from dllm_sweep.sweep_file import read

QUICKSTART = Path(__file__).parents[1] / "examples" / "quickstart.yaml"
MEASURED_S_PER_TRIAL = 31.7
"""Mean wall time of a trial of the quickstart with two workers on two cores."""


def estimate(task, model="llada-tiny"):
    spec = TrialSpec(
        model=ModelRef(name=model),
        method="fp",
        scheme=FULL_PRECISION,
        protocol=ProtocolSpec(tasks=(task,), outliers=None),
    )
    return costs.estimate_trial_s(spec, costs.count_parameters(spec.model), costs.CPU)


def test_the_quickstart_is_estimated_within_30_percent(monkeypatch):
    monkeypatch.setattr(costs, "machine_for", lambda gpus: costs.CPU)
    trials = make_plan(read(QUICKSTART)).trials
    estimated_s = sum(trial.estimated_s for trial in trials)
    assert estimated_s == pytest.approx(len(trials) * MEASURED_S_PER_TRIAL, rel=0.3)


def test_choices_cost_less_than_text():
    text, choices = (
        estimate(TaskSpec(name=name, limit=30)) for name in ("tiny_math", "tiny_facts")
    )
    assert choices < text / 3


def test_a_limit_above_the_items_of_a_task_costs_no_more():
    everything = estimate(TaskSpec(name="tiny_math"))
    assert estimate(TaskSpec(name="tiny_math", limit=10**6)) == everything


def test_a_task_of_lm_evals_own_is_taken_for_a_thousand_items():
    assert estimate(TaskSpec(name="gsm8k")) == estimate(TaskSpec(name="gsm8k", limit=costs.ITEMS))


def test_a_hub_model_is_weighed_by_its_name():
    assert costs.count_parameters(ModelRef(name="GSAI-ML/LLaDA-8B-Base")) == 8e9
    assert costs.count_parameters(ModelRef(name="some/model")) == costs.UNKNOWN_PARAMETERS
