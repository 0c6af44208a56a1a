"""Word problems with worked steps: chains of operations, and comparisons between people."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from random import Random

from dllm_sweep.tiny import pieces

NAMES = ("Ada", "Ben", "Cleo", "Dan", "Eva", "Finn", "Gus", "Hana", "Ivo", "June", "Kai", "Lea")
THINGS = ("coins", "pens", "shells", "cards", "stamps", "nuts", "stones", "beads", "seeds", "maps")

PHRASES = {
    "+": ("{who} finds {n} more.", "{who} buys {n} more.", "A friend brings {n} more."),
    "-": ("{who} loses {n}.", "{who} sells {n}.", "{who} gives {n} away."),
    "*": ("The pile grows to {n} times its size.", "Soon there are {n} times as many."),
}
RELATIONS = {
    "+": "{who} has {n} more than {other}.",
    "-": "{who} has {n} fewer than {other}.",
    "*": "{who} has {n} times as many as {other}.",
}
Range = tuple[int, int]


@dataclass(frozen=True, kw_only=True)
class Problem:
    """A word problem: what is asked, the worked steps that answer it, and the number."""

    prompt: str
    response: str
    answer: int
    content: str
    stratum: str


@dataclass(frozen=True, kw_only=True)
class Step:
    """One operation on two numbers."""

    left: int
    sign: str
    right: int

    @property
    def result(self) -> int:
        """Its value."""
        if self.sign == "+":
            return self.left + self.right
        return self.left - self.right if self.sign == "-" else self.left * self.right

    def __str__(self) -> str:
        return f"{self.left}{self.sign}{self.right}={self.result}"


@dataclass(frozen=True, kw_only=True)
class Chain:
    """Sizes of a chain: where it starts, what each step may do, how large results get."""

    start: Range
    steps: tuple[Mapping[str, Range], ...]
    top: int


SMALL_SUM = {"+": (10, 99), "-": (10, 99)}
LARGE_SUM = {"+": (100, 999), "-": (100, 999)}
SMALL_ANY = {"+": (2, 99), "-": (2, 99), "*": (2, 9)}
LARGE_ANY = {**LARGE_SUM, "*": (2, 9)}

CHAINS = {
    "chain-2": Chain(start=(10, 99), steps=(SMALL_SUM, SMALL_SUM), top=199),
    "chain-3": Chain(start=(2, 99), steps=(SMALL_ANY,) * 3, top=299),
    "large-2": Chain(start=(100, 999), steps=(LARGE_ANY, LARGE_ANY), top=9999),
    "product-2": Chain(start=(11, 99), steps=({"*": (11, 99)}, LARGE_SUM), top=9999),
    "product-1": Chain(start=(101, 999), steps=({"*": (11, 99)},), top=99999),
}
STRATA = (*CHAINS, "relation-3")


def problem(rng: Random, stratum: str) -> Problem:
    """Draw a problem of one stratum whose response fits the window."""
    make = _relation if stratum == "relation-3" else _chain
    while True:
        found = make(rng, stratum)
        if found is not None and pieces.count(found.response) <= pieces.RESPONSE_LIMIT:
            return found


def worked(steps: list[Step]) -> str:
    """The response: every step, then the answer behind `####`."""
    return "; ".join(map(str, steps)) + f" #### {steps[-1].result}"


def _chain(rng: Random, stratum: str) -> Problem | None:
    sizes = CHAINS[stratum]
    value = start = rng.randint(*sizes.start)
    steps = []
    for choices in sizes.steps:
        sign = rng.choice(list(choices))
        step = Step(left=value, sign=sign, right=rng.randint(*choices[sign]))
        value = step.result
        if not 0 < value <= sizes.top:
            return None
        steps.append(step)
    return _told_chain(rng, stratum, start, steps)


def _told_chain(rng: Random, stratum: str, start: int, steps: list[Step]) -> Problem:
    who, things = rng.choice(NAMES), rng.choice(THINGS)
    told = [rng.choice(PHRASES[step.sign]).format(who=who, n=step.right) for step in steps]
    question = f"How many {things} are there now?"
    return Problem(
        prompt=" ".join([f"{who} has {start} {things}.", *told, question]) + "\nA:",
        response=worked(steps),
        answer=steps[-1].result,
        content=f"chain {start} " + " ".join(f"{step.sign}{step.right}" for step in steps),
        stratum=stratum,
    )


def _relation(rng: Random, stratum: str) -> Problem | None:
    values = [rng.randint(2, 60)]
    steps: list[Step] = []
    others: list[int] = []
    for _ in range(2):
        sign = rng.choice(list(SMALL_ANY))
        others.append(rng.randrange(len(values)))
        steps.append(Step(left=values[others[-1]], sign=sign, right=rng.randint(*SMALL_ANY[sign])))
        values.append(steps[-1].result)
    if not all(0 < value <= 199 for value in values):
        return None
    pair = rng.choice(((0, 1), (0, 2), (1, 2)))
    steps.append(Step(left=values[pair[0]], sign="+", right=values[pair[1]]))
    return _told_relation(rng, stratum, steps, others, pair)


def _told_relation(
    rng: Random, stratum: str, steps: list[Step], others: list[int], pair: tuple[int, int]
) -> Problem:
    people, things = rng.sample(NAMES, 3), rng.choice(THINGS)
    told = [
        RELATIONS[step.sign].format(who=people[place], n=step.right, other=people[other])
        for place, (step, other) in enumerate(zip(steps, others, strict=False), start=1)
    ]
    start = steps[0].left
    asked = f"How many do {people[pair[0]]} and {people[pair[1]]} have together?"
    links = " ".join(
        f"{other}{step.sign}{step.right}" for step, other in zip(steps, others, strict=False)
    )
    return Problem(
        prompt=" ".join([f"{people[0]} has {start} {things}.", *told, asked]) + "\nA:",
        response=worked(steps),
        answer=steps[-1].result,
        content=f"relation {start} {links} of {pair[0]}{pair[1]}",
        stratum=stratum,
    )
