"""Where blocks go and come back from; that tensors really change places is tested on a GPU."""

import pytest
import torch

from dllm_sweep.quant.visiting import visiting

AWAY, HOME = torch.device("cuda"), torch.device("cpu")


@pytest.fixture
def moves(monkeypatch):
    """Every move of a block, recorded instead of made."""
    made = []
    monkeypatch.setattr(torch.nn.Module, "to", lambda block, device: made.append((block, device)))
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
