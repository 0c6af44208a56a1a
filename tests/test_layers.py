"""Lower layers never import higher ones, and the light ones never import the heavy packages."""

import ast
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
FOLDERS = {
    "dllm_sweep": "dllm_sweep",
    "workers": "dllm_sweep.workers",
    "kernels": "dllm_sweep.kernels",
    "db": "dllm_sweep.db",
}

LAYERS = {
    "cli": 9,
    "run": 8,
    "jobs": 8,
    "outfit": 7,
    "preflight": 7,
    "cluster": 7,
    "doctor": 8,
    "cluster_doctor": 8,
    "beside_published": 7,
    "published": 1,
    "task_groups": 0,
    "answers": 7,
    "rescoring": 7,
    "reports": 8,
    "upkeep": 8,
    "controller": 7,
    "interrupts": 7,
    "simulate": 8,
    "outlook": 8,
    "landing": 7,
    "dispatch": 7,
    "mirror": 7,
    "faults": 7,
    "racing": 2,
    "dead_ends": 2,
    "demands": 3,
    "workers": 6,
    "evaluation": 5,
    "outlier_study": 5,
    "methods": 5,
    "saving": 5,
    "decoding": 4,
    "calibration": 4,
    "tiny": 6,
    "quant": 3,
    "models": 3,
    "kernels": 2,
    "plan": 2,
    "standings": 2,
    "cluster_lints": 2,
    "sweep_file": 2,
    "sweep_entries": 2,
    "sweep_methods": 2,
    "sweep_protocol": 2,
    "sweep_tasks": 2,
    "sweep_texts": 2,
    "overrides": 2,
    "grid": 2,
    "sweep_rules": 2,
    "catalog": 2,
    "costs": 2,
    "workload": 2,
    "presets": 1,
    "sharing": 2,
    "sizes": 1,
    "sweep_problems": 1,
    "yaml_places": 1,
    "stored": 1,
    "policy": 1,
    "board": 1,
    "pieces": 1,
    "db": 1,
    "progress": 1,
    "process": 1,
    "plugins": 1,
    "shipping": 1,
    "records": 1,
    "manifest": 1,
    "spec": 0,
    "errors": 0,
    "tally": 0,
}
"""Each part of the package with its height; a part imports only parts that are not higher."""

SIDEWAYS = {
    # Planning asks the files of methods, models, texts and tasks what can be named.
    ("catalog", "methods"),
    ("catalog", "models"),
    ("catalog", "calibration"),
    ("catalog", "evaluation"),
    ("catalog", "decoding"),
    # A folder with a quantized model gives that model.
    ("models", "saving"),
    ("costs", "models"),
    ("costs", "evaluation"),
    ("workload", "evaluation"),
    ("shipping", "evaluation"),
}
"""Imports inside functions that go up on purpose."""


def python_files():
    for folder, package in FOLDERS.items():
        for file in sorted((ROOT / folder).rglob("*.py")):
            parts = file.relative_to(ROOT / folder).with_suffix("").parts
            yield file, ".".join((package, *parts)).removesuffix(".__init__")


def part_of(module):
    return module.split(".")[1] if module.count(".") else "dllm_sweep"


def imported_modules(file):
    for node in ast.walk(ast.parse(file.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom) and node.module:
            yield node.module
            if node.module == "dllm_sweep":
                names = (alias.name for alias in node.names)
                yield from (f"dllm_sweep.{name}" for name in names if not name.startswith("__"))


def test_no_layer_imports_a_higher_one():
    wrong = []
    for file, module in python_files():
        here = part_of(module)
        for name in imported_modules(file):
            if not name.startswith("dllm_sweep."):
                continue
            there = part_of(name)
            if (here, there) in SIDEWAYS or here in ("dllm_sweep", "__main__"):
                continue
            if LAYERS[there] > LAYERS[here]:
                wrong.append(f"{module} -> {name}")
    assert wrong == []


def test_every_part_of_the_package_has_a_layer():
    parts = {part_of(module) for _, module in python_files()} - {"dllm_sweep", "__main__"}
    assert parts <= set(LAYERS)


@pytest.mark.parametrize(
    "statement",
    [
        "import dllm_sweep",
        "import dllm_sweep.plan, dllm_sweep.policy, dllm_sweep.plugins, dllm_sweep.sweep_file",
        "from dllm_sweep.cli import main\ntry: main(['--help'])\nexcept SystemExit: pass",
    ],
)
def test_light_modules_import_nothing_heavy(statement):
    heavy = ["torch", "ray", "transformers", "triton", "lm_eval", "datasets", "sqlalchemy"]
    code = f"import sys\n{statement}\nprint([m for m in {heavy} if m in sys.modules])"
    done = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, check=True, cwd=ROOT
    )
    assert done.stdout.splitlines()[-1] == "[]"
