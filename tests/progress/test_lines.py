"""Plain lines and JSON lines."""

import io
import json
from datetime import datetime, timedelta

from dllm_sweep.progress import LinesDisplay, PlainDisplay, Several
from dllm_sweep.records import TrialState


def test_every_event_is_one_json_object_with_who_what_and_where(tell):
    out = io.StringIO()
    shown = LinesDisplay(out, "demo")
    tell(shown)
    shown.stop()
    lines = [json.loads(line) for line in out.getvalue().splitlines()]
    by_event = {line["event"]: line for line in lines}
    assert [line["event"] for line in lines][:3] == [
        "sweep_started",
        "worker_joined",
        "worker_joined",
    ]
    assert lines[-1]["event"] == "sweep_stopped"
    assert {line["sweep"] for line in lines} == {"demo"}
    assert all(datetime.fromisoformat(line["time"]).utcoffset() == timedelta(0) for line in lines)
    done = {key: by_event["unit_done"][key] for key in ("key", "attempt", "unit", "kind", "host")}
    assert done == {
        "key": "ab" * 32,
        "attempt": 2,
        "unit": "quantize",
        "kind": "quantize",
        "host": "node-7",
    }
    assert by_event["unit_done"]["seconds"] == 12.5
    assert by_event["unit_failed"]["unit"] == "evaluate:math:1/2"
    assert by_event["trial_ended"]["state"] == "PENDING"
    assert by_event["trial_ended"]["failure"]["class"] == "GPU_OOM"
    assert by_event["worker_left"] | {"time": ""} == {
        "time": "",
        "event": "worker_left",
        "sweep": "demo",
        "worker": 12,
        "host": "node-12",
        "reason": "its GPU was out of memory",
    }
    assert by_event["standing"]["trials"] == {"PENDING": 1, "SUCCEEDED": 3}
    assert by_event["standing"]["seconds_left"] == 90


def test_a_standing_that_has_not_changed_is_written_once():
    out = io.StringIO()
    shown = LinesDisplay(out, "demo")
    for pending, left_s in ((2, None), (2, 5.0), (1, 4.0)):
        shown.standing({TrialState.PENDING: pending}, left_s)
    lines = [json.loads(line) for line in out.getvalue().splitlines()]
    assert [(line["trials"]["PENDING"], line["seconds_left"]) for line in lines] == [
        (2, None),
        (1, 4.0),
    ]


def test_plain_lines_leave_out_what_nobody_reads(tell):
    out = io.StringIO()
    tell(PlainDisplay(out))
    texts = [line.partition("s] ")[2] for line in out.getvalue().splitlines()]
    assert texts == [
        "5 of 9 units to do, at first on 2 workers",
        "worker 7 is up on node-7 (H100)",
        "worker 12 is up on node-12 (H100)",
        '5/9 toy gptq "w4": quantize done in 12.5 s',
        'toy gptq "w4": PENDING (evaluate:math:1/2: OutOfMemoryError: CUDA out of memory)',
        "worker 12 is gone: its GPU was out of memory",
        "a note",
    ]


def test_several_displays_hear_the_same(tell):
    first, second, alone = io.StringIO(), io.StringIO(), io.StringIO()
    tell(Several(LinesDisplay(first, "demo"), LinesDisplay(second, "demo")))
    tell(LinesDisplay(alone, "demo"))

    def events(out):
        return [json.loads(line) | {"time": ""} for line in out.getvalue().splitlines()]

    assert events(first) == events(second) == events(alone)
