"""examples/quantization-meets-dllms.yaml plans the cells of the study's tables."""

import socket
from pathlib import Path

import pytest

from dllm_sweep import presets
from dllm_sweep.errors import InputError
from dllm_sweep.plan import check_data, make_plan
from dllm_sweep.spec import FULL_PRECISION
from dllm_sweep.sweep_file import read

ROOT = Path(__file__).parents[2]
STUDY = ROOT / "examples" / "quantization-meets-dllms.yaml"
ROWS = ROOT / "tests" / "data" / "tasks"
LLADA = {"GSAI-ML/LLaDA-8B-Base", "GSAI-ML/LLaDA-8B-Instruct"}
DREAM = {"Dream-org/Dream-v0-Base-7B"}
FP = ("fp", str(FULL_PRECISION))
WEIGHT_ONLY = {(method, scheme) for method in ("gptq", "awq") for scheme in ("w4a16", "w3a16")}
BOTH = {
    (method, scheme)
    for method in ("smoothquant", "quarot", "duquant")
    for scheme in ("w8a8", "w4a4")
}
QUESTIONS = {"winogrande", "piqa", "arc_challenge", "arc_easy"}
GPU_HOURS = (200, 500)
"""Of the whole study: 22 trials of LLaDA-8B, each about a day of one H200 by hand."""


@pytest.fixture(autouse=True)
def no_network(monkeypatch):
    def refuse(*_):
        raise OSError("planning asked the network")

    monkeypatch.setattr(socket.socket, "connect", refuse)


def plan_of(*settings):
    return make_plan(read(STUDY, settings), gpus=1.0)


@pytest.fixture(scope="module")
def plan():
    return make_plan(read(STUDY), gpus=1.0)


def cell(spec):
    return spec.method, f"w{spec.scheme.w_bits}a{spec.scheme.a_bits}"


def cells_of(plan, models):
    return {cell(trial.spec) for trial in plan.trials if trial.spec.model.name in models}


def test_every_cell_of_the_tables_is_planned_and_no_other(plan):
    for model in LLADA:
        assert cells_of(plan, {model}) == {FP, *WEIGHT_ONLY, *BOTH}
    assert cells_of(plan, DREAM) == {FP, *WEIGHT_ONLY}
    assert len(plan.trials) == 2 * 11 + 5
    assert not plan.added
    assert all(trial.skip_reason is None for trial in plan.trials)


def test_by_the_released_code_the_same_cells_are_planned_with_settings_of_their_own(plan):
    code = plan_of("preset=qdlm-code")
    for model in (*LLADA, *DREAM):
        assert cells_of(code, {model}) == cells_of(plan, {model})
    assert len(code.trials) == len(plan.trials)
    assert all(trial.skip_reason is None for trial in code.trials)
    same = {trial.spec.key for trial in code.trials} & {trial.spec.key for trial in plan.trials}
    assert same == {trial.spec.key for trial in plan.trials if trial.spec.is_baseline}


def test_weight_only_schemes_have_groups_of_128_and_the_others_none(plan):
    groups = {(cell(trial.spec), trial.spec.scheme.group_size) for trial in plan.trials}
    assert {group for one, group in groups if one in WEIGHT_ONLY} == {128}
    assert {group for one, group in groups if one not in WEIGHT_ONLY} == {None}


def test_each_model_runs_the_studys_tasks(plan):
    tasks = {
        trial.spec.model.name: {task.name for task in trial.spec.protocol.tasks}
        for trial in plan.trials
    }
    assert tasks == {
        **{model: set(presets.load("paper").tasks) for model in LLADA},
        "Dream-org/Dream-v0-Base-7B": QUESTIONS,
    }
    assert {trial.spec.protocol.dtype for trial in plan.trials} == {"bfloat16"}
    assert len(plan.protocol_keys) == 2, "one for each family"


def test_methods_are_calibrated_as_in_the_study(plan):
    texts = {
        (trial.spec.method, text.source, text.samples, text.length)
        for trial in plan.trials
        if (text := trial.spec.calibration) is not None
    }
    assert texts == {
        ("awq", "mit-han-lab/pile-val-backup", 128, 512),
        *(
            (method, "Salesforce/wikitext", 128, 2048)
            for method in ("gptq", "smoothquant", "quarot", "duquant")
        ),
    }


def test_the_estimate_is_in_hundreds_of_gpu_hours(plan):
    hours = sum(trial.estimated_s for trial in plan.trials) / 3600
    assert GPU_HOURS[0] < hours < GPU_HOURS[1]


def test_it_runs_small_with_the_models_and_rows_of_this_repository():
    plan = plan_of("models=[llada-tiny,dream-tiny]", "limit=20", f"data={ROWS}")
    check_data(plan)
    assert cells_of(plan, {"llada-tiny"}) == {FP, *WEIGHT_ONLY, *BOTH}
    assert cells_of(plan, {"dream-tiny"}) == {FP, *WEIGHT_ONLY}
    assert all(trial.skip_reason is None for trial in plan.trials)
    assert {trial.spec.calibration.source for trial in plan.trials if trial.spec.calibration} == {
        "tiny-text"
    }
    assert any("llada-tiny is small" in note for note in plan.notes)


def test_data_that_are_nowhere_are_missed_before_anything_starts():
    plan = plan_of("models=[llada-tiny]", "tasks=[gsm8k]", "methods=[fp]")
    with pytest.raises(InputError, match="gsm8k"):
        check_data(plan)
