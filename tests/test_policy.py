"""Which trial an idle worker takes next."""

from hypothesis import given
from hypothesis import strategies as st

from dllm_sweep import policy
from dllm_sweep.records import TrialRow, TrialState

NOTHING_HELD = frozenset()


def trial(number, **changes):
    values = {
        "id": number,
        "key": f"{number:064d}",
        "label": f"trial {number}",
        "state": TrialState.PENDING,
        "attempt": 0,
        "reason": "",
        "model": "llada-tiny",
        "method": "rtn",
        "units": 5,
        "units_done": 0,
        "priority": 0,
        "estimated_s": 10.0,
        "ready_in_s": 0.0,
    }
    return TrialRow(**(values | changes))


def chosen(trials, *, resident=None, held=NOTHING_HELD):
    best = policy.choose(trials, resident_model=resident, held=held)
    return None if best is None else best.id


def test_a_trial_that_lost_its_worker_comes_before_a_baseline():
    trials = [trial(1, priority=9, method="fp"), trial(2, attempt=1)]
    assert chosen(trials) == 2


def test_a_baseline_comes_before_a_longer_trial():
    assert chosen([trial(1, estimated_s=99), trial(2, priority=9, method="fp")]) == 2


def test_one_trial_of_each_method_comes_before_the_longest():
    running = trial(1, state=TrialState.RUNNING, method="gptq")
    long, probe = trial(2, method="gptq", estimated_s=99), trial(3, method="rtn", estimated_s=1)
    assert chosen([running, long, probe]) == 3


def test_the_longest_trial_comes_first_among_equals():
    done = trial(1, state=TrialState.SUCCEEDED)
    assert chosen([done, trial(2, estimated_s=5), trial(3, estimated_s=50)]) == 3


def test_a_trial_of_the_resident_model_comes_before_a_somewhat_longer_one():
    done = [
        trial(1, state=TrialState.SUCCEEDED),
        trial(2, state=TrialState.SUCCEEDED, model="other"),
    ]
    trials = [*done, trial(3, estimated_s=10, model="other"), trial(4, estimated_s=8)]
    assert chosen(trials, resident="llada-tiny") == 4
    assert chosen(trials, resident=None) == 3


def test_a_much_longer_trial_is_not_delayed_for_the_resident_model():
    done = [
        trial(1, state=TrialState.SUCCEEDED),
        trial(2, state=TrialState.SUCCEEDED, model="other"),
    ]
    trials = [*done, trial(3, estimated_s=100, model="other"), trial(4, estimated_s=8)]
    assert chosen(trials, resident="llada-tiny") == 3


def test_a_trial_that_backs_off_waits_its_time():
    trials = [trial(1, ready_in_s=12.5)]
    assert chosen(trials) is None
    assert policy.next_start_s(trials, NOTHING_HELD) == 12.5


def test_nothing_will_start_when_all_trials_have_ended():
    assert policy.next_start_s([trial(1, state=TrialState.FAILED)], NOTHING_HELD) is None


def fault(number, fingerprint="ValueError@gptq.py:solve"):
    return policy.Fault(trial_id=number, model="m", method="gptq", fingerprint=fingerprint)


def test_the_same_fault_in_three_trials_holds_the_rest_back():
    assert policy.held_back([fault(1), fault(2)]) == NOTHING_HELD
    assert policy.held_back([fault(1), fault(1), fault(1)]) == NOTHING_HELD
    assert policy.held_back([fault(1), fault(2), fault(3, "other")]) == NOTHING_HELD
    held = policy.held_back([fault(1), fault(2), fault(3)])
    assert held == {("m", "gptq")}
    assert chosen([trial(1, model="m", method="gptq")], held=held) is None


states = st.sampled_from(list(TrialState))
trials = st.lists(
    st.builds(
        trial,
        st.integers(1, 10**6),
        state=states,
        attempt=st.integers(0, 3),
        priority=st.sampled_from([0, 9]),
        method=st.sampled_from(["fp", "rtn", "gptq"]),
        estimated_s=st.floats(0, 1e4),
        ready_in_s=st.sampled_from([-1.0, 0.0, 5.0]),
    ),
    max_size=8,
)


@given(trials)
def test_only_a_pending_trial_that_is_ready_is_chosen_and_one_is_whenever_there_is_one(rows):
    best = policy.choose(rows, resident_model="llada-tiny", held=NOTHING_HELD)
    ready = [row for row in rows if row.state is TrialState.PENDING and row.ready_in_s <= 0]
    assert (best is None) == (not ready)
    assert best is None or best in ready
