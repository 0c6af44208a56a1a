"""Metrics as a collector reads them, over HTTP."""

import io
import json
import re
import urllib.error
import urllib.request
from pathlib import Path

import pytest

from dllm_sweep.errors import InputError
from dllm_sweep.progress import LinesDisplay, MetricsDisplay, PlainDisplay, display

SAMPLE = re.compile(r"^(\w+)(?:\{(.*)\})? (\S+)$")
LABEL = re.compile(r'(\w+)="((?:[^"\\]|\\.)*)"')


def scrape(address):
    with urllib.request.urlopen(address, timeout=10) as answer:
        assert answer.headers["Content-Type"].startswith("text/plain; version=0.0.4")
        return answer.read().decode()


def samples(text):
    found = {}
    for line in text.splitlines():
        if line.startswith("#"):
            continue
        name, labels, value = SAMPLE.match(line).groups()
        kept = {key: text for key, text in LABEL.findall(labels or "") if key != "sweep"}
        found[name, *kept.items()] = float(value)
    return found


@pytest.fixture
def served():
    shown = MetricsDisplay('de"mo')
    address = shown.serve("127.0.0.1", 0)
    yield shown, address
    shown.stop()


def test_a_scrape_shows_what_was_told(served, tell):
    shown, address = served
    tell(shown)
    found = samples(scrape(address))
    assert found["dllm_sweep_units",] == 9
    assert found["dllm_sweep_units_done_before",] == 4
    assert found["dllm_sweep_units_done_total", ("kind", "quantize")] == 1
    failed = "dllm_sweep_units_failed_total", ("kind", "evaluate"), ("reason", "GPU_OOM")
    assert found[failed] == 1
    assert found["dllm_sweep_trials", ("state", "SUCCEEDED")] == 3
    assert found["dllm_sweep_trials", ("state", "RUNNING")] == 0
    assert found["dllm_sweep_workers", ("state", "busy")] == 0
    assert found["dllm_sweep_workers", ("state", "idle")] == 1
    assert found["dllm_sweep_workers_left_total",] == 1
    assert found["dllm_sweep_lease_renewals_total",] == 1
    assert found["dllm_sweep_store_waits_total",] == 1
    assert found["dllm_sweep_store_wait_seconds_total",] == 2.5
    assert found["dllm_sweep_estimated_left_seconds",] == 90


def test_the_durations_are_a_cumulative_histogram(served, tell):
    shown, address = served
    tell(shown)
    found = samples(scrape(address))
    name, kind = "dllm_sweep_unit_seconds", ("kind", "quantize")
    buckets = [found[f"{name}_bucket", kind, ("le", le)] for le in ("5", "15", "10800", "+Inf")]
    assert buckets == [0, 1, 1, 1]
    assert (found[f"{name}_sum", kind], found[f"{name}_count", kind]) == (12.5, 1)


def test_every_family_has_help_and_type_and_the_sweeps_name_is_escaped(served, tell):
    shown, address = served
    tell(shown)
    text = scrape(address)
    names = re.findall(r"^# TYPE (\w+) (?:counter|gauge|histogram)$", text, re.MULTILINE)
    assert re.findall(r"^# HELP (\w+) ", text, re.MULTILINE) == names
    lines = [line for line in text.splitlines() if not line.startswith("#")]
    assert all(SAMPLE.match(line) for line in lines)
    assert all('sweep="de\\"mo"' in line for line in lines)


def test_an_estimate_that_nobody_has_any_more_is_not_shown(served, tell):
    shown, address = served
    tell(shown)
    shown.standing({}, None)
    assert ("dllm_sweep_estimated_left_seconds",) not in samples(scrape(address))


def test_other_paths_say_where_the_metrics_are(served):
    _, address = served
    with pytest.raises(urllib.error.HTTPError) as refused:
        urllib.request.urlopen(address.replace("/metrics", "/"), timeout=10)
    assert refused.value.code == 404
    assert b"/metrics" in refused.value.read()


def test_nothing_is_served_after_the_sweep_has_stopped(served):
    shown, address = served
    shown.stop()
    with pytest.raises(urllib.error.URLError):
        urllib.request.urlopen(address, timeout=10)


def test_a_port_that_is_taken_is_refused_with_what_to_do(served):
    _, address = served
    port = int(address.rpartition(":")[2].partition("/")[0])
    with pytest.raises(InputError, match=f"127.0.0.1:{port}.*--metrics-port"):
        display(metrics_port=port)


def test_metrics_come_beside_the_text_and_only_on_request(capsys):
    assert isinstance(display(), PlainDisplay)
    shown = display(sweep="demo", metrics_port=0)
    address = re.search(r"metrics: (\S+)", capsys.readouterr().out)[1]
    shown.start(units=2, done=0, workers=1)
    assert samples(scrape(address))["dllm_sweep_units",] == 2
    shown.stop()
    assert "2 of 2 units to do" in capsys.readouterr().out


def test_the_page_for_operators_has_every_metric_and_every_event(served, tell):
    page = (Path(__file__).parents[2] / "docs" / "operations.md").read_text(encoding="utf-8")
    shown, address = served
    tell(shown)
    named = set(re.findall(r"^\| `(dllm_sweep_\w+)` \|", page, re.MULTILINE))
    assert named == set(re.findall(r"^# TYPE (\w+)", scrape(address), re.MULTILINE))
    out = io.StringIO()
    lines = LinesDisplay(out, "demo")
    tell(lines)
    lines.stop()
    told = {json.loads(line)["event"] for line in out.getvalue().splitlines()}
    section = page.split("### Logs for machines")[1].split("### Metrics")[0]
    assert told == set(re.findall(r"^\| `(\w+)`", section, re.MULTILINE))
