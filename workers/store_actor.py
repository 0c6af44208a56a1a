"""The single writer of a SQLite store, and the proxy through which everyone else reaches it.

Many writers on one SQLite file starve each other, and a file cannot be reached from another
machine; one actor on the controller's host owns it instead. Postgres needs neither.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any, Protocol, cast

import ray

from dllm_sweep.db.connect import open_store
from dllm_sweep.db.interface import Store
from dllm_sweep.errors import StoreError, StoreUnavailable, SweepError


class StoreActor:
    """Owns a store and runs one call after the other."""

    def __init__(self, url: str) -> None:
        self._store = open_store(url)

    def call(
        self, method: str, args: tuple[Any, ...], options: dict[str, Any]
    ) -> tuple[Any, SweepError | None]:
        """Run one method of the store; an error on purpose comes back as a value, since Ray
        would wrap it into a class of its own."""
        try:
            return getattr(self._store, method)(*args, **options), None
        except SweepError as error:
            return None, error


class StoreProxy:
    """Has the methods of a Store; each is one call to the actor."""

    def __init__(self, actor: Any) -> None:
        self._actor = actor

    def __getattr__(self, method: str) -> Callable[..., Any]:
        if method.startswith("_"):
            raise AttributeError(method)

        def call(*args: Any, **options: Any) -> Any:
            try:
                value, error = ray.get(self._actor.call.remote(method, args, options))
            except ray.exceptions.ActorUnavailableError as fault:
                raise StoreUnavailable("the store's writer process does not answer") from fault
            except ray.exceptions.RayError as fault:
                raise StoreError(f"the store's writer process is gone: {fault}") from fault
            if error is not None:
                raise error
            return value

        return call

    def close(self) -> None:
        """Nothing to let go of here: the actor ends with the controller."""


class StoreLink(Protocol):
    """A way to the store that can be sent to another process and opened there."""

    def open(self) -> Store:
        """The store as this process reaches it."""


@dataclass(frozen=True)
class DirectLink:
    """Every process connects to the database server by itself.

    Args:
        url: The server's address; it may hold a password, so it is never shown.
    """

    url: str = field(repr=False)

    def open(self) -> Store:
        """Connect."""
        return open_store(self.url, create=False)


@dataclass(frozen=True)
class WriterLink:
    """Every process asks the single writer of a SQLite file."""

    writer: Any

    def open(self) -> Store:
        """A proxy to the writer."""
        return cast(Store, StoreProxy(self.writer))


def start_writer(url: str) -> WriterLink:
    """Start the writer of a SQLite file on this host.

    The actor restarts by itself: every write is guarded and safe to repeat.
    """
    here = ray.util.scheduling_strategies.NodeAffinitySchedulingStrategy(
        ray.get_runtime_context().get_node_id(), soft=False
    )
    writer = (
        ray.remote(StoreActor)
        .options(num_cpus=0, max_restarts=-1, max_task_retries=3, scheduling_strategy=here)
        .remote(url)
    )
    return WriterLink(writer)
