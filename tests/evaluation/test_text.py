import pytest
from hypothesis import given
from hypothesis import strategies as st

from dllm_sweep import load_model
from dllm_sweep.errors import InputError
from dllm_sweep.evaluation.text import TaskText, is_settled, stop_strings

CHAT = [{"role": "user", "content": "How many?"}]


@pytest.fixture
def text(model):
    return TaskText(model)


@pytest.fixture(scope="module")
def tiny():
    return TaskText(load_model("llada-tiny", device="cpu"))


def test_trailing_spaces_of_the_context_go_to_the_continuation(text):
    context, continuation = text.encode_pair("The quick ", "brown fox")
    assert context == text.encode("The quick")
    assert context + continuation == text.encode("The quick brown fox")


def test_an_empty_context_leaves_everything_to_the_continuation(text):
    assert text.encode_pair("", "fox") == ([], text.encode("fox"))


@pytest.mark.parametrize(
    ("context", "continuation"), [("The town of Ada:", " Kelso"), ("The town of Ada: ", "Kelso")]
)
def test_a_token_across_the_border_is_not_cut(tiny, context, continuation):
    """`: ` is one token of llada-tiny, which was trained on ` Kelso` behind a colon."""
    assert tiny.encode("Ada: Kelso")[-2:] != tiny.encode(":") + tiny.encode(" Kelso")
    found = tiny.encode_pair(context, continuation)
    assert found == (tiny.encode("The town of Ada:"), tiny.encode(" Kelso"))


def test_a_continuation_that_would_vanish_into_the_context_is_scored(tiny):
    assert len(tiny.encode(": ")) == 1
    assert tiny.encode_pair("Ada:", " ") == (tiny.encode("Ada:"), tiny.encode(" "))


def test_begin_of_text_stands_once_before_prompts_of_families_that_begin_with_it(dream):
    text, bos = TaskText(dream), dream.special.bos_id
    ids = text.encode("fox")
    assert ids == [bos, *text.encode_bare("fox")]
    assert text.encode("<|beginoftext|>fox") == ids
    assert text.encode_pair("fox", " fox")[0] == ids
    assert text.encode_pair("", "fox") == ([bos], text.encode_bare("fox"))


def test_a_conversation_holds_its_own_special_tokens(dream, model):
    for one in (dream, model):
        chat = TaskText(one, chat=True)
        written = chat.conversation(CHAT, prefix=False)
        assert chat.encode(written) == one.chat_prompt(CHAT)
    assert chat.encode(written)[:2].count(model.special.bos_id) == 1


def test_an_answer_that_is_begun_stands_behind_the_template(model):
    chat = TaskText(model, chat=True)
    whole = chat.conversation([*CHAT, {"role": "assistant", "content": "It is"}], prefix=True)
    assert whole == chat.conversation(CHAT, prefix=False) + "It is"


def test_the_line_breaks_that_end_a_template_stay_in_the_context(model):
    chat = TaskText(model, chat=True)
    context = chat.conversation(CHAT, prefix=False)
    assert context.endswith("\n\n")
    assert chat.encode_pair(context, "fox") == (chat.encode(context), chat.encode_bare("fox"))


def test_long_prompts_are_cut_from_the_left_behind_begin_of_text(dream, text):
    ids = [*range(600)]
    assert text.fit(ids, 12, "item") == (ids[100:], 100)
    assert text.fit(ids[:500], 12, "item") == (ids[:500], 0)
    bos = dream.special.bos_id
    assert TaskText(dream).fit([bos, *ids], 12, "item") == ([bos, *ids[101:]], 101)


def test_an_answer_that_fills_the_model_is_refused_by_name(text):
    with pytest.raises(InputError, match=r"t\|3: 513 tokens of answer are more"):
        text.fit([1], 513, "t|3")


def test_text_ends_at_end_of_text(text, model):
    (end,) = model.special.end_ids
    assert text.decode([*text.encode("fox"), end, *text.encode("quick")], []) == "fox"


def test_an_answer_in_a_conversation_ends_with_its_turn(model):
    ids = TaskText(model).encode("fox<|eot_id|>quick")
    assert TaskText(model, chat=True).decode(ids, []) == "fox"
    assert TaskText(model).decode(ids, []) == "foxquick"


def test_text_is_cut_at_the_first_stop_string_whatever_their_order(text):
    ids = text.encode("12 + 24 = 36\n\nfox")
    assert text.decode(ids, ["fox", "\n\n", "="]) == "12 + 24 "
    assert text.decode(ids, ["absent"]) == "12 + 24 = 36\n\nfox"


def test_a_special_token_can_be_a_stop_string_and_none_is_left_in_the_text(text, model):
    ids = [*text.encode("a<|startoftext|>b<|eot_id|>c"), model.special.mask_id]
    assert text.decode(ids, ["<|eot_id|>"]) == "ab"
    assert "<|" not in text.decode(ids[:3] + ids[-1:], [])


@pytest.mark.parametrize(
    ("until", "stops"), [("x", ["x"]), (["x", ""], ["x"]), (None, []), ([], [])]
)
def test_stop_strings_are_read_in_every_form(until, stops):
    assert stop_strings({"until": until}) == stops


@pytest.mark.parametrize(
    ("text", "settled"),
    [
        ("12\n", True),
        ("12", False),
        ("12\n\n", True),
        ("12\nQ", False),
        ("12\nQ\n", True),
        ("12\nQ: 3", True),
        ("12\N{REPLACEMENT CHARACTER}", False),
    ],
)
def test_a_cut_is_settled_once_no_other_stop_string_is_open(text, settled):
    assert is_settled(text, ["2\nQ:", "Q", "\n\n"] if "Q" in text else ["\n"]) == settled


@given(
    st.text(alphabet="ab\n", max_size=12),
    st.lists(st.text(alphabet="ab\n", min_size=1, max_size=4), min_size=1, max_size=3),
    st.integers(0, 12),
)
def test_nothing_behind_a_settled_front_changes_the_answer(whole, stops, length):
    def cut(text):
        return text[: min((text.find(stop) for stop in stops if stop in text), default=len(text))]

    if is_settled(whole[:length], stops):
        assert cut(whole[:length]) == cut(whole)


@given(ids=st.lists(st.integers(0, 319), max_size=24), length=st.integers(0, 24))
def test_a_complete_front_gives_the_text_of_the_whole_answer(model, ids, length):
    """Tokens at random: broken characters, special tokens and ends included."""
    text, stops = TaskText(model), ["th", "a", "\n", "eot_"]
    if text.stop_rule(stops)(ids[:length]):
        assert text.decode(ids[:length], stops) == text.decode(ids, stops)


def test_end_of_text_completes_an_answer_and_a_text_without_stop_strings_never_is(text, model):
    (end,) = model.special.end_ids
    rule = text.stop_rule([])
    assert rule([5, end])
    assert not rule([5, 6])
