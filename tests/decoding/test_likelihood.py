import copy
import itertools
import json
import math
import statistics
from pathlib import Path

import pytest
import torch

from dllm_sweep import load_model, log_likelihood
from dllm_sweep.decoding import likelihood
from dllm_sweep.decoding.likelihood import Estimation, score_pairs
from dllm_sweep.decoding.masks import ESTIMATORS
from dllm_sweep.errors import InputError, UnknownName

DATA = Path(__file__).parents[1] / "data"
CASES = json.loads((DATA / "likelihood-golden" / "cases.json").read_text())["cases"]
PAIRS = [
    ([5, 9, 17, 33], [40, 41]),
    ([250], [7, 8, 9, 10, 11, 12, 13, 14]),
    ([7] * 21, [1]),
    ([], [99, 98, 97, 96, 95, 94]),
    ([5, 9, 17, 33], [42, 43]),
]


@pytest.fixture(scope="module")
def checkpoints(model):
    return {"llada-random": model, "dream-random": load_model(str(DATA / "dream-random"))}


def score(checkpoints, case, **options):
    (value,) = log_likelihood(
        checkpoints[case["checkpoint"]],
        [(case["context"], case["answer"])],
        estimator=case["estimator"],
        cfg_scale=case["cfg_scale"],
        **options,
    )
    return value


@pytest.mark.parametrize("plain", [False, True])
@pytest.mark.parametrize("case", CASES, ids=lambda case: case["id"])
def test_enumeration_gives_the_exact_expectation(checkpoints, case, plain):
    draws = 2 ** len(case["answer"]) - 1
    found = score(checkpoints, case, draws=draws, plain=plain)
    assert math.isclose(found, case["expected"], rel_tol=1e-5)


@pytest.mark.parametrize("case", [CASES[2], CASES[3], CASES[5]], ids=lambda case: case["id"])
def test_sampled_masks_are_unbiased(checkpoints, case):
    """Over many seeds; the authors' rounding would be off by 0.7% at four draws."""
    found = [score(checkpoints, case, draws=4, seed=seed) for seed in range(120)]
    error = statistics.stdev(found) / math.sqrt(len(found))
    assert abs(statistics.fmean(found) - case["expected"]) < 3.5 * error
    assert statistics.stdev(found) < 1.2 * case["std_one_draw"] / math.sqrt(4)


def test_the_expectation_is_the_mean_over_all_orders(model):
    """Hiding l of L tokens at random is writing the answer in a random order."""
    context, answer = [5, 9, 17, 33], [40, 41, 99]

    def one_order(order):
        row, total = [*context, *[model.special.mask_id] * 3], 0.0
        for place in order:
            logits = model.logits(torch.tensor([row]))[0, 4 + place].double()
            total += float(logits.log_softmax(-1)[answer[place]])
            row[4 + place] = answer[place]
        return total

    expected = statistics.fmean(map(one_order, itertools.permutations(range(3))))
    assert log_likelihood(model, [(context, answer)])[0] == pytest.approx(expected, rel=1e-6)


@pytest.mark.parametrize("estimator", ESTIMATORS)
@pytest.mark.parametrize("draws", [1, 7, 32])
def test_values_do_not_depend_on_batch_size_or_order(model, draws, estimator):
    options = {"draws": draws, "estimator": estimator}
    alone = [log_likelihood(model, [pair], **options)[0] for pair in PAIRS]
    for size in (1, 3, 16, None):
        together = log_likelihood(model, PAIRS, batch_size=size, **options)
        assert together == pytest.approx(alone, rel=1e-5)
    backwards = log_likelihood(model, PAIRS[::-1], **options)
    assert backwards[::-1] == pytest.approx(alone, rel=1e-5)


@pytest.mark.parametrize("estimator", ESTIMATORS)
@pytest.mark.parametrize("cfg_scale", [0.0, 0.5])
def test_the_plain_path_gives_the_same_values_with_more_rows(checkpoints, estimator, cfg_scale):
    for model in checkpoints.values():
        fast, plain = (
            score_pairs(
                model,
                PAIRS,
                Estimation(draws=12, estimator=estimator, cfg_scale=cfg_scale, plain=one),
            )
            for one in (False, True)
        )
        values = [one.value for one in plain]
        assert [one.value for one in fast] == pytest.approx(values, rel=1e-5)
        calls = 1 if cfg_scale == 0 else 2
        hidable = [len(answer) - (estimator == "dream") for _, answer in PAIRS]
        assert [one.rows for one in plain] == [12 * calls * (n > 0) for n in hidable]
        assert sum(one.rows for one in fast) < sum(one.rows for one in plain)


def masked_inputs(model, monkeypatch, pairs, draws=16, **options):
    """What the model is shown: one row a mask."""
    rows = []
    logits_at = model.logits_at

    def record(ids, positions, mask=None):
        rows.extend(ids.tolist())
        return logits_at(ids, positions, mask)

    with monkeypatch.context() as patched:
        patched.setattr(model, "logits_at", record)
        log_likelihood(model, pairs, batch_size=1, draws=draws, **options)
    return rows


