import pytest
from lm_eval.api.instance import Instance

from dllm_sweep import load_model
from dllm_sweep.errors import CheckpointError, InputError
from dllm_sweep.evaluation.lm import DiffusionLM, stop_strings
from dllm_sweep.models.base import DiffusionModel
from dllm_sweep.spec import DecodingSpec

DECODING = DecodingSpec(gen_length=8, steps=4, block_length=8)


def requests(kind, arguments, task="t"):
    return [
        Instance(request_type=kind, doc={}, arguments=pair, idx=0, metadata=(task, number, 1))
        for number, pair in enumerate(arguments)
    ]


@pytest.fixture
def make_lm(model):
    def make(**options):
        return DiffusionLM(model, DECODING, **{"draws": 4, **options})

    return make


def test_trailing_spaces_of_the_context_go_to_the_continuation(make_lm):
    lm = make_lm()
    context, continuation = lm.encode_pair("The quick ", "brown fox")
    assert context == lm.encode("The quick")
    assert context + continuation == lm.encode("The quick brown fox")


def test_an_empty_context_leaves_everything_to_the_continuation(make_lm):
    lm = make_lm()
    assert lm.encode_pair("", "fox") == ([], lm.encode("fox"))


@pytest.mark.parametrize(
    ("context", "continuation"), [("The town of Ada:", " Kelso"), ("The town of Ada: ", "Kelso")]
)
def test_a_token_across_the_border_is_not_cut(context, continuation):
    """`: ` is one token of llada-tiny, which was trained on ` Kelso` behind a colon."""
    lm = DiffusionLM(load_model("llada-tiny", device="cpu"), DECODING, draws=1)
    assert lm.encode("Ada: Kelso")[-2:] != lm.encode(":") + lm.encode(" Kelso")
    found = lm.encode_pair(context, continuation)
    assert found == (lm.encode("The town of Ada:"), lm.encode(" Kelso"))


def test_a_continuation_that_would_vanish_into_the_context_is_scored():
    lm = DiffusionLM(load_model("llada-tiny", device="cpu"), DECODING, draws=1)
    assert len(lm.encode(": ")) == 1
    assert lm.encode_pair("Ada:", " ") == (lm.encode("Ada:"), lm.encode(" "))


def test_text_ends_at_end_of_text(make_lm):
    lm = make_lm()
    (end,) = lm.model.special.end_ids
    assert lm.decode([*lm.encode("fox"), end, *lm.encode("quick")], []) == "fox"


def test_text_is_cut_at_the_first_stop_string_whatever_their_order(make_lm):
    lm = make_lm()
    ids = lm.encode("12 + 24 = 36\n\nfox")
    assert lm.decode(ids, ["fox", "\n\n", "="]) == "12 + 24 "
    assert lm.decode(ids, ["absent"]) == "12 + 24 = 36\n\nfox"


def test_a_special_token_can_be_a_stop_string_and_none_is_left_in_the_text(make_lm):
    lm = make_lm()
    ids = [*lm.encode("a<|startoftext|>b<|eot_id|>c"), lm.model.special.mask_id]
    assert lm.decode(ids, ["<|eot_id|>"]) == "ab"
    assert "<|" not in lm.decode(ids[:3] + ids[-1:], [])


@pytest.mark.parametrize(
    ("until", "stops"), [("x", ["x"]), (["x", ""], ["x"]), (None, []), ([], [])]
)
def test_stop_strings_are_read_in_every_form(until, stops):
    assert stop_strings({"until": until}) == stops


def test_answers_do_not_depend_on_the_batch_size(make_lm):
    prompts = [("one two", {}), ("a much longer prompt than that", {}), ("x", {})]
    scored = [("one", " two"), ("one two three", " four five six"), ("x", " y")]
    written, values = [], []
    for size in (1, 3):
        lm = make_lm(batch_size=size)
        written.append(lm.generate_until(requests("generate_until", prompts)))
        values.append([value for value, _ in lm.loglikelihood(requests("loglikelihood", scored))])
    assert written[0] == written[1]
    assert values[0] == pytest.approx(values[1], rel=1e-5)


def test_an_items_sample_depends_on_the_item_not_on_its_place(model):
    sampled = DecodingSpec(gen_length=8, steps=4, block_length=8, temperature=1.0)
    lm = DiffusionLM(model, sampled, draws=1, seed=5)
    both = requests("generate_until", [("one two", {}), ("three", {})])
    assert lm.generate_until(both)[1:] == lm.generate_until(both[1:])


def test_masks_depend_on_the_seed(make_lm):
    scored = requests("loglikelihood", [("one", " two three four five six seven")])
    first, again, other = (make_lm(seed=seed).loglikelihood(scored) for seed in (0, 0, 1))
    assert first == again != other


def test_perplexity_of_running_text_is_refused_by_name(make_lm):
    asked = requests("loglikelihood_rolling", [("text",)], task="wikitext")
    with pytest.raises(InputError, match="'wikitext' asks for perplexity"):
        make_lm().loglikelihood_rolling(asked)


def test_a_model_without_tokenizer_is_refused(model):
    mute = DiffusionModel(
        name="mute",
        host=model.host,
        family=model.family,
        tokenizer=None,
        special=model.special,
        max_length=model.max_length,
    )
    with pytest.raises(CheckpointError, match="'mute' has no tokenizer"):
        DiffusionLM(mute, DECODING, draws=1)


def test_loading_twice_gives_the_same_scores(model, make_lm):
    scored = requests("loglikelihood", [("one", " two three four five")])
    again = DiffusionLM(load_model(model.name, device="cpu"), DECODING, draws=4)
    assert again.loglikelihood(scored) == make_lm().loglikelihood(scored)
