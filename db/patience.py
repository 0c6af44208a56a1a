"""A store that waits while its database is away: every call of a store is safe to repeat."""

from __future__ import annotations

import logging
import random
import time
from collections.abc import Callable
from typing import Any, cast

from dllm_sweep.db.interface import Store
from dllm_sweep.errors import StoreUnavailable

log = logging.getLogger(__name__)

PATIENCE_S = 600.0
_FIRST_PAUSE_S, _LONGEST_PAUSE_S = 0.2, 15.0
_STEP_S = 0.5
"""A pause is slept in steps of this, so that a user who wants to stop does not wait for it."""


class Patient:
    """Has the methods of a Store; each is repeated while the store does not answer.

    Only StoreUnavailable is waited for: nothing was written then, or it is told apart when the
    call is repeated. It can be sent to other processes as its store can; `tell` and `stop` stay
    behind, since they belong to this one.

    Args:
        store: The store.
        patience_s: Seconds without an answer after which the error is raised.
        tell: Told once when waiting begins and once when it is over; None writes to the log.
        waited: Told of every pause: its seconds, and the error before it.
        stop: Asked while waiting; True gives up at once.
        clock: Seconds that never run backwards.
        sleep: Waits for some seconds.
    """

    def __init__(
        self,
        store: Store,
        *,
        patience_s: float = PATIENCE_S,
        tell: Callable[[str], None] | None = None,
        waited: Callable[[float, str], None] | None = None,
        stop: Callable[[], bool] | None = None,
        clock: Callable[[], float] = time.monotonic,
        sleep: Callable[[float], None] = time.sleep,
    ) -> None:
        self._store, self._patience_s = store, patience_s
        self._tell, self._stop = tell or log.warning, stop or _never
        self._clock, self._sleep = clock, sleep
        self._waited = waited or _unheard

    def __getattr__(self, method: str) -> Callable[..., Any]:
        if method.startswith("_"):
            raise AttributeError(method)
        attribute = getattr(self._store, method)
        if not callable(attribute):
            return cast(Callable[..., Any], attribute)

        def call(*args: Any, **options: Any) -> Any:
            try:
                return attribute(*args, **options)
            except StoreUnavailable as error:
                return self._persist(lambda: attribute(*args, **options), error)

        return call

    def __reduce__(self) -> tuple[Any, ...]:
        return _again, (self._store, self._patience_s)

    def _persist(self, call: Callable[[], Any], error: StoreUnavailable) -> Any:
        began_s = self._clock()
        self._tell(f"{error}; waiting for it for up to {self._patience_s / 60:.0f} min")
        pause_s = _FIRST_PAUSE_S
        while not self._stop() and self._clock() - began_s < self._patience_s:
            # Workers that lost the store together must not come back together.
            rested_s = pause_s * random.uniform(0.5, 1.0)
            self._rest(rested_s)
            self._waited(rested_s, str(error))
            pause_s = min(2 * pause_s, _LONGEST_PAUSE_S)
            try:
                answer = call()
            except StoreUnavailable as again:
                error = again
                continue
            self._tell(f"the store answers again after {self._clock() - began_s:.0f} s")
            return answer
        raise error

    def _rest(self, seconds: float) -> None:
        until_s = self._clock() + seconds
        while (left_s := until_s - self._clock()) > 0 and not self._stop():
            self._sleep(min(left_s, _STEP_S))


def patient(store: Store, **options: Any) -> Store:
    """A store that waits while its database is away; `options` as for `Patient`."""
    return cast(Store, Patient(store, **options))


def _again(store: Store, patience_s: float) -> Patient:
    return Patient(store, patience_s=patience_s)


def _never() -> bool:
    return False


def _unheard(seconds: float, error: str) -> None:
    """Nobody asked to be told of pauses."""
