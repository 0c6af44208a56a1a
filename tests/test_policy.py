"""Which unit an idle worker takes next."""

from hypothesis import given
from hypothesis import strategies as st

from dllm_sweep import policy
from dllm_sweep.board import Board
from dllm_sweep.pieces import Job, Place, Seat, Todo
from dllm_sweep.records import Claim, Demand
from dllm_sweep.spec import (
    FULL_PRECISION,
    ModelRef,
    ProtocolSpec,
    QuantScheme,
    TaskSpec,
    TrialSpec,
    Unit,
)

SMALL = Demand()
LOAD_S = 10.0


def job(number, *costs_s, method="rtn", model="llada", demand=SMALL, quantize=True, **changes):
    """A job with one task for each cost, and a `quantize` unit of a second."""
    units = [Unit(kind="evaluate", task=f"t{index}") for index in range(len(costs_s))]
    todos = list(zip(units, costs_s, strict=True))
    if quantize and method != "fp":
        todos.insert(0, (Unit(kind="quantize"), 1.0))
    made = Job(
        id=number,
        key=f"{number:064d}",
        label=f"trial {number}",
        model=model,
        method=method,
        scheme="w4a16",
        demand=demand,
        load_s=LOAD_S,
        estimates={unit.key: cost_s for unit, cost_s in todos},
        **changes,
    )
    made.set_todo(
        Todo(unit=unit, cost_s=cost_s, position=at) for at, (unit, cost_s) in enumerate(todos)
    )
    made.quantized = "quantize" not in made.todo
    return made


def board_of(*jobs, probed=True):
    board = Board()
    for one in jobs:
        if probed:
            board.probed.add(one.pair)
        board.put(one)
    return board


def open_job(board, one, done=()):
    """Claim a job; the units in `done` are committed."""
    tasks = tuple(TaskSpec(name=f"t{number}") for number in range(3))
    spec = TrialSpec(
        model=ModelRef(name=one.model),
        method=one.method,
        scheme=FULL_PRECISION if one.method == "fp" else QuantScheme(w_bits=4),
        protocol=ProtocolSpec(tasks=tasks, outliers=None),
    )
    claim = Claim(
        trial_id=one.id,
        trial_key=one.key,
        attempt=1,
        epoch=1,
        claim_id="c",
        label=one.label,
        trial=spec,
        done=(),
    )
    board.open(one, claim, [todo for key, todo in one.todo.items() if key not in done])
    return one


def seat(worker=1, **values):
    return Seat(worker=worker, demand=values.pop("demand", SMALL), **values)


def chosen(board, at=None, now_s=0.0):
    choice = policy.choose(board, at or seat(), now_s)
    return None if choice is None else (choice.job.id, choice.todo.unit.key)


def trial_of(board, at=None, now_s=0.0):
    found = chosen(board, at, now_s)
    return found and found[0]


def test_a_trial_that_lost_its_worker_comes_before_a_baseline():
    assert trial_of(board_of(job(1, 5.0, method="fp"), job(2, 5.0, orphaned=True))) == 2


def test_a_baseline_comes_before_a_longer_trial():
    assert trial_of(board_of(job(1, 99.0), job(2, 5.0, method="fp"))) == 2


def test_a_baseline_comes_even_before_the_rest_of_the_trial_at_hand():
    mine, full = job(1, 50.0, 50.0), job(2, 50.0, method="fp")
    board = board_of(mine, full)
    open_job(board, mine, done=("quantize",))
    assert trial_of(board, seat(model="llada", job=1)) == 2


def test_the_trial_at_hand_goes_on_before_one_that_lost_its_worker():
    mine, lost = job(1, 5.0), job(2, 500.0, orphaned=True)
    board = board_of(mine, lost)
    open_job(board, mine, done=("quantize",))
    assert trial_of(board, seat(model="llada", job=1)) == 1


def test_workers_share_the_units_of_a_baseline_and_spread_over_baselines():
    one, two = job(1, 50.0, 50.0, method="fp"), job(2, 50.0, 50.0, 5.0, method="fp", model="dream")
    board = board_of(one, two)
    began = []
    for worker in range(4):
        choice = policy.choose(board, seat(worker), 0.0)
        if choice.job.claim is None:
            open_job(board, choice.job)
        board.fly(choice.job, choice.todo, worker, 50.0)
        began.append(choice.job.id)
    assert began == [2, 1, 2, 1]


