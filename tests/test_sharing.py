"""What the trials of a plan have in common."""

from dataclasses import replace

import pytest

from dllm_sweep.records import PlannedTrial, PlannedUnit
from dllm_sweep.sharing import quantization_key, shared_stages, shared_weights
from dllm_sweep.spec import (
    FULL_PRECISION,
    CalibrationSpec,
    ModelRef,
    ProtocolSpec,
    QuantScheme,
    TaskSpec,
    TrialSpec,
)

TEXT = CalibrationSpec(digest="t" * 64)
GPTQ = TrialSpec(
    model=ModelRef(name="llada-tiny", digest="m" * 64),
    method="gptq",
    scheme=QuantScheme.parse("w4a16-asym"),
    protocol=ProtocolSpec(tasks=(TaskSpec(name="tiny_facts"),)),
    calibration=TEXT,
)
RTN = replace(GPTQ, method="rtn", calibration=None)
BASELINE = replace(RTN, method="fp", scheme=FULL_PRECISION)
LONGER = replace(GPTQ.protocol, tasks=(TaskSpec(name="tiny_facts", draws=64),))


def planned(*specs, skip_reason=None):
    return [
        PlannedTrial(
            spec=spec,
            label="",
            skip_reason=skip_reason,
            estimated_s=1.0 + 2.0 * len(spec.units()),
            units=tuple(PlannedUnit(unit=unit, estimated_s=2.0) for unit in spec.units()),
        )
        for spec in specs
    ]


def test_another_evaluation_leaves_the_quantized_weights_as_they_are():
    assert quantization_key(replace(GPTQ, protocol=LONGER)) == quantization_key(GPTQ)


@pytest.mark.parametrize(
    "change",
    [
        {"model": ModelRef(name="llada-tiny", digest="n" * 64)},
        {"method": "rtn"},
        {"method_version": 2},
        {"parameters": (("damping", 0.1),)},
        {"scheme": QuantScheme.parse("w3a16-asym")},
        {"calibration": replace(TEXT, samples=64)},
        {"calibration": replace(TEXT, digest="u" * 64)},
        {"seed": 1},
        {"protocol": replace(GPTQ.protocol, dtype="bfloat16")},
    ],
)
def test_whatever_changes_the_weights_changes_their_key(change):
    assert quantization_key(replace(GPTQ, **change)) != quantization_key(GPTQ)


@pytest.mark.parametrize(
    "spec",
    [
        BASELINE,
        replace(GPTQ, model=ModelRef(name="llada-tiny")),
        replace(GPTQ, calibration=CalibrationSpec()),
    ],
)
def test_weights_of_unknown_content_are_never_shared(spec):
    assert quantization_key(spec) is None
    assert shared_weights([spec, spec]) == frozenset()


def test_weights_that_several_trials_need_are_kept():
    trials = [GPTQ, replace(GPTQ, protocol=LONGER), RTN, BASELINE]
    assert shared_weights(trials) == {quantization_key(GPTQ)}


def test_a_plan_shares_models_texts_weights_and_baselines():
    again = replace(GPTQ, protocol=LONGER)
    found = shared_stages(planned(BASELINE, RTN, GPTQ, again))
    counts = {stage.kind: stage.trials for stage in found}
    assert counts == {"model": 4, "baseline": 2, "calibration": 2, "weights": 2}
    assert all(stage.saved_s > 0 for stage in found)
    saved = {stage.kind: stage.saved_s for stage in found}
    assert (saved["model"], saved["weights"]) == (3 * 1.0, 2.0)
    assert [stage.saved_s for stage in found] == sorted((s.saved_s for s in found), reverse=True)


def test_trials_that_are_skipped_or_alone_share_nothing():
    assert shared_stages(planned(GPTQ)) == ()
    assert shared_stages(planned(GPTQ, RTN, skip_reason="does not fit")) == ()
