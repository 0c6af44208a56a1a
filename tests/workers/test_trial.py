"""Workbench on the embedded model: what is restored from a file is what was quantized."""

import resource
from contextlib import contextmanager
from dataclasses import replace

import pytest

from dllm_sweep.errors import DiskFull, QuantizationError
from dllm_sweep.sharing import quantization_key
from dllm_sweep.spec import CalibrationSpec, QuantScheme, Unit
from dllm_sweep.workers import files
from dllm_sweep.workers.failures import WeightsLost
from dllm_sweep.workers.quantizing import code_of
from dllm_sweep.workers.stages import StageCache
from dllm_sweep.workers.trial import Workbench

QUANTIZE = Unit(kind="quantize")
FACTS = Unit(kind="evaluate", task="tiny_facts")
BROKEN = """
from dataclasses import dataclass
from dllm_sweep.methods.rtn import Rtn


@dataclass(frozen=True, kw_only=True)
class Broken(Rtn):
    def quantize(self, model, scheme, calibration, **rest):
        report = super().quantize(model, scheme, calibration, **rest)
        next(iter(model.linears().values())).weight.data[0, 0] = float("nan")
        return report
"""


COUNTED = """
from dataclasses import dataclass
from pathlib import Path
from dllm_sweep.methods.rtn import Rtn


@dataclass(frozen=True, kw_only=True)
class Counted(Rtn):
    def quantize(self, model, scheme, calibration, **rest):
        with Path(__file__).with_suffix(".count").open("a") as file:
            file.write("quantized\\n")
        return super().quantize(model, scheme, calibration, **rest)
"""
DIGEST = "d" * 64


@pytest.fixture
def counted(claim_of, make_trial, tmp_path):
    """A claim on a trial of known content, whose method counts how often it quantizes."""
    (tmp_path / "own.py").write_text(COUNTED)
    claim = claim_of(make_trial(f"{tmp_path / 'own.py'}:Counted"))
    model = replace(claim.trial.model, digest=DIGEST)
    return replace(claim, trial=replace(claim.trial, model=model))


@pytest.fixture
def times(tmp_path):
    """How often the method of `counted` has quantized."""
    path = tmp_path / "own.count"
    return lambda: len(path.read_text().splitlines()) if path.exists() else 0


def with_more_draws(claim):
    """Another trial that differs in its evaluation alone."""
    tasks = tuple(replace(task, draws=3) for task in claim.trial.protocol.tasks)
    trial = replace(claim.trial, protocol=replace(claim.trial.protocol, tasks=tasks))
    return replace(claim, trial_id=claim.trial_id + 1, trial_key=trial.key, trial=trial)


def test_a_resumed_trial_is_not_quantized_again(options, counted, times):
    (weights,) = Workbench(options).run(counted, QUANTIZE).artifacts
    later = replace(counted, attempt=2, done=("quantize",), weights=weights)
    result = Workbench(options).run(later, FACTS)
    assert result.weights_sha256 == weights.sha256
    assert times() == 1


def test_weights_whose_commit_was_lost_in_a_crash_are_found_again(options, counted, times):
    first = Workbench(options).run(counted, QUANTIZE)
    again = Workbench(options).run(replace(counted, attempt=2), QUANTIZE)
    assert (again.artifacts, again.modules, again.costs) == (
        first.artifacts,
        first.modules,
        first.costs,
    )
    assert times() == 1


def test_trials_that_differ_in_their_evaluation_alone_quantize_once(options, counted, times):
    bench = Workbench(options)
    first = bench.run(counted, QUANTIZE)
    bench.run(counted, FACTS)
    other = with_more_draws(counted)
    second = bench.run(other, QUANTIZE)
    assert second.artifacts == first.artifacts
    assert bench.run(other, FACTS).weights_sha256 == first.artifacts[0].sha256
    assert times() == 1


