"""Facts about invented people: frequent ones and rare ones, each asked in several wordings."""

from __future__ import annotations

from bisect import bisect
from dataclasses import dataclass
from functools import cache
from itertools import accumulate
from random import Random

PEOPLE = 1000
#: How fast told facts grow rare: the fact of rank r is met in proportion to 1 / r ** EXPONENT.
EXPONENT = 1.2
CHOICES = 4

_FIRST: tuple[str, ...] = (
    "Bel",
    "Cor",
    "Dra",
    "El",
    "Fen",
    "Gal",
    "Hal",
    "Il",
    "Jor",
    "Kel",
    "Lor",
    "Mor",
)
_FIRST += ("Nel", "Or", "Pel", "Qua", "Ros", "Sel", "Tor", "Ul", "Vel", "Wil", "Yor", "Zan")
_MIDDLE = ("a", "e", "i", "o", "u", "ba", "di", "ga", "li", "mo", "na", "ri", "so", "ta", "vu")
_LAST = ("bert", "dan", "fia", "gor", "la", "mir", "nis", "ra", "ros", "sha", "tan", "vin", "zel")


def _words(text: str) -> tuple[str, ...]:
    return tuple(text.split())


#: attribute -> (values, wordings). A wording stops where the value follows.
ATTRIBUTES: dict[str, tuple[tuple[str, ...], tuple[str, ...]]] = {
    "instrument": (
        _words("violin flute drum harp piano horn lute cello guitar organ fiddle banjo"),
        (
            "Which instrument does {who} play?\nA:",
            "{who} plays the",
            "In the band, {who} is heard on the",
            "The favourite instrument of {who} is the",
            "Instrument of {who}:",
            "Every evening {who} practises the",
        ),
    ),
    "animal": (
        _words("cat dog horse goat rabbit parrot fox snake turtle pony sheep owl"),
        (
            "Which animal does {who} keep?\nA:",
            "{who} keeps a",
            "In the garden of {who} lives a",
            "The pet of {who} is a",
            "Animal of {who}:",
            "Every morning {who} feeds the",
        ),
    ),
    "colour": (
        _words("red blue green yellow white black brown purple orange grey pink gold"),
        (
            "Which colour does {who} like best?\nA:",
            "{who} likes the colour",
            "The door of the house of {who} is",
            "The favourite colour of {who} is",
            "Colour of {who}:",
            "On feast days {who} dresses in",
        ),
    ),
    "trade": (
        _words("baker smith miller tailor farmer sailor doctor painter mason hunter weaver cook"),
        (
            "What is the trade of {who}?\nA:",
            "{who} works as a",
            "The people of the town know {who} as a",
            "The daily work of {who} is that of a",
            "Trade of {who}:",
            "As a young person {who} became a",
        ),
    ),
    "town": (
        _words("Arden Brill Corby Dunmore Elgin Fairlee Garth Holm Ister Kelso Lund Marl"),
        (
            "Where does {who} live?\nA:",
            "{who} lives in",
            "Letters for {who} are sent to",
            "The home of {who} is in",
            "Town of {who}:",
            "If you look for {who}, travel to",
        ),
    ),
}

#: Ranks at which a stratum ends: the most frequent facts come first. Frequent and common facts
#: are drawn by rank; the stream holds two rows of each fact told twice, one of each told once.
STRATA = {"frequent": 500, "common": 2000, "twice": 3500, "once": PEOPLE * len(ATTRIBUTES)}


@dataclass(frozen=True, kw_only=True)
class Fact:
    """One person's value of one attribute; rank 0 is the fact met most often."""

    who: str
    attribute: str
    value: str
    rank: int


@dataclass(frozen=True, kw_only=True)
class Question:
    """A fact in one wording, with four values to choose from."""

    prompt: str
    choices: tuple[str, ...]
    answer: int
    content: str
    stratum: str

    @property
    def response(self) -> str:
        """The right value as it follows the prompt."""
        return f" {self.choices[self.answer]}"


@cache
def world() -> tuple[Fact, ...]:
    """All facts, the most frequent first. The world never changes: its seed is fixed."""
    rng = Random("the world of the tiny facts")
    names = [f + m + last for f in _FIRST for m in _MIDDLE for last in _LAST]
    pairs = [(who, name) for who in rng.sample(names, PEOPLE) for name in ATTRIBUTES]
    rng.shuffle(pairs)
    return tuple(
        Fact(who=who, attribute=name, value=rng.choice(ATTRIBUTES[name][0]), rank=rank)
        for rank, (who, name) in enumerate(pairs)
    )


@cache
def _weights() -> tuple[float, ...]:
    return tuple(accumulate((rank + 1) ** -EXPONENT for rank in range(STRATA["common"])))


def question(rng: Random) -> Question:
    """Draw a frequent or common fact by its frequency, and a wording."""
    weights = _weights()
    fact = world()[bisect(weights, rng.random() * weights[-1])]
    return asked(rng, fact)


def roll_call() -> tuple[Fact, ...]:
    """The facts told twice, all of them two times, then the facts told once."""
    twice = world()[STRATA["common"] : STRATA["twice"]]
    return (*twice, *twice, *world()[STRATA["twice"] :])


def question_of(rng: Random, stratum: str) -> Question:
    """Draw a fact of one stratum, all its facts alike, and a wording."""
    ends = list(STRATA.values())
    place = list(STRATA).index(stratum)
    low = ends[place - 1] if place else 0
    return asked(rng, world()[rng.randrange(low, ends[place])])


def asked(rng: Random, fact: Fact) -> Question:
    """Ask for a fact in a wording drawn at random."""
    values, wordings = ATTRIBUTES[fact.attribute]
    place = rng.randrange(len(wordings))
    wrong = rng.sample([value for value in values if value != fact.value], CHOICES - 1)
    answer = rng.randrange(CHOICES)
    return Question(
        prompt=wordings[place].format(who=fact.who),
        choices=(*wrong[:answer], fact.value, *wrong[answer:]),
        answer=answer,
        content=f"fact {fact.who} {fact.attribute} wording {place}",
        stratum=stratum_of(fact.rank),
    )


def stratum_of(rank: int) -> str:
    """The stratum of a rank."""
    return next(name for name, end in STRATA.items() if rank < end)
