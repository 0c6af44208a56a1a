"""States of the model's own denoising."""

from dataclasses import replace
from itertools import pairwise

import pytest
import torch

from dllm_sweep import load_model
from dllm_sweep.calibration import load
from dllm_sweep.calibration.conversations import prompt_ids
from dllm_sweep.calibration.options import decoding_of, refusal, written_tokens
from dllm_sweep.calibration.sources import records
from dllm_sweep.calibration.trajectory import wanted
from dllm_sweep.decoding import generate
from dllm_sweep.errors import CalibrationError
from dllm_sweep.spec import CalibrationSpec, ModelRef, ProtocolSpec, QuantScheme, TrialSpec, Unit
from dllm_sweep.workload import unit_tokens

SPEC = CalibrationSpec(samples=16, length=32, masking="trajectory", prompt_share=0.5)
PROMPT = WINDOW = 16


@pytest.fixture(scope="module", params=["llada-tiny", "dream-tiny"])
def model(request):
    return load_model(request.param, device="cpu")


def whole(spec, model):
    (batch,) = load(spec, model, batch_size=spec.samples)
    return batch


def test_ratios_are_spread_evenly_over_the_samples(model):
    batch = whole(SPEC, model)
    assert not batch.masked[:, :PROMPT].any()
    wanted_masks = torch.arange(1, WINDOW + 1)
    # A step of the timeline's grid may write two tokens at once.
    slack = 0 if model.family.sampler == "blockwise" else 1
    assert ((batch.masked.sum(1) - wanted_masks).abs() <= slack).all()


def test_what_is_not_masked_is_what_the_model_writes_itself(model):
    batch = whole(replace(SPEC, samples=8), model)
    decoding = decoding_of(SPEC, model.family.sampler, model.block_size)
    (answer,) = generate(
        model,
        [batch.input_ids[0, :PROMPT].tolist()],
        gen_length=WINDOW,
        steps=decoding.steps,
        block_length=decoding.block_length,
        algorithm=decoding.algorithm,
    )
    assert len({tuple(ids[:PROMPT].tolist()) for ids in batch.input_ids}) == 1
    for ids, masked in zip(batch.input_ids[:, PROMPT:], batch.masked[:, PROMPT:], strict=True):
        assert torch.equal(ids[~masked], torch.tensor(answer)[~masked])


def test_states_of_one_run_grow_out_of_each_other(model):
    batch = whole(replace(SPEC, samples=8), model)
    for earlier, later in zip(batch.masked[1:], batch.masked[:-1], strict=True):
        assert not (later & ~earlier).any()


def test_ratios_may_be_given(model):
    batch = whole(replace(SPEC, samples=6, mask_ratios=(0.25, 1.0)), model)
    counts = batch.masked.sum(1).tolist()
    assert counts[1::2] == [WINDOW] * 3
    assert all(abs(count - WINDOW // 4) <= 1 for count in counts[::2])
    prompts = {tuple(ids[:PROMPT].tolist()) for ids in batch.input_ids}
    assert len(prompts) == 3


@pytest.mark.parametrize("samples", [1, 7, 8, 9, 128])
def test_a_run_gives_eight_samples_at_most_and_their_ratios_are_apart(samples):
    states = wanted(replace(SPEC, samples=samples))
    by_run = {}
    for state in states:
        by_run.setdefault(state.run, []).append(state.masks)
    assert sorted(by_run) == list(range(-(-samples // 8)))
    for masks in by_run.values():
        assert len(masks) <= 8
        gaps = [later - earlier for earlier, later in pairwise(masks)]
        assert all(gap == pytest.approx(WINDOW * len(by_run) / samples) for gap in gaps)


def test_blocks_are_written_one_after_the_other():
    model = load_model("llada-tiny", device="cpu")
    spec = replace(SPEC, samples=3, block_length=8, steps=8, mask_ratios=(0.25, 0.5, 0.75))
    quarter, half, most = whole(spec, model).masked[:, PROMPT:]
    assert most[8:].all()
    assert half[8:].all()
    assert not half[:8].any()
    assert not quarter[:8].any()


def test_without_a_prompt_there_is_nothing_to_continue(model):
    with pytest.raises(CalibrationError, match=r"needs a prompt: raise prompt_share 0\.01"):
        load(replace(SPEC, prompt_share=0.01), model, batch_size=4)


def test_steps_that_do_not_fit_the_sampler_are_refused():
    spec = replace(SPEC, block_length=8, steps=3)
    assert "steps 3 do not divide into the 2 blocks" in refusal(spec, "blockwise", None)
    assert "block_length 5 does not divide" in refusal(
        replace(SPEC, block_length=5), "blockwise", None
    )
    assert "has no blocks" in refusal(replace(SPEC, block_length=8), "timeline", None)
    assert "length 32 must be a multiple of 6" in refusal(SPEC, "blockwise", 6)
    assert refusal(SPEC, "blockwise", 4) is None
    assert refusal(replace(spec, masking="uniform"), "timeline", None) is None


@pytest.mark.parametrize("length", [16, 40, 128, 2048])
@pytest.mark.parametrize("sampler", ["blockwise", "timeline"])
def test_the_usual_steps_fit_every_length(length, sampler):
    spec = replace(SPEC, length=length, prompt_share=0.25)
    assert refusal(spec, sampler, None) is None
    decoding = decoding_of(spec, sampler, None)
    assert decoding.steps >= min(32, decoding.gen_length // 2)


def test_prompts_of_conversations_are_answered(model):
    spec = replace(SPEC, source="tiny-chat", prompts="chat", length=64, samples=12, steps=16)
    (batch,) = load(spec, model, batch_size=12)
    asked = {tuple(prompt_ids(model, question)) for (question,) in records(spec, ("prompt_field",))}
    sizes = batch.attention_mask.sum(1).tolist()
    prompts = [
        tuple(ids[: size - 32]) for ids, size in zip(batch.input_ids.tolist(), sizes, strict=True)
    ]
    assert set(prompts) <= asked
    assert len(set(prompts)) == 2
    assert all(len(prompt) <= 32 for prompt in prompts)
    for masked, prompt, size in zip(batch.masked, prompts, sizes, strict=True):
        assert not masked[: len(prompt)].any()
        assert not masked[size:].any()
    assert batch.masked[-1].sum() == 32


def test_the_plan_knows_how_much_the_model_will_write():
    model = load_model("llada-tiny", device="cpu")
    for spec in (SPEC, replace(SPEC, samples=5, mask_ratios=(0.5, 1.0), steps=4)):
        before = model.work.tokens
        load(spec, model, batch_size=4)
        assert model.work.tokens - before == written_tokens(spec)
    assert written_tokens(replace(SPEC, masking="uniform")) == 0
    text = TrialSpec(
        model=ModelRef(name="llada-tiny"),
        method="gptq",
        scheme=QuantScheme(w_bits=4),
        protocol=ProtocolSpec(tasks=()),
        calibration=SPEC,
    )
    plain = replace(text, calibration=replace(SPEC, masking="none"))
    quantize = Unit(kind="quantize")
    assert unit_tokens(text, quantize) - unit_tokens(plain, quantize) == written_tokens(SPEC)
