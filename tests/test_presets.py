"""The presets say what arXiv 2508.14896 and its released code say, cell by cell."""

import pytest

from dllm_sweep import presets
from dllm_sweep.errors import UnknownName
from dllm_sweep.evaluation.tasks.facts import FACTS
from dllm_sweep.methods import build
from dllm_sweep.presets.base import LEFT_OPEN, MethodSettings
from dllm_sweep.spec import DecodingSpec

PAPER, CODE = presets.load("paper"), presets.load("qdlm-code")
METHODS = ("gptq", "awq", "smoothquant", "quarot", "duquant")
LLADA_LIKE = ("llada", "llada_moe", "illada")
SCORED = [
    ("winogrande", 0, 128, None),
    ("piqa", 0, 128, None),
    ("arc_challenge", 0, 128, "acc_norm"),
    ("arc_easy", 0, 128, None),
    ("hellaswag", 0, 128, "acc_norm"),
    ("mmlu", 5, 1, None),
]
WRITTEN = [
    ("gsm8k", 4, 256, 256, 32, "exact_match,flexible-extract"),
    ("minerva_math", 0, 256, 256, 64, None),
    ("humaneval", 0, 512, 512, 32, None),
    ("mbpp", 3, 512, 512, 32, None),
]


def test_the_study_has_ten_tasks_in_the_order_of_its_tables():
    assert PAPER.tasks == tuple(row[0] for row in (*SCORED, *WRITTEN)) == tuple(FACTS)
    assert PAPER.dtype == "bfloat16"


@pytest.mark.parametrize("family", LLADA_LIKE)
@pytest.mark.parametrize(("task", "shots", "draws", "metric"), SCORED)
def test_a_scored_task_of_a_llada(family, task, shots, draws, metric):
    found = PAPER.settings(task, family)
    assert (found.shots, found.draws, found.estimator) == (shots, draws, "llada")
    assert (found.metric, found.decoding) == (metric, None)


@pytest.mark.parametrize("family", LLADA_LIKE)
@pytest.mark.parametrize(("task", "shots", "length", "steps", "block", "metric"), WRITTEN)
def test_a_written_task_of_a_llada(family, task, shots, length, steps, block, metric):
    found = PAPER.settings(task, family)
    assert (found.shots, found.draws, found.metric) == (shots, None, metric)
    assert found.decoding == DecodingSpec(
        gen_length=length,
        steps=steps,
        block_length=block,
        temperature=0.0,
        algorithm="low_confidence",
        sampler="blockwise",
        cfg_scale=0.0,
    )


@pytest.mark.parametrize(("task", "shots", "draws", "metric"), SCORED)
def test_a_scored_task_of_dream_takes_its_own_estimator_and_128_draws(task, shots, draws, metric):
    found = PAPER.settings(task, "dream")
    assert (found.shots, found.draws, found.estimator) == (shots, 128, "dream")
    assert found.metric == metric


@pytest.mark.parametrize("task", [row[0] for row in WRITTEN])
def test_dream_writes_128_tokens_on_its_timeline(task):
    found = PAPER.settings(task, "dream")
    assert found.shots == PAPER.settings(task, "llada").shots
    assert found.decoding == DecodingSpec(
        gen_length=128,
        steps=128,
        block_length=128,
        temperature=0.0,
        algorithm="entropy",
        sampler="timeline",
        top_p=0.95,
    )


def test_a_block_model_writes_in_blocks_of_its_own():
    found = PAPER.settings("gsm8k", "sdar").decoding
    assert (found.gen_length, found.steps, found.block_length) == (256, 256, 4)


def test_a_task_outside_the_study_keeps_the_sweeps_own_settings():
    found = PAPER.settings("boolq", "dream")
    assert (found.shots, found.draws, found.decoding, found.estimator) == (
        None,
        None,
        None,
        "dream",
    )


