import json
from pathlib import Path
from random import Random

import pytest

import dllm_sweep
from dllm_sweep.tiny import corpus, measure, pieces, write_data
from dllm_sweep.tiny.split import draw, is_test

PACKAGE = Path(dllm_sweep.__file__).parent
TASKS = ("tiny_math", "tiny_code", "tiny_facts")


@pytest.fixture(scope="module")
def training():
    """Prompts and canonical contents of a large piece of the training stream."""
    contents = set()

    def recording(make, rng, *, test):
        item = draw(make, rng, test=test)
        contents.add(item.content)
        return item

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(corpus, "draw", recording)
        rng = Random("a piece of the stream")
        prompts = {corpus.example(rng).prompt for _ in range(30_000)}
    return prompts, contents


def rows(name):
    path = PACKAGE / "evaluation" / "tasks" / f"{name}.jsonl"
    return [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]


def items():
    for stratum, count in write_data.MATH.items():
        yield from measure.sample_problems(stratum, count, write_data.SEED)
    for stratum, count in write_data.CODE.items():
        yield from measure.sample_programs(stratum, count, write_data.SEED)
    for stratum, count in write_data.FACTS.items():
        yield from write_data._questions(stratum, count)


def test_files_are_written_again_byte_for_byte(tmp_path):
    for path in write_data.write_all(tmp_path):
        assert path.read_bytes() == (PACKAGE / path.relative_to(tmp_path)).read_bytes()


@pytest.mark.parametrize("name", TASKS)
def test_tasks_have_enough_different_items(name):
    prompts = [row["prompt"] for row in rows(name)]
    assert len(prompts) == len(set(prompts)) >= 200


@pytest.mark.parametrize("name", TASKS)
def test_no_test_prompt_is_in_training(training, name):
    prompts, _ = training
    assert not prompts & {row["prompt"] for row in rows(name)}


def test_no_test_content_is_in_training(training):
    _, contents = training
    shipped = {item.content for item in items()}
    assert len(shipped) == 1200
    assert all(map(is_test, shipped))
    assert not any(map(is_test, contents))
    assert not contents & shipped


@pytest.mark.parametrize("name", TASKS)
def test_the_first_hundred_items_are_composed_like_all(name):
    strata = [row["stratum"] for row in rows(name)]
    for stratum in set(strata):
        share = strata.count(stratum) / len(strata)
        assert abs(strata[:100].count(stratum) - 100 * share) <= 1


def test_math_answers_stand_in_their_responses():
    for row in rows("tiny_math"):
        assert measure.answer_in(row["response"]) == int(row["answer"])


def test_reference_programs_pass():
    for row in rows("tiny_code"):
        scope = {}
        exec(row["prompt"] + row["response"], scope)
        exec(row["tests"], scope)


def test_the_metric_runs_programs_in_the_sandbox():
    from dllm_sweep.evaluation.tasks import tiny_code_metric

    row = rows("tiny_code")[0]
    (right, wrong), *_ = tiny_code_metric.programs([[row["response"], "\n    return None"]], [row])
    assert tiny_code_metric.pass_at_1([row["tests"]], [right]) == 1.0
    assert tiny_code_metric.pass_at_1([row["tests"]] * 2, [right, wrong]) == 0.5


def test_fact_prompts_end_with_a_word():
    # Other harnesses score one text, in which ": " is a token that training never showed.
    assert all(row["prompt"][-1].isalpha() for row in rows("tiny_facts"))


def test_conversations_ask_nothing_that_tasks_ask_and_are_small():
    path = PACKAGE / "calibration" / "data" / "tiny-chat.jsonl"
    pairs = [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]
    assert len(pairs) == write_data.CONVERSATIONS
    assert path.stat().st_size < 150_000
    asked = {pair["question"] for pair in pairs}
    assert len(asked) > 600
    assert not asked & {row["prompt"] for name in TASKS for row in rows(name)}


def test_calibration_text_is_enough_and_small():
    path = PACKAGE / "calibration" / "data" / "tiny-text.jsonl"
    texts = [json.loads(line)["text"] for line in path.read_text(encoding="utf-8").splitlines()]
    assert len(texts) >= 512
    assert sum(map(pieces.count, texts)) >= 128 * 128
    assert path.stat().st_size < 300_000
    assert not {text for text in texts if any(row["prompt"] in text for row in rows("tiny_math"))}
