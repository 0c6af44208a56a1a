"""Sharing a model's blocks out to devices. Two GPUs at work: tests/gpu/test_two_gpus.py."""

import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import nn

from dllm_sweep import load_model
from dllm_sweep.models.placement import Placement, connect

NAMES = ("cuda:0", "cuda:1", "cuda:2", "cuda:3")


def shapes_of(blocks, outside):
    shapes = {f"model.layers.{n}.mlp.up_proj.weight": (1, size) for n, size in enumerate(blocks)}
    return {"model.embed_tokens.weight": (1, outside), **shapes}


@given(
    st.lists(st.integers(1, 50), min_size=1, max_size=40), st.integers(1, 100), st.integers(1, 4)
)
def test_every_device_holds_a_run_of_blocks_of_about_its_share(blocks, outside, count):
    devices = [torch.device(name) for name in NAMES[:count]]
    placement = Placement.even(shapes_of(blocks, outside), devices)
    numbers = [device.index for device in placement.blocks]
    assert numbers == sorted(numbers)
    held = [sum(b for b, n in zip(blocks, numbers, strict=True) if n == i) for i in range(count)]
    held[0] += outside
    share = (sum(blocks) + outside) / count
    assert max(held) <= max(share, outside) + max(blocks)


def test_equal_blocks_are_shared_evenly_beside_the_embeddings():
    devices = [torch.device(name) for name in NAMES[:2]]
    placement = Placement.even(shapes_of([10] * 8, 20), devices)
    assert [device.index for device in placement.blocks] == [0, 0, 0, 1, 1, 1, 1, 1]
    assert placement.of("lm_head.weight") == devices[0]
    assert placement.of("model.layers.7.mlp.up_proj.weight") == devices[1]


class Recorder(nn.Module):
    """Notes the devices of what it is called with."""

    def forward(self, hidden, *, position_embeddings, mask=None):
        self.seen = [hidden.device.type, *(part.device.type for part in position_embeddings), mask]
        return hidden


def test_a_block_finds_all_that_it_is_called_with_on_its_own_device():
    host = nn.Module()
    host.model = nn.Module()
    host.model.layers = nn.ModuleList([Recorder(), Recorder()])
    host.model.norm = nn.Identity()
    cpu, meta = torch.device("cpu"), torch.device("meta")
    connect(host, Placement(blocks=(cpu, meta), rest=cpu))
    for block in host.model.layers:
        block(torch.zeros(1), position_embeddings=(torch.zeros(2), torch.zeros(2)))
    seen = [block.seen for block in host.model.layers]
    assert seen == [["cpu", "cpu", "cpu", None], ["meta", "meta", "meta", None]]


def test_a_model_on_several_devices_gives_the_very_logits_of_one():
    # To torch's bookkeeping these are two devices, and one memory: the movers are all at work.
    one, two = (load_model("llada-tiny", device=where) for where in ("cpu", ("cpu", "cpu:0")))
    assert all(block._forward_pre_hooks for block in two.blocks)
    ids = torch.arange(24).reshape(2, 12)
    shown = torch.ones_like(ids)
    shown[1, 8:] = 0
    assert torch.equal(one.logits(ids, shown), two.logits(ids, shown))
