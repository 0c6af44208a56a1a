"""The store as commands name it, also before there is one."""

from __future__ import annotations

import os
from pathlib import Path

from dllm_sweep.errors import UnknownName
from dllm_sweep.records import TrialRow


def resolve_store(url: str | None) -> str:
    """The whole address of a store: a file's path made absolute, a server's as it is.

    The result may hold a password: hand it on, never print it.

    Raises:
        StoreError: If it is no store's address.
    """
    from dllm_sweep.db.connect import DEFAULT_STORE, STORE_VARIABLE
    from dllm_sweep.db.engines import parse_url

    address = parse_url(url or os.environ.get(STORE_VARIABLE) or DEFAULT_STORE)
    if address.drivername == "sqlite":
        address = address.set(database=str(Path(str(address.database)).absolute()))
    return address.render_as_string(hide_password=False)


def store_is_new(address: str) -> bool:
    """Whether `address`, as `resolve_store` gave it, is a file that does not exist yet."""
    _, is_file, path = address.partition("sqlite:///")
    return bool(is_file) and not Path(path).exists()


def stored_trials(url: str | None, sweep: str) -> tuple[TrialRow, ...]:
    """The trials that the store has of a sweep; none if there is no store or no such sweep.

    Raises:
        StoreError: If there is a store and it cannot be read.
    """
    from dllm_sweep.db.connect import open_store

    address = resolve_store(url)
    if store_is_new(address):
        return ()
    store = open_store(address, create=False)
    try:
        return store.trials(store.sweep(sweep).id)
    except UnknownName:
        return ()
    finally:
        store.close()
