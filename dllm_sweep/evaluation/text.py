"""Between a task's text and a model's tokens: prompts in, answers out, and where answers end."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from dllm_sweep.decoding.base import StopRule
from dllm_sweep.decoding.batching import begin_of_text
from dllm_sweep.errors import CheckpointError, InputError
from dllm_sweep.models.base import DiffusionModel
from dllm_sweep.models.tokenizer import chat_text

_BROKEN = "\N{REPLACEMENT CHARACTER}"


class TaskText:
    """Turns a task's text into token ids of one model and back.

    Args:
        model: The model.
        chat: Whether prompts are conversations written out by the chat template. They hold their
            special tokens already, and an answer then ends where its turn ends, too.

    Raises:
        CheckpointError: If the model has no tokenizer, or none that names its begin-of-text.
    """

    def __init__(self, model: DiffusionModel, *, chat: bool = False) -> None:
        if model.tokenizer is None:
            raise CheckpointError(f"model {model.name!r} has no tokenizer: tasks are text")
        self._model, self._tokenizer, self._chat = model, model.tokenizer, chat
        special = model.special
        turn_end = () if special.turn_end_id is None or not chat else (special.turn_end_id,)
        self._ends = {*special.end_ids, *turn_end}
        self._front = [] if chat else begin_of_text(model)

    def encode(self, text: str) -> list[int]:
        """Turn a prompt into token ids, with begin-of-text where the family has it, once."""
        ids: list[int] = self._tokenizer(text, add_special_tokens=not self._chat)["input_ids"]
        return ids if ids[: len(self._front)] == self._front else [*self._front, *ids]

    def encode_bare(self, text: str) -> list[int]:
        """Turn text into token ids, with nothing added."""
        ids: list[int] = self._tokenizer(text, add_special_tokens=False)["input_ids"]
        return ids

    def encode_pair(self, context: str, continuation: str) -> tuple[list[int], list[int]]:
        """Encode both as one text; spaces at the context's end go to the continuation.

        Tokenizers join a space to the word behind it: scored apart, neither would be what the
        model has seen in training. The line breaks that end a chat template belong to the template
        and stay. Where a token would reach across the border, as `: ` may, both are encoded apart,
        as they are when the model writes behind the context itself: cutting the whole would score
        something else, and perhaps nothing at all.
        """
        kept = context if self._chat else context.rstrip()
        moved = context[len(kept) :] + continuation
        whole, first = self.encode(kept + moved), self.encode(kept)
        if whole[: len(first)] == first:
            return first, whole[len(first) :]
        return first, self.encode_bare(moved)

    def fit(self, ids: Sequence[int], behind: int, what: str) -> tuple[list[int], int]:
        """Cut a prompt from the left so that it and `behind` tokens fit; begin-of-text stays.

        Returns:
            The prompt and how many of its tokens were cut off.

        Raises:
            InputError: If what stands behind fills the model alone.
        """
        longest = self._model.max_length
        cut = len(ids) + behind - longest
        if cut <= 0:
            return list(ids), 0
        kept = len(self._front) if list(ids[: len(self._front)]) == self._front else 0
        if behind + kept > longest:
            raise InputError(
                f"{what}: {behind} tokens of answer are more than the model's {longest} hold"
            )
        return [*ids[:kept], *ids[kept + cut :]], cut

    def decode(self, ids: Sequence[int], stops: Sequence[str]) -> str:
        """Turn generated ids into text, cut at end-of-text and at the first stop string.

        Stop strings may be special tokens; those that are left are dropped afterwards.
        """
        length = next((place for place, one in enumerate(ids) if one in self._ends), len(ids))
        text = self._decode(ids[:length])
        text = text[: _first(text, stops)]
        for token in self._special_tokens():
            text = text.replace(token, "")
        return text

    def stop_rule(self, stops: Sequence[str]) -> StopRule:
        """Say of the finished front of an answer whether `decode` reads nothing behind it."""

        def is_complete(front: Sequence[int]) -> bool:
            if any(one in self._ends for one in front):
                return True
            return bool(stops) and is_settled(self._decode(front), stops)

        return is_complete

    def conversation(self, messages: Sequence[Mapping[str, str]], *, prefix: bool) -> str:
        """Write a conversation up to where the answer starts.

        Args:
            messages: The turns.
            prefix: Whether the last turn is the front of the answer itself.
        """
        family = self._model.family
        if not prefix:
            return chat_text(self._tokenizer, family, messages)
        return chat_text(self._tokenizer, family, messages[:-1]) + messages[-1]["content"]

    def _decode(self, ids: Sequence[int]) -> str:
        text: str = self._tokenizer.decode(list(ids), clean_up_tokenization_spaces=False)
        return text

    def _special_tokens(self) -> list[str]:
        added = self._tokenizer.added_tokens_decoder.values()
        mask = self._tokenizer.convert_ids_to_tokens(self._model.special.mask_id)
        found = {
            *self._tokenizer.all_special_tokens,
            *(str(token) for token in added if token.special),
            *([mask] if isinstance(mask, str) else []),
        }
        return sorted(found)


def stop_strings(options: Mapping[str, Any]) -> list[str]:
    """Read the stop strings from a task's generation options; empty ones stop nothing."""
    until = options.get("until") or []
    return [stop for stop in ([until] if isinstance(until, str) else until) if stop]


def is_settled(text: str, stops: Sequence[str]) -> bool:
    """Whether a stop string is in the text, and no longer text would be cut elsewhere.

    A stop string that starts further left may still be open at the text's end.
    """
    # The last character may lack bytes that the next token brings.
    text = text.rstrip(_BROKEN)
    first = _first(text, stops)
    open_from = max(len(text) - max(map(len, stops)) + 1, 0)
    return first < len(text) and not any(
        stop.startswith(text[start:]) for start in range(open_from, first) for stop in stops
    )


def _first(text: str, stops: Sequence[str]) -> int:
    return min((text.find(stop) for stop in stops if stop in text), default=len(text))
