import json
import shutil
from dataclasses import replace

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from dllm_sweep.errors import InputError, SweepFileError
from dllm_sweep.plan import canonical_scheme, make_plan
from dllm_sweep.records import TrialRow, TrialState
from dllm_sweep.spec import QuantScheme
from dllm_sweep.standings import standings
from dllm_sweep.sweep_file import parse

BASE = {
    "models": ["toy"],
    "methods": ["rtn"],
    "schemes": ["w4a16-g128"],
    "tasks": ["one.yaml"],
    "calibration": "text.txt",
    "outliers": {"source": "text.txt"},
}
SCHEMES = ("w4a16-g128", "w3a16-g128", "w2a16-g64", "w8a8", "w4a4", "w4a16-g128-sym")
SLOW_FIXTURE = settings(
    max_examples=25, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture]
)


@pytest.fixture
def folder(tmp_path):
    """Two models and two tasks of the user's own, beside the sweep file."""
    for name in ("toy", "toy-two"):
        (tmp_path / name).mkdir()
        config = {"model_type": "llada", "name": name}
        (tmp_path / name / "config.json").write_text(json.dumps(config))
    for name in ("one.yaml", "two.yaml"):
        (tmp_path / name).write_text("task: own\n")
    (tmp_path / "text.txt").write_text("some words to calibrate with\n")
    return tmp_path


def plan_of(folder, **keys):
    return make_plan(parse(json.dumps(BASE | keys), folder / "sweep.yaml"))


def keys_of(plan):
    return {trial.spec.key for trial in plan.trials}


def others(plan):
    return [trial for trial in plan.trials if not trial.spec.is_baseline]


some_schemes = st.lists(st.sampled_from(SCHEMES), min_size=1, max_size=4)
some_methods = st.lists(st.sampled_from(["rtn", "gptq", "fp"]), min_size=1, max_size=3)
some_seeds = st.lists(st.integers(0, 3), min_size=1, max_size=3)


@SLOW_FIXTURE
@given(data=st.data(), schemes=some_schemes, methods=some_methods, seeds=some_seeds)
def test_keys_depend_neither_on_order_nor_on_repeats(folder, data, schemes, methods, seeds):
    plan = plan_of(folder, schemes=schemes, methods=methods, seeds=seeds, models=["toy", "toy-two"])
    shuffled = plan_of(
        folder,
        schemes=data.draw(st.permutations(schemes + schemes[:1])),
        methods=data.draw(st.permutations(methods + methods[-1:])),
        seeds=data.draw(st.permutations(seeds)),
        models=["toy-two", "toy"],
    )
    assert keys_of(plan) == keys_of(shuffled)


@SLOW_FIXTURE
@given(schemes=some_schemes, methods=some_methods, seeds=some_seeds)
def test_the_same_file_gives_the_same_plan_and_no_key_twice(folder, schemes, methods, seeds):
    plan = plan_of(folder, schemes=schemes, methods=methods, seeds=seeds)
    assert plan == plan_of(folder, schemes=schemes, methods=methods, seeds=seeds)
    assert len(keys_of(plan)) == len(plan.trials)


@SLOW_FIXTURE
@given(schemes=some_schemes, methods=some_methods, seeds=some_seeds)
def test_every_trial_that_runs_has_its_baseline_ahead_of_it(folder, schemes, methods, seeds):
    plan = plan_of(folder, schemes=schemes, methods=methods, seeds=seeds)
    bases = {(t.spec.model, t.spec.seed): t for t in plan.trials if t.spec.is_baseline}
    for trial in others(plan):
        base = bases[trial.spec.model, trial.spec.seed]
        assert base.spec.protocol == trial.spec.protocol
        assert base.priority > trial.priority


@SLOW_FIXTURE
@given(schemes=some_schemes, methods=some_methods, method=st.sampled_from(["rtn", "gptq", "fp"]))
def test_include_and_exclude_of_one_rule_split_the_grid(folder, schemes, methods, method):
    methods = [*methods, "rtn", "gptq", method]
    whole = plan_of(folder, schemes=schemes, methods=methods)
    kept = plan_of(folder, schemes=schemes, methods=methods, include=[{"method": method}])
    left = plan_of(folder, schemes=schemes, methods=methods, exclude=[{"method": method}])
    assert {t.spec.method for t in others(kept)} <= {method}
    assert {t.spec.key for t in others(kept)} | {t.spec.key for t in others(left)} == {
        t.spec.key for t in others(whole)
    }
    assert not {t.spec.key for t in others(kept)} & {t.spec.key for t in others(left)}


def test_the_order_of_tasks_does_not_matter(folder):
    assert keys_of(plan_of(folder, tasks=["one.yaml", "two.yaml"])) == keys_of(
        plan_of(folder, tasks=["two.yaml", "one.yaml"])
    )


def test_a_method_without_calibration_is_planned_once_for_all_sets(folder):
    sets = [{"source": "text.txt", "samples": 4}, {"source": "text.txt", "samples": 8}]
    assert len(others(plan_of(folder, calibration=sets))) == 1
    assert len(others(plan_of(folder, calibration=sets, methods=["gptq"]))) == 2


