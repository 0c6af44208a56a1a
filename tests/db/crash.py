"""Commits a unit in a process that dies before the statement of the given number.

python crash.py STORE STATEMENT
"""

from __future__ import annotations

import os
import pickle
import sys

import sqlalchemy as sa

from dllm_sweep.db.connect import open_store


def main(url: str, fatal: int) -> None:
    claim, result = pickle.load(sys.stdin.buffer)
    seen = 0

    def on_statement(*event: object) -> None:
        nonlocal seen
        if seen == fatal:
            os._exit(75)
        seen += 1

    store = open_store(url)
    sa.event.listen(sa.Engine, "before_cursor_execute", on_statement)
    store.commit_unit(claim, result)
    os._exit(0)


if __name__ == "__main__":
    main(sys.argv[1], int(sys.argv[2]))