def test_truncated_weights_are_quantized_again_not_shared(options, counted, times):
    (weights,) = Workbench(options).run(counted, QUANTIZE).artifacts
    path = options.files / weights.path
    path.write_bytes(path.read_bytes()[:-1])
    assert Workbench(options).run(counted, QUANTIZE).artifacts == (weights,)
    assert files.is_whole(weights, options.files)
    assert times() == 2


def test_a_record_that_is_replaced_while_it_is_read_is_made_again(
    options, counted, times, monkeypatch
):
    first = Workbench(options).run(counted, QUANTIZE)
    find = StageCache.find

    def find_and_lose(cache, stage):
        found = find(cache, stage)
        if found is not None:
            found.unlink()
        return found

    monkeypatch.setattr(StageCache, "find", find_and_lose)
    assert Workbench(options).run(counted, QUANTIZE).artifacts == first.artifacts
    assert times() == 2


def test_a_method_whose_file_has_changed_quantizes_again(options, counted, times, tmp_path):
    Workbench(options).run(counted, QUANTIZE)
    (tmp_path / "own.py").write_text(COUNTED + "# changed\n")
    code_of.cache_clear()  # as in a new process
    Workbench(options).run(counted, QUANTIZE)
    assert times() == 2


def test_a_trial_of_unknown_content_shares_nothing(options, counted, times):
    model = replace(counted.trial.model, digest=None)
    unknown = replace(counted, trial=replace(counted.trial, model=model))
    for _ in range(2):
        Workbench(options).run(unknown, QUANTIZE)
    assert times() == 2


def test_weights_that_other_trials_need_outlive_their_trial(options, counted):
    kept = replace(options, kept=frozenset({quantization_key(counted.trial)}))
    bench = Workbench(kept)
    (weights,) = bench.run(counted, QUANTIZE).artifacts
    bench.discard_weights(counted)
    assert files.is_whole(weights, options.files)
    Workbench(options).discard_weights(replace(counted, weights=weights))
    assert [path for path in options.files.rglob("*") if path.is_file()] == []


def test_calibration_text_is_read_once(options, claim_of, make_trial, tmp_path):
    text = tmp_path / "text.jsonl"
    text.write_text('{"text": "the quick brown fox jumps over the lazy dog"}\n' * 60)
    calibration = CalibrationSpec(source=str(text), samples=2, length=16, digest="t" * 64)
    claim = claim_of(make_trial("gptq"))
    trial = replace(claim.trial, calibration=calibration)
    claim = replace(claim, trial=replace(trial, model=replace(trial.model, digest=DIGEST)))
    Workbench(options).run(claim, QUANTIZE)
    text.unlink()
    other = replace(claim, trial=replace(claim.trial, scheme=QuantScheme.parse("w4a16-asym")))
    assert Workbench(options).run(other, QUANTIZE).modules


def test_a_worker_on_another_machine_fetches_what_is_behind_the_url(options, counted, tmp_path):
    shared = f"memory://{tmp_path.name}"
    here = replace(options, remote=shared)
    (weights,) = Workbench(here).run(counted, QUANTIZE).artifacts
    claim = replace(counted, weights=weights)
    there = replace(here, files=tmp_path / "elsewhere")
    direct = Workbench(here).run(claim, FACTS)
    fetched = Workbench(there).run(claim, FACTS)
    assert (fetched.metrics, fetched.artifacts) == (direct.metrics, direct.artifacts)
    Workbench(here).discard_weights(claim)
    with pytest.raises(WeightsLost):
        Workbench(there).run(claim, FACTS)


def test_shards_of_a_unit_carry_sums_that_add_up(options, claim_of, make_trial):
    claim, bench = claim_of(make_trial("fp")), Workbench(options)
    (whole,) = bench.run(claim, FACTS).metrics
    shards = [replace(FACTS, shard=number, shards=2) for number in range(2)]
    first, second = (bench.run(claim, unit).metrics[0].tally for unit in shards)
    assert first + second == whole.tally


@contextmanager
def a_full_disk():
    """No file of this process may grow beyond 64 KiB."""
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (2**16, hard))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))


