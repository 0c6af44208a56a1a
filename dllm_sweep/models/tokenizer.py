"""A checkpoint's tokenizer, without running code of the checkpoint."""

from __future__ import annotations

import json
import logging
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

from dllm_sweep.errors import CheckpointError, InputError
from dllm_sweep.models.family import Message, ModelFamily, Special

_FILES = ("tokenizer.json", "tokenizer_config.json", "tokenizer.model", "vocab.json")


def load_tokenizer(folder: Path, family: ModelFamily) -> Any:
    """Load the tokenizer, or None if the folder has none (token ids still work).

    Raises:
        CheckpointError: If it needs code of the checkpoint or its files are damaged.
    """
    if not any((folder / name).is_file() for name in _FILES):
        return None
    reader = _reader(folder, family)
    try:
        # Without trust_remote_code=False transformers asks a question on stdin.
        with _quiet("transformers.configuration_utils", "transformers.tokenization_utils_base"):
            return reader.from_pretrained(
                str(folder), trust_remote_code=False, local_files_only=True
            )
    except Exception as error:
        reason = next(iter(str(error).splitlines()), "")
        raise CheckpointError(
            f"{folder}: its tokenizer cannot be loaded without running code of the checkpoint"
            f" ({type(error).__name__}: {reason})"
        ) from error


def _reader(folder: Path, family: ModelFamily) -> Any:
    """Choose the transformers class that reads the folder's files."""
    import transformers

    # This one file says all. A class that the checkpoint names, made for vocabulary and merges,
    # would put rules of its own over the file's.
    if (folder / "tokenizer.json").is_file():
        return transformers.PreTrainedTokenizerFast
    named = _named_class(folder)
    if named is not None and hasattr(transformers, named):
        return getattr(transformers, named)
    return getattr(transformers, family.tokenizer_class or "AutoTokenizer")


def _named_class(folder: Path) -> str | None:
    try:
        config = json.loads((folder / "tokenizer_config.json").read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return None
    return config.get("tokenizer_class") if isinstance(config, dict) else None


def with_tokenizers_ids(
    special: Special, family: ModelFamily, tokenizer: Any, *, size: int
) -> Special:
    """Add the ids that only the tokenizer knows: begin-of-text and the end of a turn.

    Args:
        special: What config.json says.
        family: The model's.
        tokenizer: The checkpoint's, or None.
        size: The model's vocabulary; an end of turn outside it cannot be written and is left out.
    """
    if tokenizer is None:
        return special
    turn_end = tokenizer.get_vocab().get(family.turn_end)
    if turn_end is not None and turn_end >= size:
        turn_end = None
    return replace(special, bos_id=tokenizer.bos_token_id, turn_end_id=turn_end)


def chat_ids(
    tokenizer: Any, family: ModelFamily, conversation: str | Sequence[Message]
) -> list[int]:
    """Give the token ids of a conversation, up to where the answer starts.

    The template is the checkpoint's; without one it is the family's. Begin-of-text is there as
    often as the template writes it: tokenizing adds none.

    Args:
        tokenizer: The checkpoint's.
        family: Its family.
        conversation: What the user says, or turns with `role` and `content`.

    Raises:
        InputError: If there is no tokenizer.
    """
    if tokenizer is None:
        raise InputError("a conversation needs a tokenizer, and the checkpoint has none")
    messages = (
        [{"role": "user", "content": conversation}]
        if isinstance(conversation, str)
        else [dict(message) for message in conversation]
    )
    text = chat_text(tokenizer, family, messages)
    ids: list[int] = tokenizer(text, add_special_tokens=False)["input_ids"]
    return ids


def chat_text(tokenizer: Any, family: ModelFamily, messages: Sequence[Message]) -> str:
    """Write a conversation up to where the answer starts, as `chat_ids` tokenizes it."""
    if tokenizer.chat_template is None:
        return family.chat_text(messages)
    text: str = tokenizer.apply_chat_template(
        [dict(message) for message in messages], tokenize=False, add_generation_prompt=True
    )
    return text


@contextmanager
def _quiet(*names: str) -> Iterator[None]:
    # transformers warns that it does not know the model type or the class, which is no news here.
    loggers = [logging.getLogger(name) for name in names]
    levels = [logger.level for logger in loggers]
    for logger in loggers:
        logger.setLevel(logging.ERROR)
    try:
        yield
    finally:
        for logger, level in zip(loggers, levels, strict=True):
            logger.setLevel(level)
