"""The training stream: generated items as rows of tokens, packed into sequences."""

from __future__ import annotations

from array import array
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from random import Random

from tokenizers import Tokenizer

from dllm_sweep.tiny import arithmetic, facts, pieces, programs, text
from dllm_sweep.tiny.split import draw
from dllm_sweep.tiny.tokenizer import END, START

#: How many of a thousand rows are of which kind; within a kind, the share of each stratum.
KINDS = {"arithmetic": 500, "programs": 340, "facts": 100, "text": 60}
ARITHMETIC = {
    "chain-2": 2,
    "chain-3": 4,
    "large-2": 4,
    "product-2": 5,
    "product-1": 3,
    "relation-3": 4,
}
PROGRAMS = {
    "nested-2": 1,
    "nested-4": 2,
    "nested-6": 3,
    "sequence-3": 1,
    "sequence-5": 2,
    "backwards-4": 2,
    "branch": 1,
    "branches": 2,
    "loop": 2,
    "listing": 2,
    "collected-4": 3,
    "collected-6": 4,
    "line-19": 3,
    "line-99": 3,
}
#: Lengths of the response's window; most rows have the one that decoding uses by default.
WINDOW = 32
OTHER_WINDOWS = (16, 24, 40, 48, 64)
LONGEST = pieces.PROMPT_LIMIT + max(OTHER_WINDOWS)
#: Value of `offset` for tokens that belong to no response.
NOT_RESPONSE = 255


@dataclass(frozen=True, kw_only=True)
class Example:
    """A prompt and a response, both as text; `tail` asks for end-of-text up to a window."""

    prompt: str
    response: str
    tail: bool


@dataclass
class Packed:
    """Sequences of one length as flat arrays: token, segment (0 = nothing), offset in response."""

    tokens: array[int] = field(default_factory=lambda: array("H"))
    segments: array[int] = field(default_factory=lambda: array("B"))
    offsets: array[int] = field(default_factory=lambda: array("B"))

    def append(self, other: Packed) -> None:
        """Add another's sequences behind."""
        self.tokens.extend(other.tokens)
        self.segments.extend(other.segments)
        self.offsets.extend(other.offsets)


def example(rng: Random) -> Example:
    """Draw one training example of the mixture."""
    kind = _weighted(rng, KINDS)
    if kind == "arithmetic":
        stratum = _weighted(rng, ARITHMETIC)
        sum_ = draw(lambda r: arithmetic.problem(r, stratum), rng, test=False)
        return Example(prompt=sum_.prompt, response=sum_.response, tail=True)
    if kind == "programs":
        stratum = _weighted(rng, PROGRAMS)
        code = draw(lambda r: programs.program(r, stratum), rng, test=False)
        return Example(prompt=code.prompt, response=code.response, tail=True)
    if kind == "facts":
        return _fact(rng, draw(facts.question, rng, test=False))
    return Example(prompt="", response=draw(text.scene, rng, test=False).text, tail=False)


def told(rng: Random, fact: facts.Fact) -> Example:
    """One training example of a given fact."""
    return _fact(rng, draw(lambda r: facts.asked(r, fact), rng, test=False))


def encoded(
    rng: Random, tokenizer: Tokenizer, item: Example, *, framed: bool = False
) -> tuple[list[int], int]:
    """Tokens of an example with its tail, and where its response starts.

    Prompt and response are encoded apart, as they are when a model continues a prompt. `framed`
    is for models that read a prediction one position earlier, see `_framed`.
    """
    prompt = tokenizer.encode(item.prompt).ids if item.prompt else []
    response = tokenizer.encode(item.response).ids
    if item.tail:
        response += [END] * (_window(rng, len(response)) - len(response))
    tokens, start = (prompt + response)[:LONGEST], len(prompt)
    return _framed(rng, tokens, start, item) if framed else (tokens, start)


def pack(
    rng: Random,
    tokenizer: Tokenizer,
    count: int,
    length: int,
    first: Sequence[Example] = (),
    *,
    framed: bool = False,
) -> Packed:
    """Fill `count` sequences of `length` tokens with whole examples, first fit."""
    waiting = list(first)
    packed = Packed()
    open_: list[list[tuple[list[int], int]]] = [[] for _ in range(16)]
    free = [length] * len(open_)
    while len(packed.tokens) < count * length:
        item = waiting.pop() if waiting else example(rng)
        row = encoded(rng, tokenizer, item, framed=framed)
        place = next((i for i, room in enumerate(free) if room >= len(row[0])), None)
        if place is None:
            place = min(range(len(free)), key=free.__getitem__)
            _close(packed, open_[place], length)
            open_[place], free[place] = [], length
        open_[place].append(row)
        free[place] -= len(row[0])
    return packed


def training_texts(seed: int) -> Iterator[str]:
    """An endless stream of training examples as plain text."""
    rng = Random(seed)
    while True:
        item = example(rng)
        yield item.prompt + item.response


def _fact(rng: Random, question: facts.Question) -> Example:
    # Mostly without a tail: a likelihood sees the answer alone, with nothing behind it.
    return Example(prompt=question.prompt, response=question.response, tail=rng.random() < 0.15)


def _framed(rng: Random, tokens: list[int], start: int, item: Example) -> tuple[list[int], int]:
    # The first token of a row has no prediction, so rows without a prompt always get a start
    # token; the others are met with and without it, as evaluations give them. A likelihood may
    # show one end-of-text behind the answer: half of the facts have one.
    if not start or rng.random() < 0.5:
        tokens, start = [START, *tokens], start + 1
    if item.prompt and not item.tail and rng.random() < 0.5:
        tokens = [*tokens, END]
    return tokens, start


def _weighted(rng: Random, shares: dict[str, int]) -> str:
    return rng.choices(list(shares), list(shares.values()))[0]


def _window(rng: Random, least: int) -> int:
    if least <= WINDOW and rng.random() < 0.85:
        return WINDOW
    return rng.choice([size for size in OTHER_WINDOWS if size >= least])


def _close(packed: Packed, rows: list[tuple[list[int], int]], length: int) -> None:
    for segment, (tokens, start) in enumerate(rows, start=1):
        packed.tokens.extend(tokens)
        packed.segments.extend([segment] * len(tokens))
        packed.offsets.extend([NOT_RESPONSE] * start + list(range(len(tokens) - start)))
    gap = length - sum(len(tokens) for tokens, _ in rows)
    packed.tokens.extend([END] * gap)
    packed.segments.extend([0] * gap)
    packed.offsets.extend([NOT_RESPONSE] * gap)
