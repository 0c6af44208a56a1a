"""Which protocol each model of a sweep file gets."""

import json

import pytest
from hypothesis import given
from hypothesis import strategies as st

from dllm_sweep import presets
from dllm_sweep.errors import SweepFileError
from dllm_sweep.spec import DecodingSpec, ProtocolSpec, canonical
from dllm_sweep.sweep_file import parse
from dllm_sweep.sweep_protocol import shortened

KINDS = {
    "toy": {"model_type": "llada", "max_sequence_length": 4096},
    "short": {"model_type": "llada", "max_sequence_length": 256},
    "dreamer": {"model_type": "Dream", "max_position_embeddings": 2048},
    "blocks": {"model_type": "sdar", "max_position_embeddings": 2048, "block_size": 8},
}
BASE = {"methods": ["fp"], "outliers": False}


@pytest.fixture
def folder(tmp_path):
    for name, config in KINDS.items():
        (tmp_path / name).mkdir()
        (tmp_path / name / "config.json").write_text(json.dumps(config))
    (tmp_path / "own.yaml").write_text("task: own\n")
    return tmp_path


def read(folder, *settings, **keys):
    return parse(json.dumps(BASE | keys), folder / "sweep.yaml", settings)


def protocols(folder, *settings, **keys) -> list[ProtocolSpec]:
    file = read(folder, *settings, **keys)
    return [file.protocol_for(model) for model in file.models]


def problems(folder, *settings, **keys):
    with pytest.raises(SweepFileError) as caught:
        read(folder, *settings, **keys)
    return list(caught.value.problems)


def test_without_a_preset_every_family_gets_its_usual_sampler_and_estimator(folder):
    llada, dream = protocols(folder, models=["toy", "dreamer"], tasks=["own.yaml"])
    assert llada.decoding == DecodingSpec()
    assert (dream.decoding.sampler, dream.decoding.algorithm) == ("timeline", "entropy")
    assert [one.tasks[0].estimator for one in (llada, dream)] == ["llada", "dream"]


def test_what_is_usual_for_llada_is_not_in_its_key(folder):
    (protocol,) = protocols(folder, models=["toy"], tasks=["own.yaml"], dtype="float32")
    for later in ("sampler", "estimator", "chat_template", "metric", "cache"):
        assert later not in canonical(protocol)


def test_a_preset_names_the_tasks_and_how_each_family_runs_them(folder):
    llada, dream = protocols(folder, models=["toy", "dreamer"], preset="paper")
    assert {task.name for task in llada.tasks} == set(presets.load("paper").tasks)
    for protocol, family in ((llada, "llada"), (dream, "dream")):
        for task in protocol.tasks:
            asked = presets.load("paper").settings(task.name, family)
            assert task.shots == asked.shots
            assert task.draws == (asked.draws or 16)
            assert asked.decoding in (None, protocol.decoding_of(task))
    assert llada.dtype == dream.dtype == "bfloat16"


def test_a_task_goes_before_the_file_and_that_before_the_preset(folder):
    tasks = ["gsm8k", {"name": "humaneval", "decoding": {"steps": 128}, "shots": 1}]
    (protocol,) = protocols(
        folder, models=["toy"], preset="paper", tasks=tasks, decoding={"steps": 64}
    )
    gsm8k, humaneval = protocol.tasks
    assert protocol.decoding_of(gsm8k).steps == 64
    assert protocol.decoding_of(gsm8k).gen_length == 256, "the preset's"
    assert protocol.decoding_of(humaneval).steps == 128
    assert (gsm8k.shots, humaneval.shots) == (4, 1)


def test_what_fits_only_on_top_of_a_preset_is_no_problem_of_scored_tasks(folder):
    (protocol,) = protocols(folder, models=["toy"], preset="paper", decoding={"steps": 128})
    assert {protocol.decoding_of(protocol.task(name)).steps for name in ("gsm8k", "mbpp")} == {128}
    assert protocol.task("piqa").decoding is None
    assert protocol.decoding == DecodingSpec()


