import pytest
import torch
from torch import nn

from dllm_sweep.errors import QuantizationError
from dllm_sweep.quant.apply import install, select, unsupported
from dllm_sweep.quant.linear import ActivationQuantization
from dllm_sweep.spec import QuantScheme


def test_patterns_choose_by_full_name_in_depth_order(small_llada):
    chosen = select(small_llada.linears(), ("*.mlp.*", "*.q_proj"), ("*.1.*", "*.down_proj"))
    assert chosen == (
        "model.layers.0.self_attn.q_proj",
        "model.layers.0.mlp.gate_proj",
        "model.layers.0.mlp.up_proj",
    )


@pytest.mark.parametrize("argument", ["modules", "skip_modules"])
def test_a_pattern_that_matches_nothing_is_an_error_with_names_that_exist(small_llada, argument):
    patterns = {"modules": ("*",), "skip_modules": (), argument: ("*.ff_out",)}
    with pytest.raises(QuantizationError, match=r"'\*\.ff_out' matches no linear.*q_proj.*6 more"):
        select(small_llada.linears(), **patterns)


def test_leaving_nothing_is_an_error(small_llada):
    with pytest.raises(QuantizationError, match="leave no linear"):
        select(small_llada.linears(), ("*",), ("*",))


def test_a_layer_is_never_quantized_twice(small_llada):
    name = "model.layers.0.mlp.up_proj"
    put(small_llada.host, name, small_llada.linears()[name].weight.detach())
    with pytest.raises(QuantizationError, match=f"{name} is quantized already"):
        select(small_llada.linears(), ("*",), ())


def put(host, name, weight):
    return install(
        host,
        name,
        weight,
        scheme=QuantScheme.parse("w4a16"),
        symmetric=False,
        activation=ActivationQuantization(),
        bits=100,
    )


def test_installing_records_the_layer_and_leaves_the_old_weight_alone():
    host = nn.Sequential(nn.Linear(4, 3))
    old, before = host[0], host[0].weight.detach().clone()
    row = put(host, "0", before * 1.1)
    assert host[0] is not old
    assert torch.equal(old.weight, before)
    assert (row.module, row.weights, row.bits) == ("0", 12, 100.0)
    assert row.relative_error == pytest.approx(0.1, rel=1e-4)


def test_a_weight_that_is_not_finite_is_refused_by_name():
    host = nn.Sequential(nn.Linear(4, 3))
    with pytest.raises(QuantizationError, match="0: its quantized weight is not finite"):
        put(host, "0", torch.full((3, 4), torch.nan))


@pytest.mark.parametrize(
    ("scheme", "reason"),
    [
        ("w4a16-kv4", "foo does not quantize keys and values .kv4"),
        ("w4a4-qkv", "foo does not quantize queries.*-qkv"),
        ("w16a16", "quantizes nothing"),
        ("w16a8-g128", "group size needs quantized weights"),
    ],
)
def test_what_cannot_be_done_is_said(scheme, reason):
    with pytest.raises(AssertionError, match=reason):
        raise AssertionError(unsupported("foo", QuantScheme.parse(scheme)))
    assert unsupported("foo", QuantScheme.parse("w4a8-g64")) is None