def test_masks_are_common_to_all_models(model, monkeypatch):
    other = load_model(model.name, device="cpu", dtype="bfloat16")
    shown = [masked_inputs(one, monkeypatch, PAIRS, draws=5) for one in (model, other)]
    assert shown[0] == shown[1]


@pytest.mark.parametrize("estimator", ESTIMATORS)
def test_equally_long_choices_of_one_item_share_their_masks(model, monkeypatch, estimator):
    mask = model.special.mask_id
    choices = (([1, 2, 3], [*range(10, 18)]), ([1, 2, 3], [*range(20, 28)]))
    hidden = [
        [
            [token == mask for token in row]
            for row in masked_inputs(model, monkeypatch, [choice], estimator=estimator)
        ]
        for choice in choices
    ]
    assert hidden[0] == hidden[1]


def test_choices_that_look_alike_when_hidden_take_one_model_call(model, monkeypatch):
    choices = [([1, 2, 3], [choice]) for choice in range(10, 14)]
    assert len(masked_inputs(model, monkeypatch, choices)) == 1
    together = log_likelihood(model, choices)
    alone = [log_likelihood(model, [choice])[0] for choice in choices]
    assert together == pytest.approx(alone, rel=1e-6)


def test_a_shared_row_counts_once_and_rows_of_other_items_are_not_shared(model):
    choices = [([1, 2, 3], [choice]) for choice in range(10, 14)]
    one_item = score_pairs(model, choices, Estimation())
    assert [one.rows for one in one_item] == [1, 0, 0, 0]
    assert [one.token_forwards for one in one_item] == [4, 0, 0, 0]
    apart = score_pairs(model, choices, Estimation(), items=["a", "b", "c", "d"])
    assert [one.rows for one in apart] == [1, 1, 1, 1]


def test_many_pairs_are_prepared_in_parts_with_the_same_values(model, monkeypatch):
    whole = score_pairs(model, PAIRS, Estimation(draws=8))
    monkeypatch.setattr(likelihood, "_TOKENS_AT_ONCE", 100)
    seen = []
    parts = score_pairs(model, PAIRS, Estimation(draws=8), progress=lambda *at: seen.append(at))
    assert [one.value for one in parts] == pytest.approx([one.value for one in whole], rel=1e-6)
    assert [one.rows for one in parts] == [one.rows for one in whole]
    assert seen == [(2, 5), (3, 5), (4, 5), (5, 5)], "pairs of one context stay together"


def test_the_context_is_never_masked(model, monkeypatch):
    for row in masked_inputs(model, monkeypatch, PAIRS[:1], draws=8):
        assert row[:4] == PAIRS[0][0]


def test_dream_never_hides_the_first_and_the_last_token(model, monkeypatch):
    rows = masked_inputs(model, monkeypatch, [([], [1, 2, 3, 4, 5])], draws=64, estimator="dream")
    assert len(rows) == 7
    assert {(row[0], row[-1]) for row in rows} == {(1, 5)}


@pytest.mark.parametrize(
    ("estimator", "answer"), [("llada", [3]), ("dream", [3, 281])], ids=ESTIMATORS
)
def test_a_one_token_answer_takes_one_row_and_is_exact(model, monkeypatch, estimator, answer):
    pairs = [([1, 2], answer)]
    (row,) = masked_inputs(model, monkeypatch, pairs, draws=128, estimator=estimator)
    expected = model.logits(torch.tensor([row]))[0, 2].double().log_softmax(-1)[3]
    found = log_likelihood(model, pairs, draws=1, estimator=estimator)
    assert found == pytest.approx([float(expected)], rel=1e-6)


@pytest.mark.parametrize("estimator", ESTIMATORS)
def test_an_empty_answer_is_certain(model, estimator):
    assert log_likelihood(model, [([1, 2], [])], estimator=estimator) == [0.0]


def test_no_pairs_give_no_values(model):
    assert log_likelihood(model, []) == []


def test_inputs_are_not_changed(model):
    pairs = copy.deepcopy(PAIRS)
    log_likelihood(model, pairs, draws=2)
    assert pairs == PAIRS


@pytest.mark.parametrize(
    ("pairs", "options", "message"),
    [
        ([([1], [2])], {"draws": 0}, "draws 0"),
        ([([1], [320])], {}, "pair 0: token id 320"),
        ([([1] * 500, [2] * 20)], {}, "520 tokens are more than the model's 512"),
        ([([1], [2])], {"items": []}, "0 item names for 1 pairs"),
        ([([1], [2])], {"cfg_scale": -1.0}, "cfg_scale -1.0"),
    ],
)
def test_what_does_not_fit_is_refused(model, pairs, options, message):
    with pytest.raises(InputError, match=message):
        log_likelihood(model, pairs, **options)


def test_an_unknown_estimator_is_refused(model):
    with pytest.raises(UnknownName, match="unknown likelihood estimator 'x'"):
        log_likelihood(model, [], estimator="x")