def test_a_baseline_whose_rest_is_shorter_than_loading_it_is_left_to_its_workers():
    full = job(1, 50.0, 5.0, method="fp")
    board = board_of(full, job(2, 20.0))
    open_job(board, full)
    board.fly(full, full.todo["evaluate:t0"], 9, 50.0)
    assert trial_of(board) == 2


def test_the_cheapest_probe_of_each_method_comes_before_the_longest_trial():
    board = board_of(job(1, 99.0, method="gptq"), job(2, 3.0), job(3, 7.0), probed=False)
    assert chosen(board) == (2, "quantize")
    open_job(board, board.jobs[2])
    assert chosen(board) == (1, "quantize"), "the other method has no probe yet"


def test_a_probe_measures_its_cheapest_task_and_then_makes_room_for_the_next_probe():
    probe, other = job(1, 30.0, 2.0), job(2, 9.0, method="gptq")
    board = board_of(probe, other, probed=False)
    open_job(board, probe)
    at = seat(model="llada", job=1)
    for expected in ("quantize", "evaluate:t1"):
        choice = policy.choose(board, at, 0.0)
        assert (choice.job.id, choice.todo.unit.key) == (1, expected)
        board.fly(probe, choice.todo, 1, 1.0)
        board.land(probe, 1, done=True)
    assert trial_of(board, at) == 2


def test_the_longest_trial_comes_first_among_equals():
    assert trial_of(board_of(job(1, 5.0), job(2, 50.0), job(3, 20.0))) == 2


def test_a_trial_of_the_model_at_hand_comes_before_a_somewhat_longer_one():
    board = board_of(job(1, 100.0, model="dream"), job(2, 70.0))
    assert trial_of(board, seat(model="llada")) == 2
    assert trial_of(board_of(job(1, 100.0, model="dream"), job(2, 50.0)), seat(model="llada")) == 1


def test_a_trial_that_was_left_for_a_probe_is_taken_up_by_its_size():
    left, new = job(1, 60.0, 10.0), job(2, 40.0)
    board = board_of(left, new)
    open_job(board, left, done=("quantize",))
    assert trial_of(board) == 1


def test_nobody_joins_a_trial_before_its_weights_are_there():
    one = job(1, 500.0, 500.0)
    board = board_of(one)
    open_job(board, one)
    board.fly(one, one.todo["quantize"], 9, 1.0)
    assert chosen(board) is None
    board.land(one, 9, done=True)
    board.fly(one, one.todo["evaluate:t0"], 9, 500.0)
    assert chosen(board) == (1, "evaluate:t1")


def test_the_trial_that_would_be_over_last_gets_help_first():
    one, two = job(1, 50.0, 60.0), job(2, 50.0, 300.0)
    board = board_of(one, two)
    for number, each in enumerate((one, two)):
        open_job(board, each, done=("quantize",))
        board.fly(each, each.todo["evaluate:t0"], 8 + number, 50.0)
    assert chosen(board) == (2, "evaluate:t1")


def test_help_that_would_come_too_late_is_not_sent():
    one = job(1, 50.0, 8.0)
    board = board_of(one)
    open_job(board, one, done=("quantize",))
    board.fly(one, one.todo["evaluate:t0"], 9, 1.0)
    # Alone it is over at 1 + 8 s; a helper would only have loaded the weights by 10 s.
    assert chosen(board) is None
    assert chosen(board, now_s=-20.0) == (1, "evaluate:t1")


def test_while_trials_wait_nobody_helps():
    one, waiting = job(1, 500.0, 500.0), job(2, 1.0)
    board = board_of(one, waiting)
    open_job(board, one, done=("quantize",))
    board.fly(one, one.todo["evaluate:t0"], 9, 500.0)
    assert trial_of(board) == 2