def test_a_scheme_and_the_same_with_the_default_written_out_are_one_trial(folder):
    plan = plan_of(folder, schemes=["w4a16-g128", "w4a16-g128-asym", "w4a16-g128-sym"])
    assert [str(trial.spec.scheme) for trial in others(plan)] == [
        "w4a16-g128-asym",
        "w4a16-g128-sym",
    ]
    assert plan.merged == ("toy rtn w4a16-g128",)


def test_a_parameter_written_as_its_default_changes_nothing(folder):
    written = [{"name": "gptq", "damping": 0.01}]
    assert keys_of(plan_of(folder, methods=written)) == keys_of(plan_of(folder, methods=["gptq"]))
    other = [{"name": "gptq", "damping": 0.02}]
    assert keys_of(plan_of(folder, methods=other)) != keys_of(plan_of(folder, methods=["gptq"]))


@pytest.mark.parametrize("default", [True, False])
@given(group=st.none() | st.integers(1, 512), symmetric=st.none() | st.booleans())
def test_a_canonical_scheme_stays_as_it_is(default, group, symmetric):
    scheme = QuantScheme(w_bits=4, group_size=group, symmetric=symmetric)
    once = canonical_scheme(scheme, default=default)
    assert canonical_scheme(once, default=default) == once
    assert once.symmetric is (default if symmetric is None else symmetric)


def test_weights_in_full_precision_have_no_grid():
    scheme = QuantScheme(w_bits=16, a_bits=4, group_size=128, symmetric=True)
    assert canonical_scheme(scheme, default=False) == QuantScheme(w_bits=16, a_bits=4)


def test_a_combination_that_a_method_refuses_is_skipped_with_its_reason(folder):
    (folder / "picky.py").write_text(PICKY)
    plan = plan_of(folder, methods=["rtn", "picky.py:Picky"], schemes=["w4a16", "w8a8"])
    picky = [trial for trial in others(plan) if trial.spec.method != "rtn"]
    skipped = {str(t.spec.scheme): t.skip_reason for t in picky}
    assert skipped == {"w4a16-asym": None, "w8a8-asym": "only weights"}
    assert [s.status for s in standings(plan, ()) if s.trial.skip_reason] == ["skipped"]


PICKY = """
from dataclasses import dataclass
from typing import ClassVar

@dataclass(frozen=True)
class Picky:
    version: ClassVar[int] = 3
    needs_calibration: ClassVar[bool] = False
    symmetric: ClassVar[bool] = False

    def refusal(self, scheme):
        return None if scheme.a_bits == 16 else "only weights"

    def quantize(self, model, scheme, calibration, *, seed=0, workspace=None):
        raise NotImplementedError
"""


def test_a_scheme_or_a_method_of_which_nothing_can_run_is_refused_with_its_place(folder):
    (folder / "picky.py").write_text(PICKY)
    methods = ["picky.py:Picky"]
    with pytest.raises(SweepFileError, match=r"line 1: schemes\[1\]: no trial .*: only weights$"):
        plan_of(folder, methods=methods, schemes=["w4a16", "w8a8"])
    methods = ["rtn", "picky.py:Picky"]
    with pytest.raises(SweepFileError, match=r"line 1: methods\[1\]: no trial .*: only weights$"):
        plan_of(folder, methods=methods, schemes=["w8a8"])


def test_all_dead_ends_are_told_at_once_and_a_cause_once(folder):
    methods = ["gptq", {"name": "rtn", "per_tensor": True}, "awq", "smoothquant"]
    with pytest.raises(SweepFileError) as caught:
        plan_of(folder, methods=methods, schemes=["w4a16-qkv", "w4a16-g128", "w4a16-g64"])
    reasons = dict(problem.split(": no trial of it can run: ") for problem in caught.value.problems)
    assert list(reasons) == ["line 1: schemes[0]", "line 1: methods[1]", "line 1: methods[3]"]
    assert "-qkv takes the bits of the activations" in reasons["line 1: schemes[0]"]
    assert reasons["line 1: methods[1]"] == "per_tensor and a group size exclude each other"
    assert "smoothquant makes activations easier to round" in reasons["line 1: methods[3]"]


def test_a_text_too_long_for_every_model_is_refused_where_it_stands(folder):
    texts = [{"source": "text.txt", "length": length} for length in (64, 512)]
    keys = {"models": ["llada-tiny"], "methods": ["gptq"], "calibration": texts}
    expected = r"line 1: calibration\[1\]: no trial of it can run: calibration texts of 512 tokens"
    with pytest.raises(SweepFileError, match=expected):
        plan_of(folder, **keys)
    assert plan_of(folder, **keys | {"methods": ["rtn"]})


def test_entries_under_keys_that_set_has_not_replaced_were_written_for_another_grid(folder):
    data, path = BASE | {"methods": ["rtn", "awq"]}, folder / "sweep.yaml"
    plan = make_plan(parse(json.dumps(data), path, ["schemes=[w8a8]"]))
    assert [trial.skip_reason is None for trial in others(plan)] == [True, False]
    with pytest.raises(SweepFileError, match=r"--set methods=\[smoothquant\]: methods.*: no trial"):
        make_plan(parse(json.dumps(data), path, ["methods=[smoothquant]"]))


