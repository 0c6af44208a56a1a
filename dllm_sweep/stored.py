"""The store as commands name it, also before there is one."""

from __future__ import annotations

import os
import re
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, TypeVar

from dllm_sweep.errors import StoreEmpty, UnknownName
from dllm_sweep.records import TrialRow, UnitStanding, UnitTime

if TYPE_CHECKING:
    from dllm_sweep.db.store import SqlStore

T = TypeVar("T")


def resolve_store(url: str | None) -> str:
    """The whole address of a store: a file's path made absolute, a server's as it is.

    The result may hold a password: hand it on, never print it.

    Raises:
        StoreError: If it is no store's address.
    """
    from dllm_sweep.db.connect import DEFAULT_STORE, STORE_VARIABLE

    return beside(url or os.environ.get(STORE_VARIABLE) or DEFAULT_STORE, Path.cwd())


def preferred(given: str | None, written: str | None) -> str | None:
    """The store to use: the one given, else the environment's, else the one a sweep file names.

    None stands for the default.
    """
    from dllm_sweep.db.connect import STORE_VARIABLE

    return given or os.environ.get(STORE_VARIABLE) or written


def without_passwords(text: str) -> str:
    """A text with the passwords taken out of all addresses (`NAME://USER:PASSWORD@...`) in it."""
    return _PASSWORD_OPTION.sub("", _PASSWORD.sub(r"\1@", text))


def holds_password(address: str | None) -> bool:
    """Whether a store's address holds a password."""
    from dllm_sweep.db.engines import parse_url

    if address is None:
        return False
    url = parse_url(address)
    return url.password is not None or any("password" in option for option in url.query)


def beside(address: str, folder: Path) -> str:
    """A store's whole address, where a file's path that is relative starts in `folder`."""
    from dllm_sweep.db.engines import parse_url

    url = parse_url(address)
    if url.drivername == "sqlite":
        url = url.set(database=str(folder / str(url.database)))
    return url.render_as_string(hide_password=False)


_PASSWORD = re.compile(r"(://[^\s:/@'\"]*):[^\s'\"]*@")
_PASSWORD_OPTION = re.compile(r"(?<=[?&])\w*password=[^&\s'\"#]*&?", re.IGNORECASE)


def store_is_new(address: str) -> bool:
    """Whether `address`, as `resolve_store` gave it, is a file that does not exist yet."""
    _, is_file, path = address.partition("sqlite:///")
    return bool(is_file) and not Path(path).exists()


def stored_trials(url: str | None, sweep: str) -> tuple[TrialRow, ...]:
    """The trials that the store has of a sweep; none if there is no store or no such sweep.

    Raises:
        StoreError: If there is a store and it cannot be read.
    """
    return _look(url, lambda store: store.trials(store.sweep(sweep).id))


def stored_units(url: str | None, sweep: str) -> tuple[UnitStanding, ...]:
    """The units of unfinished trials that the store has of a sweep; none if there is no such."""
    return _look(url, lambda store: store.units(store.sweep(sweep).id))


def stored_times(url: str | None) -> tuple[UnitTime, ...]:
    """What units of all sweeps of a store took; none if there is no store."""
    return _look(url, lambda store: store.unit_times())


def _look(url: str | None, question: Callable[[SqlStore], tuple[T, ...]]) -> tuple[T, ...]:
    from dllm_sweep.db.connect import open_store

    address = resolve_store(url)
    if store_is_new(address):
        return ()
    try:
        store = open_store(address, create=False)
    except StoreEmpty:
        return ()
    try:
        return question(store)
    except UnknownName:
        return ()
    finally:
        store.close()
