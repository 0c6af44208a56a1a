"""The pieces on the controller's board: trials with what is left of them, and seats of workers."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, field
from enum import Enum

from dllm_sweep.records import Claim, Demand
from dllm_sweep.spec import FULL_PRECISION_METHOD, Unit

Pair = tuple[str, str]
"""A model and a method."""
QUANTIZE = "quantize"


class Place(Enum):
    """Where a job is on the board."""

    WAITING = "waiting"
    """It may be claimed."""
    LATER = "later"
    """It may be claimed once its pause after a failure is over."""
    OPEN = "open"
    """It is claimed; its units are handed out one by one."""
    HELD = "held"
    """It waits for the user: too many of its kind have failed."""
    GONE = "gone"
    """Nothing of it is left to do here."""


@dataclass(kw_only=True)
class Seat:
    """A worker as the policy sees it.

    Attributes:
        worker: Its number.
        demand: Its size.
        model: The model that it has loaded last; None for none.
        job: The trial whose weights it holds; None for none.
    """

    worker: int
    demand: Demand
    model: str | None = None
    job: int | None = None


@dataclass(frozen=True, kw_only=True)
class Todo:
    """A unit that is neither done nor in flight."""

    unit: Unit
    cost_s: float
    position: int


@dataclass(kw_only=True, eq=False)
class Job:
    """A trial as the policy sees it.

    Attributes:
        id: The trial.
        key: Its key.
        label: Its name for people.
        estimates: What the plan says that each unit takes, in seconds, by key.
        demand: The size of worker that it needs.
        load_s: Estimated seconds until a worker that does not hold its weights has them.
        todo: Units neither done nor in flight, by key.
        flights: Units in flight by worker, with when they should be done.
        orphaned: Whether an earlier attempt was cut off.
        quantized: Whether its weights are there, so that helpers may join.
        claim: The right to write its results, once it is claimed.
        stale: Whether the claim does not know of the weights yet.
    """

    id: int
    key: str
    label: str
    model: str
    method: str
    scheme: str
    demand: Demand
    load_s: float
    estimates: dict[str, float]
    todo: dict[str, Todo] = field(default_factory=dict)
    orphaned: bool = False
    quantized: bool = False
    ready_at_s: float = 0.0
    claim: Claim | None = None
    stale: bool = False
    place: Place = Place.GONE
    flights: dict[int, tuple[Todo, float]] = field(default_factory=dict)
    _todo_s: float | None = None

    @property
    def pair(self) -> Pair:
        """Its model and method."""
        return self.model, self.method

    @property
    def baseline(self) -> bool:
        """Whether others are compared with it."""
        return self.method == FULL_PRECISION_METHOD

    @property
    def urgent(self) -> bool:
        """Whether it goes before everything that has not begun."""
        return self.orphaned or self.baseline

    @property
    def parked(self) -> bool:
        """Whether it is begun and nobody is at it."""
        return self.place is Place.OPEN and bool(self.todo) and not self.flights

    @property
    def todo_s(self) -> float:
        """Estimated seconds of what is neither done nor in flight."""
        if self._todo_s is None:
            self._todo_s = sum(todo.cost_s for todo in self.todo.values())
        return self._todo_s

    def set_todo(self, todos: Iterable[Todo]) -> None:
        """Say anew what is neither done nor in flight."""
        self.todo, self._todo_s = {todo.unit.key: todo for todo in todos}, None

    def add_todo(self, todo: Todo) -> None:
        """A unit has to run again."""
        self.todo[todo.unit.key], self._todo_s = todo, None

    def take_todo(self, todo: Todo) -> None:
        """A unit has begun."""
        del self.todo[todo.unit.key]
        self._todo_s = None

    @property
    def probe_s(self) -> float:
        """Estimated seconds until a broken method shows."""
        costs = [todo.cost_s for key, todo in self.todo.items() if key != QUANTIZE]
        first = self.todo.get(QUANTIZE)
        return (first.cost_s if first else 0.0) + min(costs, default=0.0)
