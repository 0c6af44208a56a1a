import subprocess
import sys
from pathlib import Path

import pytest

from dllm_sweep import plugins
from dllm_sweep.errors import InputError, UnknownName

ROOT = Path(__file__).parent.parent


@pytest.mark.parametrize("name", plugins.names("method"))
def test_every_listed_method_loads(name):
    method = plugins.load("method", name)
    assert isinstance(method.version, int)


def test_listing_imports_no_method():
    code = (
        "import sys\nfrom dllm_sweep import plugins\nplugins.names('method')\n"
        "print([m for m in ('torch', 'dllm_sweep.methods.rtn') if m in sys.modules])"
    )
    done = subprocess.run(
        [sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=True
    )
    assert done.stdout == "[]\n"


def test_an_unknown_name_gets_the_nearest_one():
    with pytest.raises(UnknownName, match="did you mean 'gptq'"):
        plugins.load("method", "gtpq")


def test_a_file_of_the_users_own_loads_once(tmp_path):
    path = tmp_path / "mine.py"
    path.write_text("class Mine:\n    pass\n")
    assert plugins.load("method", f"{path}:Mine") is plugins.load("method", f"{path}:Mine")


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (None, "there is no file"),
        ("class Other: pass\n", "defines no Mine"),
        ("1 / 0\n", "cannot be imported: ZeroDivisionError"),
        ("def broken(:\n", "cannot be imported: SyntaxError"),
    ],
)
def test_a_file_that_cannot_be_used_is_said_to_be_so(tmp_path, content, message):
    path = tmp_path / "mine.py"
    if content is not None:
        path.write_text(content)
    with pytest.raises(InputError, match=message):
        plugins.load("method", f"{path}:Mine")