def test_a_model_of_which_everything_is_skipped_needs_no_baseline(folder):
    data = BASE | {"models": ["llada-tiny", "toy"]}
    plan = make_plan(parse(json.dumps(data), folder / "sweep.yaml", ["schemes=[w4a16-g96]"]))
    baselines = [trial.spec.model.name for trial in plan.trials if trial.spec.is_baseline]
    assert baselines == [str(folder / "toy")]


def test_trials_that_would_be_called_the_same_have_their_keys_in_their_labels(folder):
    twin = folder / "twin" / "toy"
    shutil.copytree(folder / "toy", twin)
    config = json.loads((twin / "config.json").read_text())
    (twin / "config.json").write_text(json.dumps(config | {"twin": True}))
    plan = plan_of(folder, models=["toy", "twin/toy"], methods=["rtn"], schemes=["w4a16"])
    keys = [trial.spec.key[:8] for trial in plan.trials]
    names = ["toy fp", "toy fp", "toy rtn w4a16", "toy rtn w4a16"]
    expected = [f"{name} [{key}]" for name, key in zip(names, keys, strict=True)]
    assert [trial.label for trial in plan.trials] == expected


def test_a_users_method_carries_its_version_and_loads_from_anywhere(folder):
    (folder / "picky.py").write_text(PICKY)
    (trial,) = others(plan_of(folder, methods=["picky.py:Picky"]))
    assert trial.spec.method_version == 3
    assert trial.spec.method == f"{folder / 'picky.py'}:Picky"
    assert trial.label == "toy picky.py:Picky w4a16-g128"


def test_a_named_baseline_is_not_said_to_be_added(folder):
    assert plan_of(folder).added == ("toy fp",)
    assert plan_of(folder, methods=["fp", "rtn"]).added == ()


def test_a_changed_model_gets_other_keys(folder):
    before = keys_of(plan_of(folder))
    (folder / "fresh").mkdir()
    config = {"model_type": "llada", "name": "new"}
    (folder / "fresh" / "config.json").write_text(json.dumps(config))
    assert not before & keys_of(plan_of(folder, models=["fresh"]))


def test_more_tokens_cost_more(folder):
    (small,) = others(plan_of(folder, limit=10))
    (large,) = others(plan_of(folder, limit=1000))
    assert 0 < small.estimated_s <= large.estimated_s


def row_of(trial, state, reason="", done=0):
    return TrialRow(
        id=1,
        key=trial.spec.key,
        label=trial.label,
        state=state,
        attempt=1,
        reason=reason,
        model=str(trial.spec.model),
        method=trial.spec.method,
        units=len(trial.spec.units()),
        units_done=done,
        priority=0,
        estimated_s=1.0,
        ready_in_s=0.0,
    )


@pytest.mark.parametrize(
    ("state", "status"),
    [
        (TrialState.SUCCEEDED, "done"),
        (TrialState.RUNNING, "running"),
        (TrialState.PENDING, "pending"),
        (TrialState.FAILED, "failed"),
        (TrialState.CANCELLED, "cancelled"),
        (TrialState.PRUNED, "pruned"),
    ],
)
def test_a_trial_stands_as_the_store_says(folder, state, status):
    plan = plan_of(folder)
    (trial,) = others(plan)
    base, found = standings(plan, [row_of(trial, state, reason="because", done=1)])
    assert (found.status, found.reason, found.units_done) == (status, "because", 1)
    assert base.status == "new"


def test_a_trial_of_another_specification_is_new(folder):
    plan = plan_of(folder)
    (trial,) = others(plan)
    changed = replace(trial, spec=replace(trial.spec, seed=9))
    assert {found.status for found in standings(plan, [row_of(changed, "SUCCEEDED")])} == {"new"}


def test_rules_that_leave_nothing_are_refused(folder):
    with pytest.raises(InputError, match="leave no trial"):
        plan_of(folder, exclude=[{"model": "toy"}])


def test_a_group_size_that_does_not_fit_the_model_is_skipped_with_its_sizes(folder):
    models = ["llada-tiny", "toy"]
    skipped = {
        (trial.spec.model.name, str(trial.spec.scheme)): trial.skip_reason
        for trial in others(plan_of(folder, models=models, schemes=["w4a16-g64", "w4a16-g96"]))
        if trial.skip_reason
    }
    reason = "w4a16-g96-asym: groups of 96 do not divide 256 inputs"
    assert skipped == {("llada-tiny", "w4a16-g96-asym"): reason}
    with pytest.raises(SweepFileError, match=rf"schemes\[0\]: no trial of it can run: {reason}"):
        plan_of(folder, models=["llada-tiny"], schemes=["w4a16-g96"])


def test_a_group_size_is_left_to_a_method_that_names_its_own_modules(folder):
    method = {"name": "rtn", "modules": ["*.mlp.down_proj"]}
    (trial,) = others(
        plan_of(folder, models=["llada-tiny"], methods=[method], schemes=["w4a16-g96"])
    )
    assert trial.skip_reason is None
