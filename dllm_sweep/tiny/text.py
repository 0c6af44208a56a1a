"""Running text: short scenes in which the same people and things are met again."""

from __future__ import annotations

from dataclasses import dataclass
from random import Random

_PEOPLE: tuple[str, ...] = (
    "the old miller",
    "a young sailor",
    "the baker",
    "a tall farmer",
    "the quiet teacher",
)
_PEOPLE += ("a small child", "the doctor", "a stranger", "the painter", "an old woman")
_PLACES: tuple[str, ...] = (
    "the river",
    "the market",
    "the bridge",
    "the forest",
    "the harbour",
    "the mill",
)
_PLACES += ("the garden", "the old tower", "the village", "the lake")
_TIMES: tuple[str, ...] = (
    "In the morning",
    "At noon",
    "Late in the evening",
    "Before sunrise",
    "One winter day",
)
_TIMES += ("On a warm night", "After the rain", "In early spring")
_THINGS: tuple[str, ...] = (
    "a basket of apples",
    "a letter",
    "a lamp",
    "a silver key",
    "a loaf of bread",
)
_THINGS += ("a wooden box", "an old map", "a bag of seeds", "a warm coat", "a broken clock")
_VERBS = ("carried", "found", "lost", "sold", "repaired", "hid", "painted", "bought")
_WEATHER: tuple[str, ...] = ("The wind was cold", "The sky was clear", "Snow covered the ground")
_WEATHER += ("The birds were silent", "The water was high", "The road was empty")
_FEELINGS = ("was glad", "felt tired", "was afraid", "laughed aloud", "said nothing", "was proud")


@dataclass(frozen=True, kw_only=True)
class Scene:
    """One short text."""

    text: str

    @property
    def content(self) -> str:
        """The text itself: every scene is its own item."""
        return f"scene {self.text}"


def scene(rng: Random) -> Scene:
    """Draw a scene of four to seven sentences."""
    first, second = rng.sample(_PEOPLE, 2)
    thing, place = rng.choice(_THINGS), rng.choice(_PLACES)
    short = thing.split(" ", 1)[1]
    sentences = [f"{rng.choice(_TIMES)} {first} walked to {place} with {thing}."]
    middle = [
        f"{rng.choice(_WEATHER)}, and nobody else was near {place}.",
        f"{_again(first)} met {second}, who {rng.choice(_VERBS)} {rng.choice(_THINGS)} there.",
        f"Near {rng.choice(_PLACES)} {second} {rng.choice(_VERBS)} the {short}.",
        f"{_again(second)} {rng.choice(_FEELINGS)} when {_known(first)} came back.",
        f"They spoke about the {short} until {rng.choice(_TIMES).lower()} was long past.",
    ]
    sentences += rng.sample(middle, rng.randint(2, 5))
    sentences.append(f"In the end {_known(first)} kept the {short} and {rng.choice(_FEELINGS)}.")
    return Scene(text=" ".join(sentences))


def _known(person: str) -> str:
    """A person met before: `a sailor` becomes `the sailor`."""
    return "the " + person.split(" ", 1)[1]


def _again(person: str) -> str:
    return _known(person).capitalize()
