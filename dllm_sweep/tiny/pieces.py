"""How text is cut before byte pairs are merged; one piece is one token for all common text."""

from __future__ import annotations

import re

#: Single digits; a line break with its indentation; a word; symbols with their spaces; spaces.
PATTERN = r"[0-9]|\n *| ?[A-Za-z_]+| ?[^\sA-Za-z0-9_]+ ?| +|\s"

#: Longest prompt and longest response, in tokens. One end-of-text always fits behind a response.
PROMPT_LIMIT = 64
RESPONSE_LIMIT = 31

_COMPILED = re.compile(PATTERN)


def count(text: str) -> int:
    """Number of pieces of a text: its number of tokens where every piece was merged whole."""
    return len(_COMPILED.findall(text))
