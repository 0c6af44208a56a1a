import json
from dataclasses import replace

import pytest
from hypothesis import given
from hypothesis import strategies as st

from dllm_sweep.errors import InputError
from dllm_sweep.spec import (
    CalibrationSpec,
    DecodingSpec,
    ModelRef,
    ProtocolSpec,
    QuantScheme,
    TaskSpec,
    TrialSpec,
    canonical,
    from_json,
    to_json,
    with_places,
)

bits = st.sampled_from([*range(2, 9), 16])
schemes = st.builds(
    QuantScheme,
    w_bits=bits,
    a_bits=bits,
    kv_bits=bits,
    group_size=st.none() | st.integers(1, 4096),
    symmetric=st.none() | st.booleans(),
    qkv=st.booleans(),
)
texts = st.text(min_size=1, max_size=8)
trials = st.builds(
    TrialSpec,
    model=st.builds(ModelRef, name=texts, revision=st.none() | texts, digest=st.none() | texts),
    method=texts,
    scheme=schemes,
    protocol=st.builds(
        ProtocolSpec,
        tasks=st.lists(st.builds(TaskSpec, name=texts), min_size=1, max_size=3).map(tuple),
        decoding=st.builds(DecodingSpec, temperature=st.floats(0, 2)),
    ),
    parameters=st.dictionaries(texts, st.integers() | texts | st.tuples(texts, texts)).map(
        lambda values: tuple(sorted(values.items()))
    ),
    calibration=st.none() | st.builds(CalibrationSpec, source=texts),
    seed=st.integers(0, 9),
)


@given(schemes)
def test_a_schemes_name_reads_back_as_the_scheme(scheme):
    assert QuantScheme.parse(str(scheme)) == scheme


@given(trials)
def test_a_trial_comes_back_from_json_with_the_same_key(trial):
    again = from_json(TrialSpec, to_json(trial))
    assert again == trial
    assert again.key == trial.key


@given(trials, trials)
def test_two_trials_share_a_key_only_if_they_are_equal(one, other):
    assert (one.key == other.key) == (one == other)


@given(trials)
def test_a_trials_units_have_different_keys(trial):
    names = {task.name for task in trial.protocol.tasks}
    keys = {unit.key for unit in trial.units()}
    assert len(keys) == len(names) + 1 + (not trial.is_baseline)


@pytest.mark.parametrize(
    "text", ["w4", "w4a16g128", "w1a16", "w4a16-g0", "w9a9", "", "w4a16-sym-g8"]
)
def test_what_is_no_scheme_is_refused_in_one_line(text):
    with pytest.raises(InputError) as caught:
        QuantScheme.parse(text)
    assert "\n" not in str(caught.value)


def test_a_field_that_was_added_later_changes_a_key_only_where_it_is_used():
    plain = ProtocolSpec(tasks=(TaskSpec(name="tiny_math", digest="d"),))
    assert "sampler" not in canonical(plain)
    assert "chat_template" not in canonical(plain)
    assert replace(plain, chat_template=True).key != plain.key
    dream = replace(plain, decoding=DecodingSpec(sampler="timeline"))
    assert dream.key != plain.key


def test_where_data_lies_is_no_part_of_a_key():
    here, there = (
        ProtocolSpec(tasks=(TaskSpec(name="gsm8k", digest="d", data=folder),))
        for folder in ("/here", "/there")
    )
    assert here.key == there.key


@given(trials, st.none() | texts)
def test_what_is_stored_of_a_trial_has_all_that_a_worker_needs(trial, folder):
    tasks = tuple(replace(task, data=folder) for task in trial.protocol.tasks)
    placed = replace(trial, protocol=replace(trial.protocol, tasks=tasks))
    assert from_json(TrialSpec, json.loads(with_places(placed))) == placed
    assert placed.key == trial.key
