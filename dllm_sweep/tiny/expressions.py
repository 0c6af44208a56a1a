"""Arithmetic expressions in two languages: nested English and Python with its brackets."""

from __future__ import annotations

from dataclasses import dataclass
from random import Random

#: How tightly an expression binds: sums, products, single terms.
SUM, PRODUCT, TERM = 1, 2, 3

LETTERS = "abcdkmnpqwyz"


@dataclass(frozen=True, kw_only=True)
class Expression:
    """The same expression in English and in Python."""

    english: str
    code: str
    level: int


_BINARY = {
    "the sum of {x} and {y}": ("+", SUM),
    "the difference of {x} and {y}": ("-", SUM),
    "the product of {x} and {y}": ("*", PRODUCT),
}
_CALLS = {"the larger of {x} and {y}": "max", "the smaller of {x} and {y}": "min"}

CONDITIONS = {
    "{x} is greater than {y}": "{x} > {y}",
    "{x} is less than {y}": "{x} < {y}",
    "{x} is at least {y}": "{x} >= {y}",
    "{x} is at most {y}": "{x} <= {y}",
    "{x} is not {y}": "{x} != {y}",
}


def variables(rng: Random, count: int) -> list[str]:
    """Different one-letter names in the order of the alphabet."""
    return sorted(rng.sample(LETTERS, count))


def constant(rng: Random, top: int = 99) -> str:
    """A number from 2 to `top`."""
    return str(rng.randint(2, top))


def leaf(rng: Random, names: list[str], share: float = 0.7) -> Expression:
    """A variable, or else a constant."""
    term = rng.choice(names) if rng.random() < share else constant(rng)
    return Expression(english=term, code=term, level=TERM)


def tree(rng: Random, names: list[str], size: int) -> Expression:
    """An expression of `size` operations, drawn from all shapes."""
    if size == 0:
        return leaf(rng, names)
    if rng.random() < 0.15:
        return _remainder(tree(rng, names, size - 1), constant(rng, 12))
    left_size = rng.randrange(size)
    left, right = tree(rng, names, left_size), tree(rng, names, size - 1 - left_size)
    if rng.random() < 0.25:
        return _call(rng, left, right)
    return _binary(rng, left, right)


def condition(rng: Random, name: str, other: str) -> tuple[str, str]:
    """A test of one variable, as (English, Python)."""
    if rng.random() < 0.25:
        divisor = constant(rng, 9)
        return f"{name} is a multiple of {divisor}", f"{name} % {divisor} == 0"
    english, code = rng.choice(list(CONDITIONS.items()))
    return english.format(x=name, y=other), code.format(x=name, y=other)


def _bracketed(part: Expression, least: int) -> str:
    return part.code if part.level >= least else f"({part.code})"


def _binary(rng: Random, left: Expression, right: Expression) -> Expression:
    english, (sign, level) = rng.choice(list(_BINARY.items()))
    return Expression(
        english=english.format(x=left.english, y=right.english),
        code=f"{_bracketed(left, level)} {sign} {_bracketed(right, level + 1)}",
        level=level,
    )


def _call(rng: Random, left: Expression, right: Expression) -> Expression:
    english, name = rng.choice(list(_CALLS.items()))
    return Expression(
        english=english.format(x=left.english, y=right.english),
        code=f"{name}({left.code}, {right.code})",
        level=TERM,
    )


def _remainder(part: Expression, divisor: str) -> Expression:
    return Expression(
        english=f"the remainder of {part.english} by {divisor}",
        code=f"{_bracketed(part, PRODUCT)} % {divisor}",
        level=PRODUCT,
    )
