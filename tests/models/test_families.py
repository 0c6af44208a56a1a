import subprocess
import sys
from pathlib import Path

import pytest

from dllm_sweep import load_model, plugins
from dllm_sweep.models.base import ModelFamily

DATA = Path(__file__).parents[1] / "data"
METHODS = (
    "build_config",
    "tensor_name",
    "checkpoint_name",
    "special",
    "max_length",
    "block_size",
    "chat_text",
)


@pytest.mark.parametrize("name", plugins.names("model family"))
def test_every_family_has_what_a_family_needs(name):
    family = plugins.load("model family", name)
    assert family.name == name
    assert family.model_types
    assert family.logit_shift in (0, 1)
    linears = [linear for group in family.linear_groups for linear in group.linears]
    assert len(set(linears)) == len(linears) > 0
    assert family.attention in ("full", "block_causal")
    assert family.sampler in ("blockwise", "timeline")
    assert family.estimator in ("llada", "dream")
    for method in METHODS:
        assert callable(getattr(family, method))
    assert set(ModelFamily.__annotations__) <= set(dir(family))


def test_what_families_say_is_read_without_torch():
    code = (
        "import sys; from dllm_sweep import plugins;"
        "[plugins.load('model family', name) for name in plugins.names('model family')];"
        "sys.exit('torch' in sys.modules or 'transformers' in sys.modules)"
    )
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0


@pytest.mark.parametrize("name", ["llada-random", "dream-random"])
def test_names_of_tensors_translate_there_and_back(name):
    model = load_model(str(DATA / name), device="cpu")
    for parameter in model.host.state_dict():
        public = model.family.checkpoint_name(parameter)
        assert model.family.tensor_name(public) == parameter