def test_a_trial_goes_only_to_a_worker_of_its_size():
    large = Demand(gpus=2.0)
    board = board_of(job(1, 50.0, demand=large), job(2, 5.0))
    assert trial_of(board) == 2
    assert trial_of(board, seat(demand=large)) == 1
    assert trial_of(board, seat(demand=Demand(gpus=4.0))) is None


def test_a_paused_sweep_hands_out_what_is_claimed_and_nothing_else():
    begun = job(1, 5.0)
    board = board_of(begun, job(2, 50.0), job(3, 5.0, method="fp"), job(4, 5.0, orphaned=True))
    open_job(board, begun, done=("quantize",))
    board.paused = True
    assert trial_of(board) == 1
    assert policy.wanted(board) == {SMALL: 1}


def test_a_trial_that_backs_off_waits_until_its_pause_is_over():
    board = board_of(job(1, 5.0, ready_at_s=30.0))
    assert chosen(board) is None
    assert board.next_wake_s() == 30.0
    board.wake(29.0)
    assert chosen(board) is None
    board.wake(30.0)
    assert trial_of(board) == 1


def test_as_many_workers_are_wanted_as_could_work():
    full = job(1, 50.0, 50.0, 50.0, 50.0, method="fp")
    board = board_of(full, job(2, 5.0), job(3, 5.0), job(4, 5.0, demand=Demand(gpus=1.0)))
    assert policy.wanted(board) == {SMALL: 6, Demand(gpus=1.0): 1}


def test_the_same_fault_in_three_trials_holds_their_method_back():
    def fault(trial, method="gptq", mark="E@a"):
        return policy.Fault(trial_id=trial, model="m", method=method, fingerprint=mark)

    assert policy.held_back([fault(1), fault(2)]) == frozenset()
    assert policy.held_back([fault(1), fault(1), fault(1)]) == frozenset()
    assert policy.held_back([fault(1), fault(2), fault(3, mark="E@b")]) == frozenset()
    assert policy.held_back([fault(1), fault(2), fault(3)]) == {("m", "gptq")}


def test_trials_that_are_held_back_do_not_start():
    board = board_of(job(1, 50.0, method="gptq"), job(2, 5.0))
    board.hold(frozenset({("llada", "gptq")}))
    assert trial_of(board) == 2
    assert board.jobs[1].place is Place.HELD
    assert policy.wanted(board) == {SMALL: 1}


def test_a_device_is_to_blame_only_for_what_no_other_device_shows():
    def fault(trial, method, device, mark="E@a"):
        return policy.Fault(
            trial_id=trial, model="m", method=method, fingerprint=mark, device=device
        )

    alone = [fault(number, f"method{number}", "gpu0") for number in range(3)]
    assert policy.quarantined(alone, {"gpu0", "gpu1"}) == {"gpu0"}
    assert policy.quarantined(alone, {"gpu0"}) == frozenset()
    assert policy.quarantined(alone[:2], {"gpu0", "gpu1"}) == frozenset()
    shared = [*alone, fault(9, "rtn", "gpu1")]
    assert policy.quarantined(shared, {"gpu0", "gpu1"}) == frozenset()


some_jobs = st.lists(
    st.tuples(
        st.lists(st.floats(0.1, 100), min_size=1, max_size=4),
        st.sampled_from(["fp", "rtn", "gptq"]),
        st.sampled_from(["llada", "dream"]),
        st.booleans(),
    ),
    min_size=1,
    max_size=8,
)


@given(rows=some_jobs, probed=st.booleans(), model=st.sampled_from([None, "llada", "dream"]))
def test_whatever_waits_an_idle_worker_gets_something_and_quantizes_first(rows, probed, model):
    jobs = [
        job(number, *costs_s, method=method, model=name, orphaned=orphaned)
        for number, (costs_s, method, name, orphaned) in enumerate(rows, start=1)
    ]
    board = board_of(*jobs, probed=probed)
    choice = policy.choose(board, seat(model=model), 0.0)
    assert choice is not None
    assert choice.job.method == "fp" or choice.todo.unit.kind == "quantize"
    best = max((one.orphaned, one.baseline) for one in jobs)
    if best[0]:
        assert choice.job.orphaned
    elif best[1]:
        assert choice.job.baseline
