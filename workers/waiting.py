"""Telling that workers find no machine, now and then: nobody should wait without knowing."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable, Iterable

from dllm_sweep.records import Demand
from dllm_sweep.workers.member import Member

_FIRST_S = 30.0


class Waiting:
    """Watches for sizes of which no worker is up.

    Args:
        tell: Told of the size, how many workers wait, and for how many seconds; again whenever
            that time has doubled.
        clock: Seconds that never run backwards.
    """

    def __init__(
        self, tell: Callable[[Demand, int, float], None], clock: Callable[[], float]
    ) -> None:
        self._tell, self._clock = tell, clock
        self._due_s: dict[Demand, float] = {}

    def look(self, members: Iterable[Member]) -> None:
        """Tell of sizes that have been waiting for long."""
        sizes = defaultdict(list)
        for member in members:
            sizes[member.demand].append(member)
        waiting = {size: of for size, of in sizes.items() if all(m.host is None for m in of)}
        self._due_s = {size: self._due_s.get(size, _FIRST_S) for size in waiting}
        for size, of in waiting.items():
            waited_s = self._clock() - min(member.since_s for member in of)
            if waited_s >= self._due_s[size]:
                self._tell(size, len(of), waited_s)
                self._due_s[size] = 2 * waited_s
