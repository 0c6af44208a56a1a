"""What a method is done with is let go of: a model's old weights are as large as the model."""

import gc
import weakref

from torch import nn

from dllm_sweep.methods import build
from dllm_sweep.methods.base import Workspace
from dllm_sweep.methods.quarot import rotate
from dllm_sweep.spec import QuantScheme


def test_no_weight_of_a_rotated_model_keeps_what_it_was_computed_from(make_small_llada):
    model = make_small_llada()
    rotate(model, 0, frozenset(model.linears()))
    for name, tensor in model.host.state_dict(keep_vars=True).items():
        assert tensor._base is None, name


def test_rounding_to_nearest_holds_no_old_weights_while_it_works(make_small_llada):
    model = make_small_llada()
    first = [weakref.ref(linear) for linear in model.blocks[0].modules() if is_linear(linear)]
    left = []

    def look(done, total):
        gc.collect()
        left.append(sum(linear() is not None for linear in first))

    scheme = QuantScheme.parse("w4a16-g16")
    build("rtn", {}).quantize(model, scheme, (), workspace=Workspace(progress=look))
    assert left == [0, 0]


def is_linear(module):
    return isinstance(module, nn.Linear)
