"""Which unit an idle worker takes next: pure functions over the controller's picture.

The order of work: trials that lost their worker; then baselines, whose units all workers share;
then one cheap unit of each model and method, so that a broken quantizer shows within minutes;
then the longest trial first, with preference for what the worker holds already. When no trial is
left to begin, idle workers help with the trial that would be over last.
"""

from __future__ import annotations

import heapq
from collections import Counter, defaultdict
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass

from dllm_sweep.board import Board, Lane
from dllm_sweep.pieces import QUANTIZE, Job, Pair, Seat, Todo
from dllm_sweep.records import Demand

_SAME_FAULT_LIMIT = 3
_METHODS_LIMIT = 3
_RESIDENT_SHARE = 0.6


@dataclass(frozen=True, kw_only=True)
class Fault:
    """A failure as the circuit breakers count it; `device` names the GPU, if it is known."""

    trial_id: int
    model: str
    method: str
    fingerprint: str
    device: str = ""


@dataclass(frozen=True, kw_only=True)
class Choice:
    """What an idle worker should do."""

    job: Job
    todo: Todo


def choose(board: Board, seat: Seat, now_s: float) -> Choice | None:
    """Pick the unit that an idle worker should begin, or None if it should wait.

    Args:
        board: The picture.
        seat: The worker.
        now_s: Now, on the clock on which the board's flights are due.
    """
    lane = board.lanes.get(seat.demand)
    if lane is None:
        return None
    own = lane.open.get(seat.job) if seat.job is not None else None
    if own is not None and not _can_join(own):
        own = None
    job = _urgent(board, lane, seat, own) or _probe(board, lane, own) or own
    job = job or _longest(board, lane, seat) or _in_need_of_help(lane, now_s)
    return None if job is None else Choice(job=job, todo=next_todo(job, board))


def wanted(board: Board, idle: Iterable[Seat] = ()) -> dict[Demand, int]:
    """How many workers of each size there is work for, busy ones included.

    Args:
        board: The picture.
        idle: Workers that are to stay without any work.
    """
    counts = Counter(seat.demand for seat in idle)
    for demand, lane in board.lanes.items():
        number = 0
        for job in lane.open.values():
            number += len(job.flights)
            number += _useful_workers(job) if _can_join(job) else 0
        if not board.paused:
            number += lane.waiting_jobs()
            # A baseline that has not begun will be shared by several workers.
            waiting = [job for job in lane.urgent.values() if job.baseline]
            number += sum(_useful_workers(job) - 1 for job in waiting)
        counts[demand] += number
    return dict(counts)


def held_back(faults: Sequence[Fault]) -> frozenset[Pair]:
    """Pairs of model and method in which the same fault has ended three trials.

    What failed three times in the same place will fail in the remaining trials, too; they wait
    for the user instead.
    """
    distinct = {(f.model, f.method, f.fingerprint, f.trial_id) for f in faults}
    count = Counter((model, method, mark) for model, method, mark, _ in distinct)
    return frozenset(
        (model, method) for (model, method, _), n in count.items() if n >= _SAME_FAULT_LIMIT
    )


def quarantined(faults: Sequence[Fault], sound: set[str]) -> frozenset[str]:
    """Devices on which trials of three methods failed in ways that no other device has shown.

    A fault of the sweep shows everywhere; what shows on one device alone is that device's.

    Args:
        faults: All failures so far.
        sound: Devices that have done work; without another one that has, none is blamed.
    """
    places = defaultdict(set)
    for fault in faults:
        places[fault.fingerprint].add(fault.device)
    methods: Mapping[str, set[str]] = defaultdict(set)
    for fault in faults:
        if len(places[fault.fingerprint]) == 1:
            methods[fault.device].add(fault.method)
    return frozenset(
        device
        for device, found in methods.items()
        if device and len(found) >= _METHODS_LIMIT and sound - {device}
    )


def _can_join(job: Job) -> bool:
    """Whether a unit of an open job may begin: all but the first wait for the weights."""
    return bool(job.todo) and (job.quantized or QUANTIZE in job.todo)


