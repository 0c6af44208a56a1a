"""Estimates against what was measured on two cores, and how they grow."""

import random
from dataclasses import replace
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from dllm_sweep import costs, presets, workload
from dllm_sweep.plan import make_plan
from dllm_sweep.records import UnitTime
from dllm_sweep.spec import (
    FULL_PRECISION,
    DecodingSpec,
    ModelRef,
    ProtocolSpec,
    TaskSpec,
    TrialSpec,
)
from dllm_sweep.sweep_file import read

QUICKSTART = Path(__file__).parents[1] / "examples" / "quickstart.yaml"
MEASURED_S_PER_TRIAL = 24.1
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
    monkeypatch.setattr(costs, "machine_for", lambda *_: costs.CPU)
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
    some = estimate(TaskSpec(name="triviaqa", limit=workload.ITEMS))
    assert estimate(TaskSpec(name="triviaqa")) == some


def test_a_published_model_is_weighed_by_its_shapes_another_by_its_name():
    exact = costs.count_parameters(ModelRef(name="GSAI-ML/LLaDA-8B-Base"))
    assert exact == pytest.approx(8.016e9, rel=1e-3)
    assert costs.count_parameters(ModelRef(name="some/other-3B")) == 3e9
    assert costs.count_parameters(ModelRef(name="some/model")) == costs.UNKNOWN_PARAMETERS


STUDY_TOKENS = {
    "gsm8k": 3.4e8,
    "minerva_math": 6.5e8,
    "mbpp": 3.1e8,
    "humaneval": 5.6e7,
    "hellaswag": 5e8,
    "mmlu": 4e7,
}
"""Tokens that the study's protocol takes with LLaDA, counted by hand as items x steps (or draws x
answers) x length."""
SHORT_ANSWERS = ("arc_easy", "arc_challenge", "piqa", "winogrande")
SHORT_ANSWERS_TOKENS = 1e8


def paper_tokens(name, *, plain):
    settings = presets.load("paper").settings(name, "llada")
    decoding = settings.decoding or DecodingSpec()
    task = TaskSpec(name=name, shots=settings.shots, draws=settings.draws or 1)
    return workload.task_tokens(task, decoding, plain=plain)


@pytest.mark.parametrize("task", STUDY_TOKENS)
def test_the_studys_tasks_are_counted_within_a_factor_of_one_and_a_half(task):
    assert 1 / 1.5 < paper_tokens(task, plain=True) / STUDY_TOKENS[task] < 1.5


def test_the_short_answers_are_counted_within_a_factor_of_one_and_a_half():
    counted = sum(paper_tokens(task, plain=True) for task in SHORT_ANSWERS)
    assert 1 / 1.5 < counted / SHORT_ANSWERS_TOKENS < 1.5


def test_draws_that_look_alike_are_counted_once():
    assert paper_tokens("mmlu", plain=False) == pytest.approx(paper_tokens("mmlu", plain=True) / 4)
    assert paper_tokens("arc_easy", plain=False) < paper_tokens("arc_easy", plain=True) / 5
    assert paper_tokens("hellaswag", plain=False) <= paper_tokens("hellaswag", plain=True)


@pytest.mark.parametrize(("estimator", "counts"), [("llada", (1, 2, 3)), ("dream", (0, 1, 2, 3))])
def test_different_masks_are_expected_as_often_as_they_are_drawn(estimator, counts):
    generator, tokens, draws, rounds = random.Random(0), range(3), 5, 4000
    seen = 0
    for _ in range(rounds):
        masks = {
            frozenset(generator.sample(tokens, generator.choice(counts))) for _ in range(draws)
        }
        seen += len(masks - {frozenset()})
    assert workload.distinct_masks(draws, 3, estimator) == pytest.approx(seen / rounds, rel=0.03)


@pytest.mark.parametrize(
    ("changes", "share"),
    [
        ({"cfg_scale": 1.0}, 2.0),
        ({"threshold": 0.9}, 1 / 3),
        ({"cache": "dual"}, (8 * 356 + 248 * 32) / (256 * 356)),
        ({"cache": "prefix"}, (8 * 356 + 248 * 144) / (256 * 356)),
    ],
)
def test_options_of_decoding_cost_what_they_forward(changes, share):
    plain = DecodingSpec(gen_length=256, steps=256, block_length=32)
    tokens = workload.generation_tokens(plain, 100)
    assert tokens == 256 * 356
    changed = workload.generation_tokens(replace(plain, **changes), 100)
    assert changed == pytest.approx(share * tokens)


def test_a_limit_holds_for_each_member_of_a_group():
    assert workload.items_of(TaskSpec(name="mmlu", limit=20)) == 57 * 20
    assert workload.items_of(TaskSpec(name="minerva_math")) == 5000


def test_float32_is_slower_on_a_gpu_and_not_on_a_cpu():
    spec = large("gsm8k")
    half = replace(spec, protocol=replace(spec.protocol, dtype="bfloat16"))
    (unit,) = spec.units()
    for machine, factor in ((costs.GPU, 8), (costs.CPU, 1)):
        both = [costs.estimate_unit_s(one, unit, 8e9, machine) for one in (spec, half)]
        assert both[0] == pytest.approx(factor * both[1])


