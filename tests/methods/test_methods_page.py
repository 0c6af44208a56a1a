"""docs/methods.md tells every method and every parameter."""

import dataclasses
import re
from pathlib import Path

import pytest

from dllm_sweep import plugins

PAGE = (Path(__file__).parents[2] / "docs" / "methods.md").read_text(encoding="utf-8")


@pytest.mark.parametrize("name", plugins.names("method"))
def test_a_method_has_a_section_and_its_parameters_are_told(name):
    assert re.search(rf"^### {name}$", PAGE, flags=re.MULTILINE)
    fields = {field.name for field in dataclasses.fields(plugins.load("method", name))}
    assert {field for field in fields if f"`{field}`" not in PAGE} == set()
