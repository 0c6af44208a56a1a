"""Families beside LLaDA and Dream as folders of quantized models."""

import pytest
import torch
from transformers import AutoModelForCausalLM

from dllm_sweep import load_model, quantize, save_quantized

IDS = torch.arange(2, 34)[None]


@pytest.mark.parametrize("family", ["illada", "sdar"])
def test_every_family_comes_back_from_both_layouts(family, request, tmp_path):
    folder = request.getfixturevalue(f"write_{family}")()
    model = quantize(load_model(str(folder), device="cpu"), scheme="w4a16")
    save_quantized(model, tmp_path / "ours")
    ours = load_model(str(tmp_path / "ours"), device="cpu")
    assert (ours.family, ours.block_size) == (model.family, model.block_size)
    assert torch.equal(ours.logits(IDS), model.logits(IDS))
    save_quantized(model, tmp_path / "theirs", layout="compressed-tensors")
    theirs = AutoModelForCausalLM.from_pretrained(tmp_path / "theirs")
    with torch.inference_mode():
        logits = theirs(input_ids=IDS, attention_mask=model.host_mask(IDS, None)).logits
    assert torch.equal(logits, model.logits(IDS))
