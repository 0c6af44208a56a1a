"""Workbench on the embedded model: what is restored from a file is what was quantized."""

from dataclasses import replace

import pytest

from dllm_sweep.errors import QuantizationError
from dllm_sweep.spec import Unit
from dllm_sweep.workers import files
from dllm_sweep.workers.failures import WeightsLost
from dllm_sweep.workers.trial import Workbench

QUANTIZE = Unit(kind="quantize")
FACTS = Unit(kind="evaluate", task="tiny_facts")
BROKEN = """
from dataclasses import dataclass
from dllm_sweep.methods.rtn import Rtn


@dataclass(frozen=True, kw_only=True)
class Broken(Rtn):
    def quantize(self, model, scheme, calibration, *, seed=0, progress=lambda done, total: None):
        report = super().quantize(model, scheme, calibration, seed=seed, progress=progress)
        next(iter(model.linears().values())).weight.data[0, 0] = float("nan")
        return report
"""


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


def test_weights_that_are_no_numbers_fail_their_trial(options, claim_of, make_trial, tmp_path):
    (tmp_path / "own.py").write_text(BROKEN)
    claim = claim_of(make_trial(f"{tmp_path / 'own.py'}:Broken"))
    with pytest.raises(QuantizationError, match=r"q_proj.*NaN"):
        Workbench(options).run(claim, QUANTIZE)


def test_a_model_at_hand_in_another_precision_is_loaded_again(options, claim_of, make_trial):
    single = claim_of(make_trial("fp"))
    protocol = replace(single.trial.protocol, dtype="bfloat16")
    half = replace(single, trial=replace(single.trial, protocol=protocol))
    bench = Workbench(options)
    in_single, in_half = (bench.run(claim, FACTS).artifacts[0].sha256 for claim in (single, half))
    assert in_single != in_half, "log-likelihoods of the answers differ between precisions"
    assert bench.run(single, FACTS).artifacts[0].sha256 == in_single
