"""Small Python functions from an English description, with hidden tests."""

from __future__ import annotations

import re
from collections.abc import Callable
from dataclasses import dataclass
from random import Random

from dllm_sweep.tiny import pieces
from dllm_sweep.tiny.expressions import condition, constant, leaf, tree, variables

FUNCTIONS = ("f", "g", "score", "mix", "value", "result", "total", "change")
TESTS_PER_PROGRAM = 10


@dataclass(frozen=True, kw_only=True)
class Program:
    """A description that ends with the `def` line, and the body that answers it."""

    prompt: str
    response: str
    function: str
    names: tuple[str, ...]
    content: str
    stratum: str


@dataclass(frozen=True, kw_only=True)
class Draft:
    """A description and a body, before the function has a name."""

    english: str
    body: tuple[str, ...]
    names: tuple[str, ...]


def program(rng: Random, stratum: str) -> Program:
    """Draw a program of one stratum that fits prompt and window."""
    while True:
        draft = _MAKERS[stratum](rng)
        function = rng.choice(FUNCTIONS)
        prompt = f"# {draft.english}\ndef {function}({', '.join(draft.names)}):"
        response = "".join(f"\n    {line}" for line in draft.body)
        if pieces.count(prompt) <= pieces.PROMPT_LIMIT and _fits(draft, response):
            return Program(
                prompt=prompt,
                response=response,
                function=function,
                names=draft.names,
                content=_canonical(draft.names, response),
                stratum=stratum,
            )


def hidden_tests(program: Program) -> str:
    """Assertions on inputs near the program's own constants; the same for the same program."""
    rng = Random(program.content)
    source = program.prompt + program.response
    boundaries = [int(number) for number in re.findall(r"\d+", program.response)]
    scope: dict[str, Callable[..., object]] = {}
    exec(source, {}, scope)  # a program built above, never a model's
    lines: dict[str, None] = {}
    while len(lines) < TESTS_PER_PROGRAM:
        values = [_input(rng, name, boundaries) for name in program.names]
        result = scope[program.function](*values)
        arguments = ", ".join(map(repr, values))
        lines[f"assert {program.function}({arguments}) == {result!r}"] = None
    return "\n".join(lines)


def _fits(draft: Draft, response: str) -> bool:
    used = all(re.search(rf"\b{name}\b", response) for name in draft.names)
    return used and pieces.count(response) <= pieces.RESPONSE_LIMIT


def _canonical(names: tuple[str, ...], response: str) -> str:
    """The body with its parameters numbered: what stays when names and wording change."""
    places = {name: f"${place}" for place, name in enumerate(names)}
    body = re.sub(r"\b[a-z]+\b", lambda word: places.get(word[0], word[0]), response)
    return f"program {len(names)} {body}"


def _input(rng: Random, name: str, boundaries: list[int]) -> int | list[int]:
    if name == "xs":
        return [_number(rng, boundaries) for _ in range(rng.randint(5, 9))]
    return _number(rng, boundaries)


def _number(rng: Random, boundaries: list[int]) -> int:
    top = rng.choice((5, 120))
    near = [value + rng.randint(-1, 1) for value in boundaries]
    return rng.choice([rng.randint(-top, top), rng.randint(-top, top), *near])


def _nested(size: int) -> Callable[[Random], Draft]:
    def make(rng: Random) -> Draft:
        names = variables(rng, rng.randint(2, min(4, size + 1)))
        found = tree(rng, names, size)
        return Draft(
            english=f"Return {found.english}.", body=(f"return {found.code}",), names=tuple(names)
        )

    return make


_STEPS = {
    "Add {y}": ("{t} += {y}", "{t} + {y}"),
    "Subtract {y}": ("{t} -= {y}", "{t} - {y}"),
    "Multiply by {y}": ("{t} *= {y}", "{t} * {y}"),
    "Subtract it from {y}": ("{t} = {y} - {t}", "{y} - {t}"),
    "Take the larger of it and {y}": ("{t} = max({t}, {y})", "max({t}, {y})"),
}


def _sequence(size: int, *, backwards: bool = False) -> Callable[[Random], Draft]:
    def make(rng: Random) -> Draft:
        names = variables(rng, rng.randint(2, 3))
        first, *others = rng.sample(names, len(names))
        told, body = [], []
        for place in range(size):
            english, (inside, last) = rng.choice(list(_STEPS.items()))
            operand = leaf(rng, others, 0.5).code
            told.append(english.format(y=operand))
            body.append(_line(place, size, first, operand, inside, last))
        return Draft(
            english=_backwards(first, told) if backwards else _forwards(first, told),
            body=tuple(body),
            names=tuple(names),
        )

    return make


def _line(place: int, size: int, first: str, operand: str, inside: str, last: str) -> str:
    if place == size - 1:
        return f"return {last.format(t='t', y=operand)}"
    if place == 0:
        return f"t = {last.format(t=first, y=operand)}"
    return inside.format(t="t", y=operand)


def _forwards(first: str, told: list[str]) -> str:
    return f"Start with {first}. " + " ".join(f"{step}." for step in told)


def _backwards(first: str, told: list[str]) -> str:
    # The last step is told first, so the order must be turned round.
    earlier = [f"{step[0].lower()}{step[1:]}" for step in told[-2::-1]]
    return ", after: ".join([told[-1], *earlier, f"start with {first}"]) + "."


