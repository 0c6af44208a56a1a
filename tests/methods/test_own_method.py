"""The worked example of the documentation: a method in a file of the user's own."""

from pathlib import Path

import pytest
import torch

from dllm_sweep.errors import InputError, UnknownName
from dllm_sweep.methods import build, quantize

NAME = f"{Path(__file__).parents[2] / 'examples' / 'my_method.py'}:MyMethod"


def test_a_method_in_a_file_is_used_by_its_path(small_llada):
    quantize(small_llada, method=NAME, scheme="w4a8-g16", quantile=0.9)
    report = small_llada.quantization_report
    assert len(report.modules) == 14
    assert report.average_bits == pytest.approx(5.25)


def test_without_clipping_it_is_rounding_to_nearest(make_small_llada):
    own, nearest = make_small_llada(), make_small_llada()
    quantize(own, method=NAME, scheme="w3a16", quantile=1.0)
    quantize(nearest, method="rtn", scheme="w3a16")
    for name, part in own.linears().items():
        assert torch.equal(part.weight, nearest.linears()[name].weight)


def test_its_mistakes_are_reported_as_for_a_method_of_the_package(tmp_path):
    with pytest.raises(UnknownName, match="did you mean 'quantile'"):
        build(NAME, {"quantil": 0.5})
    with pytest.raises(InputError, match="parameter quantile"):
        build(NAME, {"quantile": 2.0})
    broken = tmp_path / "broken.py"
    broken.write_text("Method = 3\n")
    with pytest.raises(InputError, match="not a dataclass"):
        build(f"{broken}:Method")
