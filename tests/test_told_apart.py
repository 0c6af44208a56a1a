"""Trials that differ in a parameter are told apart on boards by that parameter alone."""

import json

from dllm_sweep.reports.told_apart import axis_texts, differing_axes


def row(method="gptq", calibration="text", seed=0, **parameters):
    return {
        "method": method,
        "parameters": json.dumps(parameters),
        "calibration": calibration,
        "seed": seed,
    }


def test_nothing_is_said_where_trials_of_a_method_are_set_up_alike():
    rows = [row("fp", None), row(damping=0.1), row("awq", grid_points=20)]
    assert differing_axes(rows) == []
    assert axis_texts(rows, []) == [(), (), ()]


def test_only_the_parameters_that_differ_are_written():
    rows = [
        row("fp", None),
        row(damping=0.1, output_first=True, skip_modules=["*.q_proj"]),
        row(damping=0.1, output_first=True, skip_modules=[]),
        row("awq", grid_points=20),
    ]
    assert differing_axes(rows) == ["parameters"]
    assert axis_texts(rows, ["parameters"]) == [
        ("-",),
        ('skip_modules=["*.q_proj"]',),
        ("skip_modules=[]",),
        ("-",),
    ]


def test_a_parameter_that_older_trials_lack_is_written_where_it_is():
    rows = [row(damping=0.1), row(damping=0.1, output_first=False)]
    assert axis_texts(rows, ["parameters"]) == [("-",), ("output_first=false",)]


def test_calibration_and_seed_are_written_as_they_are():
    rows = [row(calibration="one"), row(calibration="two", seed=3), row("fp", None)]
    axes = differing_axes(rows)
    assert axes == ["calibration", "seed"]
    assert axis_texts(rows, axes) == [("one", "0"), ("two", "3"), ("-", "0")]