def test_one_line_says_for_which_tasks_an_option_does_not_fit(folder):
    keys = {"models": ["toy"], "preset": "paper"}
    assert problems(folder, decoding={"block_length": 48}, **keys) == [
        "line 1: decoding: with what preset paper says of toy and gsm8k, minerva_math: "
        "block_length 48 does not divide gen_length 256",
        "line 1: decoding: with what preset paper says of toy and humaneval, mbpp: "
        "block_length 48 does not divide gen_length 512",
    ]


def test_draws_and_estimator_are_written_for_all_or_for_one(folder):
    tasks = ["piqa", {"name": "winogrande", "draws": 3, "estimator": "llada"}]
    (protocol,) = protocols(
        folder, models=["dreamer"], preset="paper", tasks=tasks, draws=5, estimator="dream"
    )
    found = [(task.draws, task.estimator) for task in protocol.tasks]
    assert found == [(5, "dream"), (3, "llada")]


def test_the_sampler_follows_from_the_algorithm(folder):
    keys = {"models": ["toy"], "tasks": ["own.yaml"]}
    (timeline,) = protocols(folder, decoding={"algorithm": "origin"}, **keys)
    (blockwise,) = protocols(folder, decoding={"algorithm": "random"}, **keys)
    (usual,) = protocols(folder, decoding={"sampler": "timeline"}, **keys)
    assert (timeline.decoding.sampler, blockwise.decoding.sampler) == ("timeline", "blockwise")
    assert usual.decoding.algorithm == "entropy"


def test_options_of_a_presets_sampler_do_not_follow_to_another(folder):
    (protocol,) = protocols(
        folder,
        models=["dreamer"],
        preset="paper",
        tasks=["gsm8k"],
        decoding={"algorithm": "low_confidence", "block_length": 32},
    )
    decoding = protocol.decoding_of(protocol.tasks[0])
    assert (decoding.sampler, decoding.top_p, decoding.gen_length) == ("blockwise", None, 128)


def test_null_switches_off_what_a_preset_switches_on(folder):
    keys = {"models": ["dreamer"], "preset": "paper", "tasks": ["gsm8k"]}
    (usual,) = protocols(folder, **keys)
    (without,) = protocols(folder, decoding={"top_p": None}, **keys)
    assert usual.decoding_of(usual.tasks[0]).top_p == 0.95
    assert without.decoding_of(without.tasks[0]).top_p is None


def test_blocks_mean_nothing_to_the_timeline(folder):
    keys = {"models": ["dreamer"], "tasks": ["own.yaml"]}
    first, second = (
        protocols(folder, decoding={"block_length": length}, **keys)[0] for length in (5, 32)
    )
    assert first.key == second.key


def test_block_causal_models_are_decoded_in_the_blocks_of_their_attention(folder):
    keys = {"models": ["blocks"], "tasks": ["own.yaml"]}
    (protocol,) = protocols(folder, **keys)
    assert protocol.decoding.block_length == 8
    (problem,) = problems(folder, decoding={"block_length": 16}, **keys)
    assert "decoding: block_length 16 must be 8" in problem


def test_a_model_runs_the_tasks_that_its_entry_names(folder):
    models = ["toy", {"name": "dreamer", "tasks": ["piqa"]}]
    llada, dream = protocols(folder, models=models, preset="paper")
    assert (len(llada.tasks), [task.name for task in dream.tasks]) == (10, ["piqa"])
    models[1]["tasks"] = ["piqu"]
    (problem,) = problems(folder, models=models, preset="paper")
    assert problem.startswith("line 1: models[1].tasks[0]: 'piqu' is none of the sweep's tasks")


def test_a_window_that_leaves_no_prompt_is_refused_with_the_option_to_add(folder):
    decoding = {"gen_length": 256, "steps": 256}
    (problem,) = problems(folder, models=["short"], tasks=["own.yaml"], decoding=decoding)
    assert problem.startswith("line 1: decoding: gen_length 256 leaves no room for a prompt")
    assert problem.endswith("(--set decoding.gen_length=128)")