def large(task, *, limit=None, method="fp", model="some/model-8b"):
    return TrialSpec(
        model=ModelRef(name=model),
        method=method,
        scheme=FULL_PRECISION,
        protocol=ProtocolSpec(tasks=(TaskSpec(name=task, limit=limit),), outliers=None),
    )


def own_task(tmp_path, metric="acc", aggregation="mean", items=1000):
    path = tmp_path / "own.yaml"
    path.write_text(
        "task: own\ndataset_path: json\ndataset_kwargs:\n  data_files:\n    test: own.jsonl\n"
        "output_type: generate_until\n"
        f"metric_list:\n  - metric: {metric}\n    aggregation: {aggregation}\n"
    )
    (tmp_path / "own.jsonl").write_text("{}\n" * items)
    return str(path)


def test_a_long_task_is_cut_into_shards_of_about_twenty_minutes(tmp_path):
    spec = large(own_task(tmp_path))
    machine = costs.Machine(flop_per_s=1.5e12, start_s=5, bytes_per_s=2e9)
    whole_s = costs.estimate_unit_s(spec, spec.units()[0], 8e9, machine)
    units = costs.plan_units(spec, 8e9, machine)
    assert whole_s > costs.SHARD_S
    assert len(units) > 1
    assert sum(unit.estimated_s for unit in units) == pytest.approx(whole_s, rel=1e-3)
    assert max(unit.estimated_s for unit in units) <= costs.SHARD_S
    assert [unit.unit.shard for unit in units] == list(range(len(units)))
    assert {unit.unit.shards for unit in units} == {len(units)}


def test_a_task_is_never_cut_into_more_shards_than_it_has_items(tmp_path):
    slow = costs.Machine(flop_per_s=1e9, start_s=0, bytes_per_s=1e12)
    assert len(costs.plan_units(large(own_task(tmp_path, items=3)), 8e9, slow)) == 3
    assert len(costs.plan_units(large(own_task(tmp_path), limit=2), 8e9, slow)) == 2


def test_a_task_that_is_no_mean_of_its_items_is_not_cut(tmp_path):
    slow = costs.Machine(flop_per_s=1e9, start_s=0, bytes_per_s=1e12)
    task = own_task(tmp_path, metric="f1", aggregation="f1")
    assert len(costs.plan_units(large(task), 8e9, slow)) == 1


def test_shards_are_long_against_loading_the_weights(tmp_path):
    slow_disk = costs.Machine(flop_per_s=1e9, start_s=1000, bytes_per_s=1e12)
    units = costs.plan_units(large(own_task(tmp_path)), 8e9, slow_disk)
    assert min(unit.estimated_s for unit in units) > 5 * costs.load_s(8e9, slow_disk)


def seen(wall_s, work="gsm8k", *, model="m", method="rtn", scheme="w4a16", device="H100"):
    return UnitTime(
        model=model,
        method=method,
        scheme=scheme,
        kind="evaluate",
        task=work,
        device=device,
        estimated_s=10.0,
        wall_s=wall_s,
    )


def factor(experience, work="gsm8k", *, model="m", method="rtn", scheme="w4a16", device="H100"):
    return experience.factor(
        costs.Work(model=model, method=method, scheme=scheme, work=work, device=device)
    )


def test_without_experience_the_table_is_believed():
    assert factor(costs.Experience()) == 1.0


def test_a_unit_like_those_seen_takes_as_long_as_they_did():
    experience = costs.Experience([seen(30.0), seen(40.0, method="quarot")])
    assert factor(experience) == pytest.approx(3.0)
    assert factor(experience, method="quarot") == pytest.approx(4.0)


def test_what_was_never_seen_is_judged_by_what_is_most_like_it():
    experience = costs.Experience([seen(20.0), seen(80.0, "mmlu", model="other")])
    assert factor(experience, scheme="w2a16") == pytest.approx(2.0)
    assert factor(experience, method="gptq") == pytest.approx(2.0)
    assert factor(experience, "mmlu") == pytest.approx(8.0)
    assert factor(experience, "unseen") == pytest.approx(4.0), "the geometric mean of both"
    assert factor(experience, device="A100") == pytest.approx(2.0)


def test_quantizing_says_nothing_of_evaluating():
    quantized = UnitTime(
        model="m",
        method="rtn",
        scheme="w4a16",
        kind="quantize",
        task="",
        device="H100",
        estimated_s=1.0,
        wall_s=100.0,
    )
    experience = costs.Experience([quantized])
    assert factor(experience) == 1.0
    assert factor(experience, "quantize") == pytest.approx(100.0)


def test_the_newest_units_count_most():
    experience = costs.Experience([seen(10.0)] * 50 + [seen(40.0)] * 15)
    assert factor(experience) == pytest.approx(4.0, rel=0.1)


@given(factors=st.lists(st.floats(0.1, 10), min_size=25, max_size=25))
def test_the_spread_is_what_learning_leaves_unexplained(factors):
    steady = costs.Experience([seen(10 * factors[0])] * 25)
    assert steady.spread == pytest.approx(0.0, abs=1e-6)
    assert costs.Experience([seen(10 * f) for f in factors]).spread >= 0


def test_before_much_is_known_the_usual_spread_is_assumed():
    assert costs.Experience([seen(10.0)]).spread == 0.25


def test_what_takes_no_time_teaches_nothing():
    assert costs.Experience([seen(0.0)]).learnt == 0