def _urgent(board: Board, lane: Lane, seat: Seat, own: Job | None) -> Job | None:
    """Lost work, unless the worker is at something; and baselines, whatever it is at."""
    waiting = () if board.paused else tuple(lane.urgent.values())
    lost = [job for job in waiting if job.orphaned]
    if lost and own is None:
        return max(lost, key=lambda job: (job.baseline, job.todo_s, -job.id))
    if own is not None and own.baseline:
        return own
    begun = [job for job in lane.open.values() if job.baseline and _worth_joining(job)]
    baselines = [job for job in waiting if job.baseline] + begun

    def rank(job: Job) -> tuple[bool, float, int]:
        return job.model == seat.model, job.todo_s / (len(job.flights) + 1), -job.id

    return max(baselines, key=rank, default=None)


def _probe(board: Board, lane: Lane, own: Job | None) -> Job | None:
    """The cheapest probe of a model and method of which nothing has been measured yet."""
    if own is not None and board.probing.get(own.pair) == own.id:
        return own
    if board.paused:
        return None
    pairs = [
        pair
        for pair, jobs in lane.waiting.items()
        if jobs and pair not in board.probed and pair not in board.probing
    ]
    found = [probe for pair in pairs if (probe := lane.cheapest_probe(pair))]
    return min(found, key=lambda probe: (probe[0], probe[1].id), default=(0.0, None))[1]


def _longest(board: Board, lane: Lane, seat: Seat) -> Job | None:
    """The job with most left that nobody is at, or one of the model at hand that is not much
    shorter: loading a model costs minutes."""
    heads = [(job.todo_s, job) for job in lane.open.values() if job.parked]
    if not board.paused:
        heads += [head for pair in lane.waiting if (head := lane.longest(pair))]
    if not heads:
        return None
    cost_s, best = max(heads, key=_size)
    near = [
        head
        for head in heads
        if head[1].model == seat.model and head[0] >= _RESIDENT_SHARE * cost_s
    ]
    return max(near, key=_size)[1] if near else best


def _size(head: tuple[float, Job]) -> tuple[float, int]:
    return head[0], -head[1].id


def _in_need_of_help(lane: Lane, now_s: float) -> Job | None:
    """Of the jobs that would be over sooner with one more worker, the one that is over last."""
    ends = [(_end_s(job, now_s), job) for job in lane.open.values() if job.quantized and job.todo]
    helped = [(end_s, job) for end_s, job in ends if _end_s(job, now_s, helper=True) < end_s]
    return max(helped, key=_size, default=(0.0, None))[1]


def _end_s(job: Job, now_s: float, *, helper: bool = False) -> float:
    """When a job will be over if its workers take the longest unit first."""
    free = [max(due_s, now_s) for _, due_s in job.flights.values()]
    if helper or not free:
        free.append(now_s + job.load_s)
    heapq.heapify(free)
    for cost_s in sorted((todo.cost_s for todo in job.todo.values()), reverse=True):
        heapq.heapreplace(free, free[0] + cost_s)
    return max(free)


def _worth_joining(job: Job) -> bool:
    return _can_join(job) and (job.parked or job.todo_s > job.load_s)


def _useful_workers(job: Job) -> int:
    """How many workers could share what is left without mostly loading weights."""
    if not job.quantized:
        return 1
    return max(1, min(len(job.todo), int(job.todo_s / max(2 * job.load_s, 1e-9))))


def next_todo(job: Job, board: Board) -> Todo:
    """The unit of a job that begins next: quantizing, then tasks that must be early; of the rest
    the cheapest for a probe, else the longest."""
    if QUANTIZE in job.todo:
        return job.todo[QUANTIZE]
    todos = list(job.todo.values())
    todos = [todo for todo in todos if todo.unit.task in board.early] or todos
    if job.pair not in board.probed and not job.baseline:
        return min(todos, key=lambda todo: (todo.cost_s, todo.position))
    return max(todos, key=lambda todo: (todo.cost_s, -todo.position))
