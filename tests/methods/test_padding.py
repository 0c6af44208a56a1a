"""Calibration sequences of different lengths: the padding behind them does not matter."""

from dataclasses import replace

import pytest
import torch

from dllm_sweep import plugins
from dllm_sweep.calibration.batch import CalibrationBatch
from dllm_sweep.errors import QuantizationError
from dllm_sweep.methods import build
from dllm_sweep.spec import QuantScheme

READERS = [name for name in plugins.names("method") if build(name, {}).needs_calibration]
PARAMETERS = [(name, {}) for name in READERS]
PARAMETERS += [("awq", {"solver": "gptq"}), ("duquant", {"calibrate_on": "mean"})]


def conversations(count=12, seed=0):
    """One batch of sequences of 8 to 32 tokens that count 1 or 0.7, padded on the right."""
    generator = torch.Generator().manual_seed(seed)
    ids = torch.randint(2, 63, (count, 32), generator=generator)
    lengths = torch.randint(8, 33, (count, 1), generator=generator)
    lengths[0] = 32
    shown = (torch.arange(32) < lengths).long()
    masked = (torch.rand(count, 32, generator=generator) < 0.3) & shown.bool()
    return CalibrationBatch(
        input_ids=ids.masked_fill(masked, 63).masked_fill(shown == 0, 1),
        attention_mask=shown,
        masked=masked,
        weights=torch.where(masked, 1.0, 0.7) * shown,
    )


def weights_after(model, name, parameters, batches):
    method = build(name, parameters)
    scheme = QuantScheme.parse("w4a16-g16" if name in ("awq", "gptq") else "w4a8")
    method.quantize(model, scheme, batches)
    return torch.cat([linear.weight.flatten() for linear in model.linears().values()])


@pytest.mark.parametrize(("name", "parameters"), PARAMETERS)
def test_padding_does_not_change_what_a_method_does(name, parameters, make_small_llada):
    whole = conversations()
    cut = tuple(whole.split(2))
    assert len({batch.input_ids.shape[1] for batch in cut}) > 3
    padded, trimmed = (
        weights_after(make_small_llada(layers=1), name, parameters, batches)
        for batches in ([whole], cut)
    )
    close = torch.isclose(padded, trimmed, rtol=1e-3, atol=1e-5)
    assert close.double().mean() > 0.99


def test_the_warning_of_too_few_tokens_counts_those_that_count(make_small_llada):
    whole = conversations()
    weights = torch.zeros_like(whole.weights)
    weights[0, :5] = 0.5
    report = build("gptq", {}).quantize(
        make_small_llada(layers=1), QuantScheme.parse("w4a16"), [replace(whole, weights=weights)]
    )
    assert report.warnings[0].startswith("5 calibration tokens for layers with 32 inputs")


@pytest.mark.parametrize("name", READERS)
def test_sequences_in_which_nothing_counts_have_no_say(name, make_small_llada):
    whole = conversations()
    silent = torch.zeros_like(whole.weights)
    # DuQuant's usual sample is shared out among all sequences, whatever counts in them.
    parameters = {"calibrate_on": "mean"} if name == "duquant" else {}
    after = [
        weights_after(make_small_llada(layers=1), name, parameters, batches)
        for batches in ([whole], [whole, replace(whole, weights=silent)])
    ]
    assert torch.isclose(*after, rtol=1e-3, atol=1e-5).double().mean() > 0.99
    with pytest.raises(QuantizationError, match="has weight 0: none counts"):
        weights_after(make_small_llada(layers=1), name, {}, [replace(whole, weights=silent)])
