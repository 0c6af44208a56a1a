import pytest

from dllm_sweep import plugins
from dllm_sweep.models.base import ModelFamily


@pytest.mark.parametrize("name", plugins.names("model family"))
def test_every_family_has_what_a_family_needs(name):
    family = plugins.load("model family", name)
    assert family.name == name
    assert family.model_types
    assert family.logit_shift in (0, 1)
    linears = [linear for group in family.linear_groups for linear in group.linears]
    assert len(set(linears)) == len(linears) > 0
    for method in ("build_config", "tensor_name", "special"):
        assert callable(getattr(family, method))
    assert set(ModelFamily.__annotations__) <= set(dir(family))
