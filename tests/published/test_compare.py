"""`compare --published`: own scores beside printed ones."""

import csv
import io
import json
import math
from dataclasses import replace

import pytest
from click.testing import CliRunner

from dllm_sweep.beside_published import compare_with_published
from dllm_sweep.cli import main
from dllm_sweep.db.connect import open_store
from dllm_sweep.errors import UnknownName
from dllm_sweep.process import this_process
from dllm_sweep.records import HostInfo, Metric, PlannedTrial, UnitResult
from dllm_sweep.reports.published import comparison_listing
from dllm_sweep.spec import ModelRef, ProtocolSpec, QuantScheme, TaskSpec, TrialSpec

HOST = HostInfo(host="here", pid=1, device="cpu")
INSTRUCT = "GSAI-ML/LLaDA-8B-Instruct"
SCORES = {
    "fp": {"gsm8k": (0.786, 1319), "minerva_math": (0.33, 5000), "piqa": (0.72, 1838)},
    "gptq": {"gsm8k": (0.6, 1319), "minerva_math": (0.32, 5000), "piqa": (1.0, 20)},
}


@pytest.fixture(scope="module")
def path(tmp_path_factory):
    """A store that nobody writes to: two trials of a published model, by its name and another, and
    a saved quantized model that has its name."""
    path = tmp_path_factory.mktemp("compared") / "store.db"
    for sweep, model in (
        ("hub", ModelRef(name=INSTRUCT, revision="abc")),
        ("tiny", ModelRef(name="llada-tiny")),
    ):
        fill(path, sweep, model)
    fill(path, "saved", ModelRef(name="/saved/LLaDA-8B-Instruct"), [("fp", "w4a16-g128-asym")])
    return path


def fill(path, sweep, model, methods=(("fp", "w16a16"), ("gptq", "w3a16-g128-asym"))):
    store = open_store(path)
    tasks = tuple(TaskSpec(name=task) for task in (*SCORES["fp"], "lambada"))
    specs = [
        TrialSpec(
            model=model,
            method=method,
            scheme=QuantScheme.parse(scheme),
            protocol=ProtocolSpec(tasks=tasks, outliers=None),
        )
        for method, scheme in methods
    ]
    trials = tuple(PlannedTrial(spec=spec, label=spec.method) for spec in specs)
    planned = store.plan_sweep(sweep, "", trials)
    lease = store.take_lease(sweep, this_process(), seconds=60)
    for row in store.trials(planned.id):
        claim = store.claim(lease, row.id, f"{sweep}-{row.id}", HOST)
        for unit in claim.units:
            store.commit_unit(claim, result(unit, claim.trial.method))
    store.release_lease(lease)
    store.close()


def result(unit, method):
    if unit.kind == "quantize":
        return UnitResult(unit=unit, wall_s=1.0)
    value, n = SCORES[method].get(unit.task, (0.5, 100))
    stderr = math.sqrt(value * (1 - value) / (n - 1))
    metrics = (Metric(task=unit.task, name="score", value=value, stderr=stderr, n=n),)
    return UnitResult(unit=unit, wall_s=1.0, metrics=metrics)


@pytest.fixture
def found(path):
    store = open_store(path, create=False)
    yield lambda **more: {
        (one.method, one.name): one for one in compare_with_published(store, **more)
    }
    store.close()


def test_tasks_and_groups_stand_beside_their_printed_values(found):
    rows = found(sweep="hub")
    assert set(rows) == {
        (method, name)
        for method in ("fp", "gptq")
        for name in ("gsm8k", "minerva_math", "piqa", "math")
    }
    one = rows["fp", "gsm8k"]
    assert (one.own, one.published, one.table) == (pytest.approx(78.6), 78.5, "Table 3")
    assert one.published_model == INSTRUCT
    assert rows["gptq", "gsm8k"].published == 76.4, "the grid that a scheme names does not matter"


def test_the_interval_counts_both_errors(found):
    one = found(sweep="hub")["fp", "gsm8k"]
    errors = [100 * math.sqrt(p * (1 - p) / n) for p, n in ((0.786, 1318), (0.785, 1319))]
    assert one.margin == pytest.approx(1.96 * math.hypot(*errors), rel=1e-4)
    assert one.verdict == "agrees"
    assert found(sweep="hub")["gptq", "gsm8k"].verdict == "differs"


def test_a_score_of_few_items_without_spread_has_a_wide_interval(found):
    one = found(sweep="hub")["gptq", "piqa"]
    assert one.own_stderr > 4
    assert "piqa: own over 20 of 1838 items" in one.note


def test_a_group_is_over_the_same_tasks_on_both_sides(found):
    rows = found(sweep="hub")
    one = rows["gptq", "math"]
    assert one.tasks == ("gsm8k", "minerva_math")
    assert (one.own, one.published) == (pytest.approx(46.0), pytest.approx(53.2))
    assert one.own_change == pytest.approx(100 * (46.0 - 55.8) / 55.8)
    assert one.published_change == pytest.approx(100 * (53.2 - 56.0) / 56.0)
    assert (rows["fp", "math"].own_change, one.own_items) == (None, 6319)


def test_models_go_together_by_the_last_part_of_their_name_or_by_an_alias(found):
    assert found(sweep="tiny") == {}
    rows = found(sweep="tiny", aliases={"llada-tiny": "LLaDA-8B-Instruct"})
    hub = found(sweep="hub")
    assert {key: one.published for key, one in rows.items()} == {
        key: one.published for key, one in hub.items()
    }
    with pytest.raises(UnknownName, match="did you mean 'LLaDA-8B-Base'"):
        found(aliases={"llada-tiny": "LLaDA-8B-Bas"})


def test_a_saved_quantized_model_is_not_the_published_full_precision(found):
    assert found(sweep="saved") == {}


def test_trials_that_differ_in_text_or_seed_are_told_apart(found):
    one = found(sweep="hub")["gptq", "piqa"]
    listing = comparison_listing([one, replace(one, calibration="other", seed=1)], full=False)
    assert listing.columns[3:5] == ("calibration", "seed")
    assert [row[3:5] for row in listing.rows] == [("-", "0"), ("other", "1")]


def run(*words):
    return CliRunner().invoke(main, list(map(str, words)), prog_name="dllm-sweep")


def test_the_command_prints_every_format(path):
    words = ("compare", "hub", "--published", "--store", path)
    text = run(*words).output
    assert "gsm8k, minerva_math" in text
    assert text.count("agrees") + text.count("differs") == 8
    listed = json.loads(run(*words, "--format", "json").output)
    rows = list(csv.DictReader(io.StringIO(run(*words, "--format", "csv").output)))
    assert len(listed) == len(rows) == 8
    assert [float(row["difference"]) for row in rows] == [one["difference"] for one in listed]


def test_what_cannot_be_compared_is_told(path):
    assert run("compare", "--store", path).exit_code == 2
    done = run("compare", "tiny", "--published", "--store", path)
    assert (done.exit_code, "see --as" in done.output) == (0, True)
    done = run("compare", "--published", "--as", "llada-tiny", "--store", path)
    assert (done.exit_code, "write OWN=PUBLISHED" in done.output) == (2, True)
