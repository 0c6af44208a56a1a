import io

from rich.console import Console

from dllm_sweep.progress import LiveDisplay, Subject
from dllm_sweep.progress.live import WORKERS_SHOWN
from dllm_sweep.records import HostInfo
from dllm_sweep.spec import Unit

TRIAL = Subject("k", "a-very-long-model-name gptq w4a16-g128 " * 4)
MATH = Unit(kind="evaluate", task="tiny_math")


def drawn(shown):
    picture = shown._picture()
    shown.stop()
    out = io.StringIO()
    Console(file=out, width=80).print(picture)
    return out.getvalue().splitlines()


def test_what_a_worker_does_takes_one_line_however_long_its_trial_is_called():
    shown = LiveDisplay()
    shown.start(units=3, done=1, workers=1)
    shown.unit_started(0, TRIAL, MATH)
    lines = drawn(shown)
    assert len(lines) == 2, "the bar and the worker"
    assert max(map(len, lines)) <= 80
    assert "…" in lines[1]


def test_workers_come_and_go_under_numbers_that_never_come_back():
    shown = LiveDisplay()
    shown.start(units=3, done=1, workers=0)
    for worker in (3, 41, 107):
        shown.worker_joined(worker, HostInfo(host="node", pid=1, device="cpu"))
    shown.unit_started(41, TRIAL, MATH)
    shown.unit_failed(41, TRIAL, MATH, None)
    shown.worker_left(3, "idle")
    shown.worker_left(3, "told twice")
    assert [" ".join(line.split()) for line in drawn(shown)[1:]] == [
        "worker 41 idle",
        "worker 107 idle on node",
    ]


def test_many_workers_leave_the_bar_in_sight():
    shown = LiveDisplay()
    shown.start(units=3, done=1, workers=0)
    for worker in range(64):
        shown.worker_joined(worker, HostInfo(host="node", pid=1, device="cpu"))
    lines = drawn(shown)
    assert len(lines) == 1 + WORKERS_SHOWN + 1
    assert lines[-1] == "and 48 workers more"
