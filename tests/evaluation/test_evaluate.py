import hashlib
import logging
import math
from dataclasses import replace

import pytest

from dllm_sweep.evaluation.evaluate import evaluate_task
from dllm_sweep.evaluation.logged import samples_of
from dllm_sweep.evaluation.scoring import _metrics
from dllm_sweep.spec import DecodingSpec, TaskSpec

DECODING = DecodingSpec(gen_length=8, steps=4, block_length=8)


def evaluate(model, name, **options):
    spec = TaskSpec(name=name, draws=4, limit=options.pop("limit", None))
    return evaluate_task(model, spec, DECODING, seed=0, **{"batch_size": 4, **options})


def test_the_primary_metric_comes_first_with_its_standard_error(model, task_files):
    result = evaluate(model, task_files["choices"])
    first, second = result.metrics
    assert (first.name, first.primary, second.name, second.primary) == (
        "acc_norm",
        True,
        "acc",
        False,
    )
    for metric in result.metrics:
        expected = math.sqrt(metric.value * (1 - metric.value) / (metric.n - 1))
        assert metric.n == 7
        assert metric.stderr == pytest.approx(expected)


def test_scores_are_the_mean_of_the_samples_scores(model, task_files):
    result = evaluate(model, task_files["choices"])
    scores = [sample.score for sample in result.samples]
    assert result.metrics[0].value == pytest.approx(sum(scores) / len(scores))


def test_samples_say_what_was_asked_and_chosen(model, task_files):
    sample = evaluate(model, task_files["choices"]).samples[2]
    assert sample.doc_id == 2
    assert sample.prompt == "What is 3 plus 3? A:"
    assert len(sample.log_likelihoods) == 3
    best = sample.log_likelihoods.index(max(sample.log_likelihoods))
    assert sample.answer == f" {['3', '3 and 3', '6 or so'][best]}"


def test_samples_hold_digests_and_every_metric(model, task_files):
    first, second = (
        evaluate(model, task_files[kind]).samples[1] for kind in ("choices", "generation")
    )
    for sample in (first, second):
        assert sample.prompt_sha256 == hashlib.sha256(sample.prompt.encode()).hexdigest()
        assert len(sample.requests_sha256) == 64
    assert [name for name, _ in first.scores] == ["acc", "acc_norm"]
    assert dict(first.scores)["acc_norm"] == first.score
    assert (first.output, second.output) == ("", second.answer)


def test_a_choice_that_stands_in_the_context_is_shown():
    arguments = [(f"Ann thanked Bea because {name}", " was kind.") for name in ("Bea", "Ben")]
    one = {"doc_id": 0, "target": "0", "arguments": arguments, "filter": "none", "metrics": ["acc"]}
    one |= {
        "resps": [[(-3.0, False)]],
        "filtered_resps": [(-3.0, False), (-2.0, False)],
        "acc": 0.0,
    }
    (sample,) = samples_of([one], "wino", "acc", {})
    assert (sample.answer, sample.log_likelihoods) == ("Ben", (-3.0, -2.0))


def test_generated_answers_are_kept_whole(model, task_files):
    result = evaluate(model, task_files["generation"])
    assert [sample.target for sample in result.samples] == [str(2 * n) for n in range(1, 8)]
    assert all(sample.log_likelihoods == () for sample in result.samples)
    assert result.metrics[0].name == "exact_match"


@pytest.mark.parametrize("kind", ["choices", "generation"])
def test_results_do_not_depend_on_the_batch_size(model, task_files, kind):
    one, many = (evaluate(model, task_files[kind], batch_size=size) for size in (1, 7))
    assert one.metrics == many.metrics
    assert [s.answer for s in one.samples] == [s.answer for s in many.samples]


def test_a_limit_takes_the_first_items_with_the_same_answers(model, task_files):
    whole, part = (evaluate(model, task_files["choices"], limit=limit) for limit in (None, 3))
    assert part.metrics[0].n == 3
    # Other rows in a batch may change the last bits of a log-likelihood, and nothing else.
    for one, other in zip(part.samples, whole.samples[:3], strict=True):
        values = pytest.approx(other.log_likelihoods, rel=1e-5)
        assert one == replace(other, log_likelihoods=values)


def test_a_single_item_has_no_standard_error(model, task_files):
    assert evaluate(model, task_files["choices"], limit=1).metrics[0].stderr is None


def test_nothing_is_printed_and_the_logger_is_left_as_it_was(model, task_files, capfd):
    level = logging.getLogger("lm_eval").level
    evaluate(model, task_files["generation"])
    assert capfd.readouterr() == ("", "")
    assert logging.getLogger("lm_eval").level == level


def test_progress_reaches_the_number_of_requests(model, task_files):
    seen = []
    evaluate(model, task_files["generation"], progress=lambda *at: seen.append(at))
    assert seen[-1] == (7, 7)


def test_a_group_has_one_score_over_the_items_of_its_tasks(model, lm_eval_tasks):
    result = evaluate(model, "both")
    metric, *members = result.metrics
    assert (metric.task, metric.name, metric.n, metric.primary) == ("both", "acc", 14, True)
    assert metric.stderr is not None
    assert [(one.task, one.name) for one in members if one.n == 7] == [
        ("choices", "acc"),
        ("choices", "acc_norm"),
        ("sums_again", "acc"),
        ("sums_again", "acc_norm"),
    ]
    assert [sample.task for sample in result.samples] == ["choices"] * 7 + ["sums_again"] * 7


def test_a_metric_with_several_filters_keeps_the_filters_in_its_name():
    results = {
        "results": {
            "gsm8k": {
                "alias": "gsm8k",
                "exact_match,strict-match": 0.5,
                "exact_match_stderr,strict-match": 0.1,
                "exact_match,flexible-extract": 0.75,
                "exact_match_stderr,flexible-extract": "N/A",
            }
        },
        "group_subtasks": {},
        "n-samples": {"gsm8k": {"original": 10, "effective": 4}},
        "higher_is_better": {"gsm8k": {"exact_match": True}},
    }
    strict, flexible = _metrics(results, "gsm8k", None)
    assert (strict.name, strict.stderr, strict.primary) == ("exact_match,strict-match", 0.1, True)
    assert (flexible.name, flexible.stderr, flexible.n) == ("exact_match,flexible-extract", None, 4)
    named = _metrics(results, "gsm8k", "exact_match,flexible-extract")
    assert named[0] == type(named[0])(**{**vars_of(flexible), "primary": True})


def vars_of(metric):
    return {name: getattr(metric, name) for name in metric.__dataclass_fields__}