def test_a_presets_window_is_fitted_to_a_short_model(folder):
    (protocol,) = protocols(folder, models=["short"], preset="paper")
    for task in protocol.tasks:
        assert protocol.decoding_of(task).gen_length <= 128
    assert protocol.decoding_of(protocol.task("minerva_math")).block_length == 64


def test_models_of_the_package_get_windows_and_draws_that_suit_them(folder):
    llada, dream = protocols(folder, models=["llada-tiny", "dream-tiny"], preset="paper")
    for protocol in (llada, dream):
        assert max(task.draws for task in protocol.tasks) == 16
        for task in ("gsm8k", "minerva_math", "humaneval", "mbpp"):
            decoding = protocol.decoding_of(protocol.task(task))
            assert (decoding.gen_length, decoding.block_length, decoding.steps) == (32, 32, 16)
    options = {"preset": "paper", "draws": 128, "decoding": {"gen_length": 64, "steps": 64}}
    (written,) = protocols(folder, models=["llada-tiny"], **options)
    assert {task.draws for task in written.tasks} == {128}
    assert written.decoding_of(written.task("gsm8k")).gen_length == 64


@given(
    blocks=st.integers(1, 16),
    block=st.integers(1, 64),
    steps=st.integers(1, 8),
    room=st.integers(1, 300),
    sampler=st.sampled_from(["blockwise", "timeline"]),
)
def test_a_shortened_window_keeps_its_rules(blocks, block, steps, room, sampler):
    asked = DecodingSpec(
        gen_length=blocks * block,
        block_length=block,
        steps=blocks * min(steps, block),
        sampler=sampler,
    )
    found = shortened(asked, room)
    if asked.gen_length <= room:
        assert found == asked
        return
    assert found.gen_length <= room
    assert 1 <= found.steps <= found.gen_length
    if sampler == "blockwise":
        assert found.gen_length % found.block_length == 0
        assert found.steps % (found.gen_length // found.block_length) == 0


def test_models_of_the_package_compute_in_float32_others_in_bfloat16(folder):
    models = ["llada-tiny", "toy"]
    usual = protocols(folder, models=models, tasks=["own.yaml"])
    assert [one.dtype for one in usual] == ["float32", "bfloat16"]
    written = protocols(folder, models=models, tasks=["own.yaml"], dtype="float16")
    assert [one.dtype for one in written] == ["float16", "float16"]


def test_data_lie_beside_the_file_or_where_one_stands(folder, tmp_path, monkeypatch):
    elsewhere = tmp_path / "elsewhere"
    rows = '{"question": "1 + 1?", "answer": "#### 2"}\n'
    for place in (folder / "rows", elsewhere / "more"):
        (place / "gsm8k").mkdir(parents=True)
        (place / "gsm8k" / "test.jsonl").write_text(rows)
        (place / "gsm8k" / "train.jsonl").write_text(rows)
    monkeypatch.chdir(elsewhere)
    keys = {"models": ["toy"], "tasks": ["gsm8k"]}
    for written, place in (("rows", folder / "rows"), ("more", elsewhere / "more")):
        (protocol,) = protocols(folder, data=written, **keys)
        assert protocol.tasks[0].data == str(place)
    (problem,) = problems(folder, data="nowhere", **keys)
    assert problem.startswith("line 1: data: there is no folder 'nowhere'")


def test_a_preset_or_family_that_does_not_exist_gets_the_nearest_one(folder):
    (problem,) = problems(folder, models=["toy"], preset="papr")
    assert "preset: unknown preset 'papr': did you mean 'paper'?" in problem
    (problem,) = problems(folder, models=[{"name": "toy", "family": "drem"}], tasks=["own.yaml"])
    assert "models[0].family: unknown model family 'drem': did you mean 'dream'?" in problem


def test_a_family_that_is_written_goes_before_what_the_checkpoint_says(folder):
    models = [{"name": "toy", "family": "dream"}]
    file = read(folder, models=models, tasks=["own.yaml"])
    assert file.protocol_for(file.models[0]).decoding.sampler == "timeline"
    assert file.models[0].ref(folder).family == "dream"