def test_an_unknown_family_or_preset_is_refused():
    with pytest.raises(UnknownName, match=r"unknown model family.*'lladda'.*did you mean 'llada'"):
        PAPER.settings("gsm8k", "lladda")
    with pytest.raises(UnknownName, match=r"unknown preset 'papers'.*'paper'"):
        presets.load("papers")
    with pytest.raises(UnknownName, match=r"unknown preset 'qdlm_code'.*'qdlm-code'"):
        presets.load("qdlm_code")


@pytest.mark.parametrize("family", [*LLADA_LIKE, "dream", "sdar"])
@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize("preset", [PAPER, CODE])
def test_every_parameter_that_a_preset_names_exists(preset, method, family):
    settings = preset.method(method, family)
    built = build(method, dict(settings.parameters))
    assert all(getattr(built, name) == value for name, value in settings.parameters)


@pytest.mark.parametrize("preset", [PAPER, CODE])
def test_of_methods_outside_the_study_a_preset_says_nothing(preset):
    for method in ("fp", "rtn", "my_method.py:Mine"):
        assert preset.method(method, "llada") == LEFT_OPEN
    assert LEFT_OPEN.scheme("w4a4") == MethodSettings().scheme("w4a4-kv16")


def test_what_attention_rounds_follows_the_activations_unless_the_scheme_speaks_of_it():
    settings = MethodSettings(operands="kv", symmetric=True)
    for written, meant in [
        ("w4a4", "w4a4-kv4-sym"),
        ("w8a8-asym", "w8a8-kv8-asym"),
        ("w4a16-g128", "w4a16-g128-sym"),
        ("w4a4-kv8", "w4a4-kv8-sym"),
        ("w4a4-kv16", "w4a4-sym"),
        ("w4a4-qkv", "w4a4-sym-qkv"),
    ]:
        assert str(settings.scheme(written)) == meant
    assert str(MethodSettings(operands="qkv").scheme("w8a8")) == "w8a8-qkv"


def test_the_code_evaluates_as_the_paper_says_but_for_what_dream_writes():
    assert (CODE.tasks, CODE.dtype) == (PAPER.tasks, PAPER.dtype)
    for task in PAPER.tasks:
        assert CODE.settings(task, "llada") == PAPER.settings(task, "llada")
    assert CODE.settings("piqa", "dream") == PAPER.settings("piqa", "dream")
    written = CODE.settings("gsm8k", "dream").decoding
    assert (written.temperature, written.top_p, written.algorithm) == (0.08, 0.9, "entropy")


@pytest.mark.parametrize(
    ("method", "family", "seed", "length"),
    [
        ("gptq", "llada", 0, 2048),
        ("awq", "llada", 42, 512),
        ("smoothquant", "dream", 2, 2048),
        ("duquant", "llada", 2, 2048),
        ("quarot", "llada", 0, 4096),
        ("quarot", "dream", 0, 2048),
    ],
)
def test_the_code_calibrates_with_seeds_and_lengths_of_its_own(method, family, seed, length):
    found = CODE.calibration(method, family)
    assert (found.seed, found.length, found.samples) == (seed, length, 128)
    assert found.source == PAPER.calibration(method, family).source


def test_awq_calibrates_on_the_pile_and_the_others_on_wikitext():
    awq, gptq = (PAPER.calibration(one, "llada") for one in ("awq", "gptq"))
    assert (awq.source, awq.samples, awq.length) == ("mit-han-lab/pile-val-backup", 128, 512)
    assert (gptq.source, gptq.samples, gptq.length) == ("Salesforce/wikitext", 128, 2048)
    assert all(
        PAPER.calibration(one, "dream") == gptq for one in ("smoothquant", "quarot", "duquant")
    )
    assert PAPER.calibration("fp", "llada") is PAPER.calibration("rtn", "llada") is None


def test_sizes_of_groups_are_those_of_their_members():
    for task in ("mmlu", "minerva_math"):
        facts = FACTS[task]
        assert facts.items == sum(size for _, size in facts.members) == facts.items_within(None)
    assert FACTS["mmlu"].items_within(20) == 57 * 20
    assert FACTS["gsm8k"].items_within(20) == 20
    assert FACTS["gsm8k"].tokens_with(4) == 66 + 4 * 160
