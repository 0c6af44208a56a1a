import shutil
import subprocess
import sys

import pytest

from dllm_sweep import load_model
from dllm_sweep.errors import CheckpointError, UnknownName
from dllm_sweep.models import locate
from dllm_sweep.models.locate import embedded_names, model_digest, resolve_model
from dllm_sweep.spec import ModelRef


@pytest.fixture
def embedded(model, tmp_path, monkeypatch):
    """An embedded folder that holds one checkpoint."""
    folder = tmp_path / "embedded"
    shutil.copytree(model.name, folder / "llada-tiny")
    monkeypatch.setattr(locate, "EMBEDDED", folder)
    return folder


def test_variants_are_listed_beside_their_base(embedded):
    assert embedded_names() == ("llada-tiny", "llada-tiny-outliers")


def test_a_variant_has_a_digest_of_its_own(embedded):
    names = ("llada-tiny", "llada-tiny-outliers")
    assert len({model_digest(ModelRef(name=name)) for name in names}) == 2


def test_a_copy_elsewhere_has_the_same_digest_and_a_changed_one_another(embedded, tmp_path):
    copy = tmp_path / "copy"
    shutil.copytree(embedded / "llada-tiny", copy)
    first = model_digest(ModelRef(name=str(copy)))
    assert first == model_digest(ModelRef(name="llada-tiny"))
    weights = bytearray((copy / "model.safetensors").read_bytes())
    weights[-1] ^= 1
    (copy / "model.safetensors").write_bytes(bytes(weights))
    assert model_digest(ModelRef(name=str(copy))) != first


def test_files_that_are_not_read_do_not_change_the_digest(embedded):
    ref = ModelRef(name="llada-tiny")
    before = model_digest(ref)
    (embedded / "llada-tiny" / "README.md").write_text("notes")
    assert model_digest(ref) == before


def test_an_embedded_model_loads_by_name(embedded):
    assert load_model("llada-tiny", device="cpu").name == "llada-tiny"


def test_the_nearest_name_is_suggested(embedded):
    with pytest.raises(UnknownName, match="did you mean 'llada-tiny'"):
        resolve_model("lada-tiny")


def test_a_folder_without_a_checkpoint_is_refused(tmp_path):
    with pytest.raises(CheckpointError, match=r"no config\.json"):
        resolve_model(str(tmp_path))


def test_a_commit_on_the_hub_is_its_own_digest():
    commit = "0123456789abcdef0123456789abcdef01234567"
    ref = resolve_model(f"somebody/something@{commit}")
    assert (ref.name, ref.revision, ref.digest) == ("somebody/something", commit, commit)


def test_planning_needs_no_torch():
    code = (
        "import sys; from dllm_sweep.models.locate import embedded_names; embedded_names();"
        "sys.exit('torch' in sys.modules or 'transformers' in sys.modules)"
    )
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0
