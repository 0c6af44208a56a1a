import copy
import math
import statistics

import pytest

from dllm_sweep import load_model, log_likelihood
from dllm_sweep.decoding import likelihood
from dllm_sweep.errors import InputError

PAIRS = [
    ([5, 9, 17, 33], [40, 41]),
    ([250], [7, 8, 9, 10, 11, 12, 13, 14]),
    ([7] * 21, [1]),
    ([], [99, 98, 97, 96, 95, 94]),
    ([5, 9, 17, 33], [42, 43]),
]


def test_enumeration_gives_the_exact_expectation(model, golden_cases):
    cases = golden_cases("likelihood")
    assert len(cases) == 3
    for case, tensors in cases:
        pair = (tensors["prompt"].tolist(), tensors["answer"].tolist())
        (found,) = log_likelihood(model, [pair], draws=2 ** len(pair[1]) - 1)
        assert math.isclose(found, case["expected"], rel_tol=1e-5), case["id"]


def test_sampled_masks_are_unbiased(model, golden_cases):
    """Over many seeds; the authors' rounding would be off by 0.7% at four draws."""
    case, tensors = golden_cases("likelihood")[-1]
    pair = (tensors["prompt"].tolist(), tensors["answer"].tolist())
    found = [log_likelihood(model, [pair], draws=4, seed=seed)[0] for seed in range(120)]
    error = statistics.stdev(found) / math.sqrt(len(found))
    assert abs(statistics.fmean(found) - case["expected"]) < 3.5 * error
    assert statistics.stdev(found) < case["std_one_draw"] / math.sqrt(4)


@pytest.mark.parametrize("draws", [1, 7, 32])
def test_values_do_not_depend_on_batch_size_or_order(model, draws):
    alone = [log_likelihood(model, [pair], draws=draws)[0] for pair in PAIRS]
    for size in (1, 3, None):
        together = log_likelihood(model, PAIRS, draws=draws, batch_size=size)
        assert together == pytest.approx(alone, rel=1e-5)
    backwards = log_likelihood(model, PAIRS[::-1], draws=draws)
    assert backwards[::-1] == pytest.approx(alone, rel=1e-5)


def masked_inputs(model, monkeypatch, pairs, draws=16):
    """What the model is shown: one row a mask."""
    rows = []
    logits = model.logits
    with monkeypatch.context() as patched:
        patched.setattr(
            model,
            "logits",
            lambda ids, mask=None: (rows.extend(ids.tolist()), logits(ids, mask))[1],
        )
        log_likelihood(model, pairs, batch_size=1, draws=draws)
    return rows


def test_masks_are_common_to_all_models(model, monkeypatch):
    other = load_model(model.name, device="cpu", dtype="bfloat16")
    shown = [masked_inputs(one, monkeypatch, PAIRS, draws=5) for one in (model, other)]
    assert shown[0] == shown[1]


def test_equally_long_choices_of_one_item_share_their_masks(model, monkeypatch):
    mask = model.special.mask_id
    hidden = [
        [[token == mask for token in row] for row in masked_inputs(model, monkeypatch, [choice])]
        for choice in (([1, 2, 3], [*range(10, 18)]), ([1, 2, 3], [*range(20, 28)]))
    ]
    assert hidden[0] == hidden[1]


def test_choices_that_look_alike_when_hidden_take_one_model_call(model, monkeypatch):
    choices = [([1, 2, 3], [choice]) for choice in range(10, 14)]
    assert len(masked_inputs(model, monkeypatch, choices)) == 1
    together = log_likelihood(model, choices)
    alone = [log_likelihood(model, [choice])[0] for choice in choices]
    assert together == pytest.approx(alone, rel=1e-6)


def test_many_pairs_are_prepared_in_parts_with_the_same_values(model, monkeypatch):
    whole = log_likelihood(model, PAIRS, draws=8)
    monkeypatch.setattr(likelihood, "_ROWS_AT_ONCE", 3)
    seen = []
    parts = log_likelihood(model, PAIRS, draws=8, progress=lambda *at: seen.append(at))
    assert parts == pytest.approx(whole, rel=1e-6)
    assert seen == [(1, 5), (2, 5), (4, 5), (5, 5)]


def test_the_context_is_never_masked(model, monkeypatch):
    for row in masked_inputs(model, monkeypatch, PAIRS[:1], draws=8):
        assert row[:4] == PAIRS[0][0]


def test_a_one_token_answer_takes_one_model_call(model, monkeypatch):
    assert len(masked_inputs(model, monkeypatch, [([1, 2], [3])], draws=128)) == 1


def test_an_empty_answer_is_certain(model):
    assert log_likelihood(model, [([1, 2], [])]) == [0.0]


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
    ],
)
def test_what_does_not_fit_is_refused(model, pairs, options, message):
    with pytest.raises(InputError, match=message):
        log_likelihood(model, pairs, **options)
