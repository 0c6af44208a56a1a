"""Where blocks go and come back from; that tensors really change places is tested on a GPU."""

import pytest
import torch

from dllm_sweep.quant import visiting as module
from dllm_sweep.quant.fuse import RewrittenParameter, rewrite
from dllm_sweep.quant.visiting import visiting

AWAY, HOME = torch.device("cuda"), torch.device("cpu")


@pytest.fixture
def moves(monkeypatch):
    """Every move of a block, recorded instead of made."""
    made = []
    monkeypatch.setattr(module, "move", lambda block, device: made.append((block, device)))
    return made


def test_a_block_goes_home_even_if_the_work_fails(small_llada, moves):
    block = small_llada.blocks[0]

    def fail():
        with visiting(block, AWAY):
            assert moves == [(block, AWAY)]
            assert len(block._forward_pre_hooks) == 1
            raise ValueError("half way")

    with pytest.raises(ValueError, match="half way"):
        fail()
    assert moves == [(block, AWAY), (block, HOME)]
    assert not block._forward_pre_hooks


@pytest.mark.parametrize("device", [None, HOME])
def test_a_block_that_is_there_already_stays(device, small_llada, moves):
    with visiting(small_llada.blocks[0], device):
        assert not small_llada.blocks[0]._forward_pre_hooks
    assert moves == []


def test_moving_keeps_the_classes_and_the_sharing_of_tensors(small_llada):
    block = small_llada.blocks[0]
    norm = block.input_layernorm
    rewrite(norm, "weight", norm.weight * 2)
    block.mlp.up_proj.weight = block.mlp.gate_proj.weight
    expected = {name: tensor.clone() for name, tensor in block.named_parameters()}
    module.move(block, HOME)
    assert isinstance(norm.weight, RewrittenParameter)
    assert block.mlp.up_proj.weight is block.mlp.gate_proj.weight
    assert all(torch.equal(tensor, expected[n]) for n, tensor in block.named_parameters())
