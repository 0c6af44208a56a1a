"""Sizes of memory as people write them."""

from __future__ import annotations

import re

from dllm_sweep.errors import InputError

_SIZE = re.compile(r"(\d+(?:\.\d+)?) *([KMGT]?)(i?)B?", re.IGNORECASE)


def size_in_bytes(value: str | int | None) -> int | None:
    """Read a size, such as `16GiB`; a number is bytes.

    Raises:
        InputError: If the text has another form, or the size is nothing.
    """
    if value is None or isinstance(value, int):
        return value
    match = _SIZE.fullmatch(value.strip())
    if match is None or float(match[1]) == 0:
        raise InputError(f"{value!r} is not a size; write a number with a unit, such as 16GiB")
    base = 1024 if match[3] else 1000
    return int(float(match[1]) * base ** " KMGT".index(match[2].upper() or " "))