def test_a_disk_without_room_for_the_weights_is_told_apart_from_a_broken_trial(
    options, claim_of, make_trial
):
    claim, folder = claim_of(make_trial()), options.files / "weights"
    text = f"{folder} cannot be written: .* then resume"
    with pytest.raises(DiskFull, match=text), a_full_disk():
        Workbench(options).run(claim, QUANTIZE)
    assert [path for path in options.files.rglob("*") if path.is_file()] == []


def test_restored_weights_give_the_results_of_those_in_memory(options, claim_of, make_trial):
    claim, bench = claim_of(make_trial()), Workbench(options)
    quantized = bench.run(claim, QUANTIZE)
    direct = bench.run(claim, FACTS)
    (weights,) = quantized.artifacts
    later = replace(claim, attempt=2, done=("quantize",), weights=weights)
    restored = Workbench(options).run(later, FACTS)
    assert restored.metrics == direct.metrics
    assert restored.artifacts == direct.artifacts, "the answers to all items, byte for byte"


def test_weights_that_were_cut_are_lost_and_quantizing_again_gives_the_same(
    options, claim_of, make_trial
):
    claim, bench = claim_of(make_trial()), Workbench(options)
    (weights,) = bench.run(claim, QUANTIZE).artifacts
    path = options.files / weights.path
    path.write_bytes(path.read_bytes()[:-1])
    later = replace(claim, weights=weights)
    fresh = Workbench(options)
    with pytest.raises(WeightsLost):
        fresh.run(later, FACTS)
    assert fresh.run(later, QUANTIZE).artifacts == (weights,)
    assert files.is_whole(weights, options.files)


def test_weights_are_removed_once_their_trial_is_done(options, claim_of, make_trial):
    claim, bench = claim_of(make_trial()), Workbench(options)
    (weights,) = bench.run(claim, QUANTIZE).artifacts
    bench.discard_weights(claim)
    assert not (options.files / weights.path).exists()


def test_linears_that_are_left_out_count_16_bits(options, claim_of, make_trial):
    claim = claim_of(make_trial())
    trial = replace(claim.trial, parameters=(("modules", ("*.self_attn.*",)),))
    claims = claim, replace(claim, trial=trial)
    every, some = (Workbench(options).run(one, QUANTIZE) for one in claims)
    share = sum(row.weights for row in some.modules) / sum(row.weights for row in every.modules)
    whole, part = (
        next(cost.value for cost in result.costs if cost.name == "average_bits")
        for result in (every, some)
    )
    # Every group of 128 weights stores the same in all layers.
    assert part == pytest.approx(share * whole + (1 - share) * 16)
    assert whole < 4


def test_weights_that_are_no_numbers_fail_their_trial(options, claim_of, make_trial, tmp_path):
    (tmp_path / "own.py").write_text(BROKEN)
    claim = claim_of(make_trial(f"{tmp_path / 'own.py'}:Broken"))
    with pytest.raises(QuantizationError, match=r"q_proj.*NaN"):
        Workbench(options).run(claim, QUANTIZE)


def test_no_other_version_of_a_method_gives_results_under_a_trials_key(
    options, claim_of, make_trial
):
    claim = claim_of(make_trial())
    claim = replace(claim, trial=replace(claim.trial, method_version=7))
    with pytest.raises(QuantizationError, match="version 7 of rtn, which is at version 1 now"):
        Workbench(options).run(claim, QUANTIZE)


def test_a_model_at_hand_in_another_precision_is_loaded_again(options, claim_of, make_trial):
    single = claim_of(make_trial("fp"))
    protocol = replace(single.trial.protocol, dtype="bfloat16")
    half = replace(single, trial=replace(single.trial, protocol=protocol))
    bench = Workbench(options)
    in_single, in_half = (bench.run(claim, FACTS).artifacts[0].sha256 for claim in (single, half))
    assert in_single != in_half, "log-likelihoods of the answers differ between precisions"
    assert bench.run(single, FACTS).artifacts[0].sha256 == in_single
