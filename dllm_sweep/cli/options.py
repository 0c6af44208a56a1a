"""Options that several commands share, and the store behind `--store`."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, TypeVar

import click

if TYPE_CHECKING:
    from dllm_sweep.db.store import SqlStore

Command = TypeVar("Command", bound=Callable[..., None])

store_option = click.option(
    "--store",
    metavar="URL",
    envvar="DLLM_SWEEP_STORE",
    help="The store: a file, sqlite:///FILE or postgresql://... [default: $DLLM_SWEEP_STORE, else"
    " sqlite:///dllm-sweep.db]",
)
file_argument = click.argument("file", type=click.Path(path_type=Path))

set_option = click.option(
    "--set",
    "settings",
    metavar="KEY=VALUE",
    multiple=True,
    help="Take VALUE (YAML) instead of what FILE says of KEY: --set limit=20,"
    " --set models=[llada-tiny], --set decoding.steps=64. May be repeated.",
)


def format_option(*more: str) -> Callable[[Command], Command]:
    """`--format`, with the formats of every listing and `more`."""
    return click.option(
        "--format",
        "form",
        type=click.Choice(["table", "json", "csv", *more]),
        default="table",
        show_default=True,
        help="How to print.",
    )


@contextmanager
def existing_store(url: str | None) -> Iterator[SqlStore]:
    """Open a store that must exist, and close it."""
    from dllm_sweep.db.connect import open_store

    store = open_store(url, create=False)
    try:
        yield store
    finally:
        store.close()


@contextmanager
def any_store(url: str | None) -> Iterator[SqlStore]:
    """Open a store, made if it is new, and close it."""
    from dllm_sweep.db.connect import open_store

    store = open_store(url)
    try:
        yield store
    finally:
        store.close()
