import re
from random import Random

import pytest

from dllm_sweep.tiny import arithmetic, corpus, facts, pieces, programs, text
from dllm_sweep.tiny.split import draw, draw_distinct, is_test

_GROWS = {"finds": "+", "buys": "+", "brings": "+", "loses": "-", "sells": "-", "gives": "-"}
_GROWS |= {"grows": "*", "Soon": "*"}


@pytest.mark.parametrize("stratum", arithmetic.STRATA)
def test_the_worked_steps_answer_the_story(stratum):
    rng = Random(3)
    for _ in range(200):
        item = arithmetic.problem(rng, stratum)
        read = _read_relation if stratum == "relation-3" else _read_chain
        assert read(item.prompt) == item.answer
        assert item.response.endswith(f" #### {item.answer}")
        steps = re.findall(r"(\d+)([-+*])(\d+)=(\d+)", item.response)
        assert all(_apply(int(a), sign, int(b)) == int(c) for a, sign, b, c in steps)
        _check_lengths(item)


@pytest.mark.parametrize("stratum", programs.STRATA)
def test_programs_pass_their_own_tests(stratum):
    rng = Random(3)
    for _ in range(60):
        item = programs.program(rng, stratum)
        _check_lengths(item)
        scope = {}
        exec(item.prompt + item.response, scope)
        exec(programs.hidden_tests(item), scope)


@pytest.mark.parametrize("stratum", programs.STRATA)
def test_tests_tell_a_wrong_program_from_a_right_one(stratum):
    item = programs.program(Random(5), stratum)
    scope = {}
    exec(item.prompt + "\n    return 123456789", scope)
    with pytest.raises(AssertionError):
        exec(programs.hidden_tests(item), scope)


def test_a_line_goes_through_the_values_told():
    rng = Random(4)
    for _ in range(200):
        item = programs.program(rng, "line-99")
        scope = {}
        exec(item.prompt + item.response, scope)
        for value, place in re.findall(r"(-?\d+) for (\d+)", item.prompt):
            assert scope[item.function](int(place)) == int(value)


def test_renamed_programs_are_one_item():
    first = programs._canonical(("a", "k"), "\n    return a + k * a")
    assert first == programs._canonical(("m", "z"), "\n    return m + z * m")
    assert first != programs._canonical(("a", "k"), "\n    return k + a * k")


def test_the_world_of_facts_is_fixed():
    world = facts.world()
    assert len(world) == facts.PEOPLE * len(facts.ATTRIBUTES)
    assert len({(fact.who, fact.attribute) for fact in world}) == len(world)
    assert all(fact.value in facts.ATTRIBUTES[fact.attribute][0] for fact in world)
    assert all(len(wordings) >= 4 for _, wordings in facts.ATTRIBUTES.values())


def test_questions_have_one_right_choice():
    known = {(fact.who, fact.attribute): fact.value for fact in facts.world()}
    rng = Random(6)
    for stratum in facts.STRATA:
        for _ in range(200):
            item = facts.question_of(rng, stratum)
            _, who, attribute, _, _ = item.content.split()
            assert who in item.prompt
            assert len(set(item.choices)) == facts.CHOICES
            assert item.choices[item.answer] == known[who, attribute]
            assert item.stratum == stratum


def test_every_fact_has_wordings_in_training():
    for fact in facts.world():
        wordings = range(len(facts.ATTRIBUTES[fact.attribute][1]))
        contents = [f"fact {fact.who} {fact.attribute} wording {place}" for place in wordings]
        assert not all(map(is_test, contents))


def test_the_roll_call_holds_every_rare_fact():
    called = facts.roll_call()
    counts = [called.count(fact) for fact in facts.world()[2000:5000:500]]
    assert counts == [2, 2, 2, 1, 1, 1]


def test_the_same_seed_gives_the_same_examples():
    assert _examples(11) == _examples(11)
    assert _examples(11) != _examples(12)


def test_distinct_items_of_one_split():
    items = draw_distinct(text.scene, Random(0), 50, test=True)
    assert len({item.content for item in items}) == 50
    assert all(is_test(item.content) for item in items)
    assert not is_test(draw(text.scene, Random(0), test=False).content)


def _examples(seed):
    rng = Random(seed)
    return [corpus.example(rng) for _ in range(200)]


def _check_lengths(item):
    assert pieces.count(item.prompt) <= pieces.PROMPT_LIMIT
    assert pieces.count(item.response) <= pieces.RESPONSE_LIMIT


def _apply(left, sign, right):
    return {"+": left + right, "-": left - right, "*": left * right}[sign]


def _read_chain(prompt):
    told = prompt.split("\n")[0].split(". ")
    value = int(re.search(r"\d+", told[0])[0])
    for sentence in told[1:-1]:
        sign = next(sign for word, sign in _GROWS.items() if word in sentence)
        value = _apply(value, sign, int(re.search(r"\d+", sentence)[0]))
    return value


def _read_relation(prompt):
    told = prompt.split("\n")[0].split(". ")
    amounts = {told[0].split()[0]: int(re.search(r"\d+", told[0])[0])}
    for sentence in told[1:3]:
        words = sentence.split()
        sign = {"more": "+", "fewer": "-", "times": "*"}[words[3]]
        amounts[words[0]] = _apply(amounts[words[-1]], sign, int(words[2]))
    first, second = re.search(r"do (\w+) and (\w+) have", prompt).groups()
    return amounts[first] + amounts[second]
