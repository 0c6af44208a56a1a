"""The worked examples of the documentation: methods in files of the user's own."""

import sys
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from dllm_sweep import plugins
from dllm_sweep.errors import InputError, UnknownName
from dllm_sweep.methods import build, quantize, rtn
from dllm_sweep.models.family import Widths
from dllm_sweep.plan import make_plan
from dllm_sweep.quant.affine import weight_family
from dllm_sweep.quant.hessian import Hessian
from dllm_sweep.quant.packing import codes_of
from dllm_sweep.spec import QuantScheme
from dllm_sweep.sweep_file import read
from examples.my_solver import descend

EXAMPLES = Path(__file__).parents[2] / "examples"
NAME = f"{EXAMPLES / 'my_method.py'}:MyMethod"
SOLVER = f"{EXAMPLES / 'my_solver.py'}:MySolver"
TRANSFORM = f"{EXAMPLES / 'my_transform.py'}:MyTransform"
IDS = torch.arange(2, 34).reshape(2, 16)


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


@settings(deadline=None, max_examples=25)
@given(
    seed=st.integers(0, 2**31),
    bits=st.integers(2, 8),
    group_size=st.sampled_from([None, 4, 8]),
    symmetric=st.booleans(),
    tokens=st.integers(1, 40),
)
def test_no_sweep_of_the_solver_raises_the_error(seed, bits, group_size, symmetric, tokens):
    generator = torch.Generator().manual_seed(seed)
    weight = torch.randn(5, 16, generator=generator)
    inputs = torch.randn(tokens, 16, generator=generator)
    inputs[:, 3] = 0
    hessian = Hessian.over(inputs)
    nearest = rtn.solver(bits=bits, family=weight_family(symmetric), group_size=group_size)
    solution = nearest(weight, hessian.mean())
    for _ in range(3):
        before = solution
        solution = descend(weight, hessian.mean(), before, 1)
        error = hessian.error(weight, before.dequantized)
        assert hessian.error(weight, solution.dequantized) <= error * (1 + 1e-4) + 1e-7
    assert torch.equal(solution.dequantized[:, 3], before.dequantized[:, 3])
    assert int(codes_of(solution.dequantized, solution.grid).max()) < 2**bits


def test_the_solver_beats_rounding_to_nearest_on_a_model(make_small_llada, make_batches):
    expected, distance = make_small_llada().logits(IDS), {}
    for method in (SOLVER, "rtn"):
        model = make_small_llada()
        quantize(model, method=method, scheme="w3a16-g16", calibration=make_batches(8))
        assert len(model.quantization_report.modules) == 14
        distance[method] = (model.logits(IDS) - expected).norm()
    assert distance[SOLVER] < distance["rtn"]


@pytest.mark.parametrize("solver", ["rtn", "gptq"])
def test_the_transform_changes_nothing_but_what_rounding_does(
    make_small_llada, make_batches, solver
):
    expected, model = make_small_llada().logits(IDS), make_small_llada()
    quantize(model, method=TRANSFORM, scheme="w8a8", calibration=make_batches(8), solver=solver)
    assert (model.logits(IDS) - expected).norm() < 0.05 * expected.norm()


def test_planning_asks_the_transform_whether_a_model_has_fitting_widths():
    method, scheme = build(TRANSFORM, {}), QuantScheme.parse("w4a4")
    fitting = Widths(hidden=4096, ffn=12288, heads=32, head=128)
    assert method.misfit(scheme, fitting) is None
    refused = method.misfit(scheme, replace(fitting, ffn=13 * 2))
    assert refused.startswith("the feed-forward width is 26")


@pytest.fixture
def installed(tmp_path, monkeypatch):
    """What `pip install` leaves of a package: its module, and its metadata beside it."""
    site = tmp_path / "site-packages"
    metadata = site / "my_methods-1.0.dist-info"
    metadata.mkdir(parents=True)
    (site / "my_methods.py").write_text((EXAMPLES / "my_solver.py").read_text())
    (metadata / "METADATA").write_text("Metadata-Version: 2.1\nName: my-methods\nVersion: 1.0\n")
    (metadata / "entry_points.txt").write_text(
        "[dllm_sweep.methods]\nmy_solver = my_methods:MySolver\n"
    )
    monkeypatch.syspath_prepend(site)
    plugins._entry_points.cache_clear()
    yield
    plugins._entry_points.cache_clear()
    sys.modules.pop("my_methods", None)


def test_an_installed_package_adds_a_method_by_its_entry_point(
    installed, tmp_path, small_llada, make_batches
):
    path = tmp_path / "sweep.yaml"
    path.write_text(
        "models: [llada-tiny]\nmethods: [{name: my_solver, sweeps: 2}]\nschemes: [w3a16-g128]\n"
        "calibration: {source: tiny-text, samples: 8, length: 128}\ntasks: [tiny_math]\n"
    )
    _, trial = make_plan(read(path)).trials
    assert (trial.spec.method, trial.skip_reason) == ("my_solver", None)
    assert dict(trial.spec.parameters)["sweeps"] == 2
    quantize(small_llada, method="my_solver", scheme="w3a16-g16", calibration=make_batches(8))
    assert small_llada.quantization_report.average_bits == pytest.approx(3 + 19 / 16)


def test_it_is_unknown_where_it_is_not_installed():
    with pytest.raises(UnknownName, match="my_solver"):
        build("my_solver", {})
