import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from dllm_sweep.errors import QuantizationError
from dllm_sweep.methods import gptq, rtn
from dllm_sweep.quant.affine import GridFamily, WeightGrid
from dllm_sweep.quant.hessian import Hessian
from dllm_sweep.quant.packing import codes_of, pack, packed_bytes, per_input, unpack, weight_of

BITS = st.integers(2, 8)
SEEDS = st.integers(0, 10_000)
DTYPES = st.sampled_from([torch.float32, torch.bfloat16, torch.float16])


def random_weight(seed, outputs=6, inputs=16, spread=3.0):
    generator = torch.Generator().manual_seed(seed)
    rows = torch.randn(outputs, 1, generator=generator).mul(spread).exp()
    return rows * torch.randn(outputs, inputs, generator=generator) * 0.02


@given(bits=BITS, signed=st.booleans(), data=st.data())
def test_packed_codes_come_back_and_take_no_more_than_their_bits(bits, signed, data):
    lowest = -(2 ** (bits - 1)) if signed else 0
    given_codes = data.draw(st.lists(st.integers(lowest, lowest + 2**bits - 1), max_size=40))
    codes = torch.tensor(given_codes, dtype=torch.int16)
    packed = pack(codes, bits=bits, lowest=lowest)
    assert len(packed) == packed_bytes(len(codes), bits) == (len(codes) * bits + 7) // 8
    assert torch.equal(unpack(packed, len(codes), bits=bits, lowest=lowest), codes)


def test_codes_are_packed_lowest_bit_first():
    codes = torch.tensor([1, 2, 3, 0, 3])
    assert pack(codes, bits=2, lowest=0).tolist() == [0b00_11_10_01, 0b11]
    assert pack(torch.tensor([-4, 3, -1]), bits=3, lowest=-4).tolist() == [0b11_111_000, 0b0]


@given(
    bits=BITS,
    family=st.sampled_from(GridFamily),
    dtype=DTYPES,
    group_size=st.sampled_from([None, 4, 8]),
    clip=st.sampled_from([1.0, 0.7]),
    seed=SEEDS,
)
def test_a_rounded_weight_is_its_codes_in_every_dtype(bits, family, dtype, group_size, clip, seed):
    weight = random_weight(seed)
    result = rtn.quantize_weight(
        weight, bits=bits, family=family, group_size=group_size, clip_ratio=clip
    )
    grid, simulated = WeightGrid.of(result.grid), result.dequantized.to(dtype)
    codes = codes_of(simulated, grid)
    packed = pack(codes, bits=bits, lowest=grid.lowest)
    back = unpack(packed, weight.numel(), bits=bits, lowest=grid.lowest).view_as(weight)
    assert grid.lowest <= int(codes.min()) <= int(codes.max()) <= grid.highest
    assert torch.equal(weight_of(back, grid, dtype), simulated)


@given(bits=BITS, seed=SEEDS, dtype=DTYPES)
def test_zeros_need_not_be_codes(bits, seed, dtype):
    generator = torch.Generator().manual_seed(seed)
    scales = torch.rand(6, 2, generator=generator) + 0.01
    zeros = 2**bits * torch.rand(6, 2, generator=generator)
    grid = WeightGrid(scales=scales, zeros=zeros, bits=bits, lowest=0)
    codes = torch.randint(2**bits, (6, 16), generator=generator)
    simulated = weight_of(codes, grid, dtype)
    assert not grid.zeros_are_codes()
    assert torch.equal(weight_of(codes_of(simulated, grid), grid, dtype), simulated)


@given(bits=BITS, zero=st.integers(0, 255), scale=st.floats(1e-4, 1e4))
def test_a_bfloat16_weight_shows_codes_that_give_it_again(bits, zero, scale):
    steps = 2**bits - 1
    grid = one_grid(scale, zero % (steps + 1), bits)
    codes = torch.arange(steps + 1, dtype=torch.int16)[None]
    weight = weight_of(codes, grid, torch.bfloat16)
    read = codes_of(weight, grid)
    assert torch.equal(weight_of(read, grid, torch.bfloat16), weight)
    assert bits == 8 or torch.equal(read, codes)


def test_beside_a_power_of_two_the_nearest_code_can_be_the_wrong_one():
    # Of 128.45 and 127.6, the second is nearer to 128; but its own bfloat16 is 127.5.
    grid = one_grid(128.45 / 151, 0, 8)
    assert codes_of(torch.tensor([[128.0]], dtype=torch.bfloat16), grid).tolist() == [[151]]


def test_a_weight_that_is_not_on_the_grid_is_refused():
    with pytest.raises(QuantizationError, match="not on the grid"):
        codes_of(torch.tensor([[0.5, 1.0]]), one_grid(1.0, 0, 4))


def one_grid(scale, zero, bits):
    scales, zeros = torch.tensor([[scale]]), torch.tensor([[float(zero)]])
    return WeightGrid(scales=scales, zeros=zeros, bits=bits, lowest=0)


def test_one_grid_for_the_whole_weight_is_kept_once():
    weight = random_weight(1)
    result = rtn.quantize_weight(weight, bits=5, per_tensor=True)
    grid = WeightGrid.of(result.grid)
    assert grid.scales.shape == (1, 1)
    assert torch.equal(
        weight_of(codes_of(result.dequantized, grid), grid, torch.float32), result.dequantized
    )


@pytest.mark.parametrize("static_groups", [True, False])
def test_groups_that_activation_order_scatters_are_found_by_index(static_groups):
    inputs = torch.randn(64, 16, generator=torch.Generator().manual_seed(5)) * torch.arange(1, 17)
    weight, family = random_weight(2), GridFamily.ASYMMETRIC
    result = gptq.quantize_weight(
        weight, Hessian.over(inputs).mean(), bits=3, group_size=4, static_groups=static_groups
    )
    grid = result.grid(3, family)
    scales, zeros = per_input(grid, 16)
    codes = codes_of(result.dequantized, grid)
    assert torch.equal(scales * (codes - zeros), result.dequantized)
    assert (grid.group_of_input is None) == static_groups
    back = weight_of(codes_of(result.dequantized, grid), grid, torch.float32)
    assert torch.equal(back, result.dequantized)


def test_grids_are_cut_like_the_stacked_weight_they_belong_to():
    weight = random_weight(3)
    result = rtn.quantize_weight(weight, bits=4, group_size=4)
    parts = WeightGrid.of(result.grid).split([2, 4])
    for part, rows in zip(parts, result.dequantized.split([2, 4]), strict=True):
        assert torch.equal(weight_of(codes_of(rows, part), part, torch.float32), rows)
