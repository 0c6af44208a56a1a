import pytest
from lm_eval.api.instance import Instance

from dllm_sweep import load_model, log_likelihood, nll_bound
from dllm_sweep.errors import CheckpointError
from dllm_sweep.evaluation.lm import DiffusionLM
from dllm_sweep.evaluation.work import Work
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


def test_running_text_is_bounded_in_nats(make_lm):
    lm = make_lm()
    text = "The quick brown fox"
    (found,) = lm.loglikelihood_rolling(requests("loglikelihood_rolling", [(text,)]))
    (bound,) = nll_bound(lm.model, [lm.text.encode_bare(text)], draws=4, items=["t|0"])
    assert found == -bound.nats < 0
    assert lm.work["t", 0].token_forwards == bound.token_forwards


@pytest.mark.parametrize("estimator", ["llada", "dream"])
def test_answers_are_scored_by_the_task_s_estimator(dream, estimator):
    """Dream's has end-of-text behind the answer, begin-of-text before the context: always shown."""
    lm = DiffusionLM(dream, DECODING, draws=64, estimator=estimator)
    ((value, _),) = lm.loglikelihood(requests("loglikelihood", [("one two", " three")]))
    context, answer = lm.text.encode_pair("one two", " three")
    assert context[0] == dream.special.bos_id
    end = [dream.special.end_ids[0]] if estimator == "dream" else []
    expected = log_likelihood(
        dream, [(context, [*answer, *end])], draws=64, items=["t|0"], estimator=estimator
    )
    assert [value] == expected


def test_what_items_took_is_kept(make_lm):
    lm = make_lm(draws=16)
    pairs = [("one two", " a"), ("one two", " b")]
    choices = requests("loglikelihood", pairs)
    for request in choices:
        request.metadata = ("t", 5, 1)
        request.__post_init__()
    lm.loglikelihood(choices)
    length = len(lm.text.encode("one two a"))
    assert lm.work["t", 5] == Work(forwards=1, token_forwards=length)
    lm.generate_until(requests("generate_until", [("one two", {})], task="g"))
    work = lm.work["g", 0]
    assert work.steps == work.forwards <= DECODING.steps
    assert work.token_forwards == work.forwards * (len(lm.text.encode("one two")) + 8)


def test_prompts_that_do_not_fit_are_cut_from_the_left_and_that_is_kept(make_lm):
    lm = make_lm(draws=2)
    words = "one two three " * 300
    cut = len(lm.text.encode(words)) + 8 - 512
    lm.generate_until(requests("generate_until", [(words, {})]))
    assert lm.work["t", 0].truncated == cut > 0
    short = lm.text.fit(lm.text.encode(words), 8, "t")[0]
    assert len(short) == 504
    assert lm.text.encode(words)[-504:] == short
    lm.loglikelihood(requests("loglikelihood", [(words.rstrip(), " four")], task="s"))
    assert lm.work["s", 0].truncated > 0


@pytest.mark.parametrize("family", ["model", "dream"])
def test_early_stops_leave_every_answer_as_it_is(family, request):
    model = request.getfixturevalue(family)
    decoding = DecodingSpec(gen_length=16, steps=16, block_length=4)
    prompts = ["one two", "a much longer prompt"]

    def answers(until, plain):
        lm = DiffusionLM(model, decoding, draws=1, plain=plain)
        asked = [(prompt, {"until": until}) for prompt in prompts]
        written = lm.generate_until(requests("generate_until", asked))
        return written, sum(work.token_forwards for work in lm.work.values())

    whole, _ = answers([], plain=True)
    stops = [whole[0][3:5], whole[1][2], "never said"]
    (fast, took), (plain, all_of_it) = answers(stops, plain=False), answers(stops, plain=True)
    assert fast == plain != whole
    assert took < all_of_it


def test_samples_of_one_item_differ(model):
    sampled = DecodingSpec(gen_length=8, steps=4, block_length=8, temperature=1.0)
    (one,) = requests("generate_until", [("one two", {})])
    first, second = DiffusionLM(model, sampled, draws=1).generate_until([one, one])
    assert first != second


def test_conversations_are_written_out_for_the_harness(model):
    lm = DiffusionLM(model, DECODING, draws=1, chat_template=True)
    turns = [{"role": "user", "content": "How many?"}]
    written = lm.apply_chat_template(turns)
    assert lm.text.encode(written) == model.chat_prompt(turns)
    begun = [*turns, {"role": "assistant", "content": "It is"}]
    assert lm.apply_chat_template(begun, add_generation_prompt=False) == written + "It is"
    assert lm.tokenizer_name == model.name


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
