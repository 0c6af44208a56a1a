import dataclasses

import pytest

from dllm_sweep import plugins
from dllm_sweep.errors import InputError, UnknownName
from dllm_sweep.methods import build
from dllm_sweep.methods.base import QuantizationReport
from dllm_sweep.records import ModuleRow
from dllm_sweep.spec import QuantScheme, from_json, to_json


@pytest.mark.parametrize("name", plugins.names("method"))
def test_every_method_keeps_the_contract(name):
    method = build(name)
    assert method == build(name, dataclasses.asdict(method))
    assert hash(method) == hash(build(name))
    assert isinstance(method.version, int)
    assert isinstance(method.needs_calibration, bool)
    assert isinstance(method.symmetric, bool)
    schemes = ("w16a16", "w4a16-g128", "w8a8", "w4a4-kv4")
    answers = [method.refusal(QuantScheme.parse(scheme)) for scheme in schemes]
    assert None in answers
    assert all(answer is None or "\n" not in answer for answer in answers)
    assert not set(dataclasses.asdict(method)) & {"version", "needs_calibration", "symmetric"}


@pytest.mark.parametrize("name", plugins.names("method"))
def test_parameters_survive_json(name):
    method = build(name)
    pairs = tuple(sorted(dataclasses.asdict(method).items()))
    assert build(name, dict(from_json(tuple, to_json(pairs)))) == method


def test_an_unknown_method_or_parameter_names_the_nearest():
    with pytest.raises(UnknownName, match="did you mean 'gptq'"):
        build("gtpq")
    with pytest.raises(UnknownName, match="parameter of gptq 'dampening': did you mean 'damping'"):
        build("gptq", {"dampening": 0.1})


@pytest.mark.parametrize(
    ("parameters", "message"),
    [
        ({"damping": "much"}, "parameter damping of gptq: expected a number, not 'much'"),
        ({"damping": True}, "parameter damping of gptq: expected a number, not True"),
        ({"damping": -0.1}, "parameter damping: expected at least 0 and below 1, not -0.1"),
        ({"block_size": 12.5}, "parameter block_size of gptq: expected a whole number, not 12.5"),
        ({"block_size": 0}, "parameter block_size: expected at least 1, not 0"),
        ({"mse_clip": "yes"}, "parameter mse_clip of gptq: expected true or false, not 'yes'"),
        ({"activation_clip": 1.5}, r"parameter activation_clip: expected \(0, 1\], not 1.5"),
        ({"modules": 3}, "parameter modules of gptq: expected a list of patterns"),
        ({"modules": [3]}, "parameter modules of gptq: expected a list of patterns"),
    ],
)
def test_a_wrong_value_names_parameter_value_and_what_is_expected(parameters, message):
    with pytest.raises(InputError, match=message):
        build("gptq", parameters)


@pytest.mark.parametrize("name", ["duquant+quarot", "awq + gptq"])
def test_methods_that_are_chained_by_name_are_told_what_composes(name):
    with pytest.raises(InputError, match=r"not chained by name; .* `solver: gptq` of awq"):
        build(name)
    with pytest.raises(UnknownName):
        build("duquant+quarrot")


def test_values_of_a_sweep_file_are_brought_into_form():
    method = build("gptq", {"damping": 0, "modules": "*.mlp.*", "skip_modules": ["*.up_proj"]})
    assert method.damping == 0.0
    assert isinstance(method.damping, float)
    assert method.modules == ("*.mlp.*",)
    assert method.skip_modules == ("*.up_proj",)


def test_the_average_bits_weigh_layers_by_their_size():
    def row(weights, bits):
        return ModuleRow(
            module="m", w_bits=4, a_bits=16, group_size=None, symmetric=False,
            weights=weights, bits=bits, relative_error=0.1,
        )  # fmt: skip

    report = QuantizationReport(modules=(row(100, 400.0), row(300, 2400.0)))
    assert report.average_bits == 7.0