def _branch(rng: Random) -> Draft:
    names = variables(rng, rng.randint(2, 3))
    name, *others = rng.sample(names, len(names))
    asked, test = condition(rng, name, leaf(rng, others).code)
    yes, no = tree(rng, names, rng.randint(1, 2)), tree(rng, names, rng.randint(0, 2))
    return Draft(
        english=f"If {asked}, return {yes.english}. Otherwise return {no.english}.",
        body=(f"if {test}:", f"    return {yes.code}", f"return {no.code}"),
        names=tuple(names),
    )


def _branches(rng: Random) -> Draft:
    names = variables(rng, 3)
    told, body = [], []
    for name in rng.sample(names, 2):
        asked, test = condition(rng, name, constant(rng))
        part = tree(rng, names, rng.randint(0, 1))
        told.append(f"If {asked}, return {part.english}.")
        body += [f"if {test}:", f"    return {part.code}"]
    last = tree(rng, names, 1)
    return Draft(
        english=" ".join([*told, f"Otherwise return {last.english}."]),
        body=(*body, f"return {last.code}"),
        names=tuple(names),
    )


def _loop(rng: Random) -> Draft:
    (name,) = variables(rng, 1)
    asked, test = condition(rng, "x", rng.choice((name, constant(rng))))
    part = tree(rng, ["x", name], rng.randint(1, 2))
    start = rng.choice(("0", constant(rng)))
    sign, verb = rng.choice((("+=", "add"), ("-=", "subtract")))
    return Draft(
        english=f"Start with {start}. For each x in xs, if {asked}, {verb} {part.english}.",
        body=(
            f"t = {start}",
            "for x in xs:",
            f"    if {test}:",
            f"        t {sign} {part.code}",
            "return t",
        ),
        names=(name, "xs"),
    )


_ENDINGS = {
    "Sort them.": "sorted({})",
    "Add them up.": "sum({})",
    "Count the different ones.": "len(set({}))",
    "Reverse their order.": "{}[::-1]",
    "Keep only the first {k}.": "{}[:{k}]",
    "Drop the first {k}.": "{}[{k}:]",
}


def _listing(rng: Random) -> Draft:
    (name,) = variables(rng, 1)
    asked, test = condition(rng, "x", rng.choice((name, constant(rng))))
    part = tree(rng, ["x", name], rng.randint(0, 2))
    code, told = f"[{part.code} for x in xs if {test}]", []
    for english, around in rng.sample(list(_ENDINGS.items()), rng.randint(1, 2)):
        size = str(rng.randint(1, 4))
        told.append(english.format(k=size))
        code = around.format(code, k=size)
        if around.startswith(("sum", "len")):
            break
    return Draft(
        english=f"Take {part.english} for each x in xs if {asked}. " + " ".join(told),
        body=(f"return {code}",),
        names=(name, "xs"),
    )


def _collected(size: int) -> Callable[[Random], Draft]:
    """Steps whose sum must be written in one line: coefficients are multiplied out unseen."""

    def make(rng: Random) -> Draft:
        first, second = rng.sample(variables(rng, 2), 2)
        terms = {first: 1, second: 0, "": 0}
        told = []
        for place in range(size):
            if place % 2 == 0:
                factor = rng.randint(2, 9)
                terms = {name: factor * count for name, count in terms.items()}
                told.append(f"Multiply by {factor}.")
                continue
            name = second if place == 1 else ""
            amount = 1 if name else rng.randint(2, 60)
            sign = rng.choice((1, -1))
            terms[name] += sign * amount
            told.append(f"{'Add' if sign > 0 else 'Subtract'} {name or amount}.")
        return Draft(
            english=f"Start with {first}. {' '.join(told)} Write one sum.",
            body=(f"return {linear(terms)}",),
            names=tuple(sorted((first, second))),
        )

    return make


def _line_through(steepest: int) -> Callable[[Random], Draft]:
    """Two values of a straight line; its two numbers must be found."""

    def make(rng: Random) -> Draft:
        (name,) = variables(rng, 1)
        slope, height = rng.randint(2, steepest), rng.choice((1, -1)) * rng.randint(1, 199)
        low, high = sorted(rng.sample(range(1, 10), 2))
        values = " and ".join(f"{slope * x + height} for {x}" for x in (low, high))
        return Draft(
            english=f"The straight line with the values {values}.",
            body=(f"return {linear({name: slope, '': height})}",),
            names=(name,),
        )

    return make


def linear(terms: dict[str, int]) -> str:
    """A sum of multiples of variables and a constant (under the empty name) as Python."""
    code = ""
    for name, count in terms.items():
        if count:
            sign = "-" if count < 0 else "+"
            part = f"{abs(count)} * {name}" if name else str(abs(count))
            code += f" {sign} {part}" if code else part if count > 0 else f"-{part}"
    return code


_MAKERS: dict[str, Callable[[Random], Draft]] = {
    "nested-2": _nested(2),
    "nested-4": _nested(4),
    "nested-6": _nested(6),
    "sequence-3": _sequence(3),
    "sequence-5": _sequence(5),
    "backwards-4": _sequence(4, backwards=True),
    "branch": _branch,
    "branches": _branches,
    "loop": _loop,
    "listing": _listing,
    "collected-4": _collected(4),
    "collected-6": _collected(6),
    "line-19": _line_through(19),
    "line-99": _line_through(99),
}
STRATA = tuple(_MAKERS)
