"""`quantize` as a user runs it."""

import json
import re
from pathlib import Path

import pytest
import torch
from click.testing import CliRunner
from safetensors import SafetensorError

from dllm_sweep import load_model
from dllm_sweep.cli import main
from dllm_sweep.manifest import read_manifest
from dllm_sweep.methods.gptq import Gptq
from dllm_sweep.plan import make_plan
from dllm_sweep.sweep_file import parse

LLADA = Path(__file__).parents[1] / "data" / "llada-random"
SMALL = ("--set", "calibration.samples=4", "--set", "calibration.length=32")
IDS = torch.arange(2, 34)[None]


@pytest.fixture(autouse=True)
def workplace(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    return tmp_path


def run(*args, model=LLADA, method="gptq", scheme="w4a16-g16", out="out"):
    named = ("--model", str(model), "--method", method, "--scheme", scheme, "--out", out)
    return CliRunner().invoke(main, ["quantize", *named, "--device", "cpu", *args])


def test_a_folder_comes_out_that_loads_and_says_how_it_was_made(workplace):
    done = run(*SMALL, "--set", "damping=0.05", "--seed", "3", "--format", "json")
    assert done.exit_code == 0, done.output
    (row,) = json.loads(done.stdout)
    assert (row["folder"], row["method"], row["scheme"]) == ("out", "gptq", "w4a16-g16-asym")
    assert (row["linears"], row["average_bits"], row["stored_bits"]) == (21, 5.25, 6.25)
    assert row["bytes"] == sum(file.stat().st_size for file in (workplace / "out").iterdir())
    recipe = read_manifest(workplace / "out").recipe
    assert dict(recipe.parameters)["damping"] == 0.05
    assert (recipe.calibration.samples, recipe.calibration.length, recipe.seed) == (4, 32, 3)
    assert recipe.calibration.digest is not None
    model = load_model("out", device="cpu")
    assert model.quantization_report.average_bits == 5.25
    assert torch.isfinite(model.logits(IDS)).all()


def test_progress_is_plain_lines_beside_the_result():
    done = run(*SMALL)
    assert done.exit_code == 0, done.output
    lines = done.stderr.splitlines()
    assert lines[0] == f"loading {LLADA}"
    assert lines[2:6] == [*(f"quantized block {i} of 3" for i in (1, 2, 3)), "writing out"]
    assert lines[6].startswith("warning: 128 calibration tokens for layers with")
    assert "quantized" not in done.stdout


def test_the_same_command_gives_the_same_file(workplace):
    digests = set()
    for out in ("one", "two"):
        assert run(*SMALL, out=out).exit_code == 0
        digests.add(read_manifest(workplace / out).file.sha256)
    assert len(digests) == 1


def test_the_other_layout_is_what_transformers_reads(workplace):
    done = run("--layout", "compressed-tensors", method="rtn")
    assert done.exit_code == 0, done.output
    config = json.loads((workplace / "out" / "config.json").read_text())
    assert config["quantization_config"]["format"] == "pack-quantized"


@pytest.mark.parametrize(
    ("args", "named", "message"),
    [
        (("--set", "dampin=1"), {}, "--set dampin=1: .*did you mean 'damping'"),
        (("--set", "damping=much"), {}, "--set damping=much: .*expected a number"),
        (("--set", "calibration.samples=-1"), {}, "--set calibration.samples=-1: .*at least 1"),
        (("--set", "calibration=nothing.txt"), {}, "there is no such file"),
        ((), {"model": "llada-tini"}, "--model llada-tini: .*did you mean 'llada-tiny'"),
        ((), {"method": "gtpq"}, "--method gtpq: .*did you mean 'gptq'"),
        ((), {"method": "fp", "scheme": "w16a16"}, "fp quantizes nothing"),
        ((), {"scheme": "w4"}, "--scheme w4: .*is not a scheme"),
        ((), {"scheme": "w4a16-g48"}, "groups of 48 do not divide 64 and 160 inputs"),
        ((), {"method": "awq", "scheme": "w4a8"}, "awq quantizes weights only"),
        (("--set", "calibration.length=4096"), {}, "texts of 4096 tokens, and it reads 512"),
        (("--offload",), {}, "offloading is for a GPU"),
        (("--device", "gpu"), {}, "device 'gpu' is not known"),
        (("--device", "cuda:77"), {}, "device 'cuda:77' is not there"),
        (("--layout", "compressed-tensors"), {"method": "quarot"}, "quarot transforms inputs"),
        (("--layout", "compressed-tensors"), {"scheme": "w4a8"}, "rounds activations"),
        (
            ("--layout", "compressed-tensors", "--set", "static_groups=false"),
            {},
            "set static_groups to true",
        ),
    ],
)
def test_what_cannot_be_is_told_in_one_line_and_nothing_is_written(args, named, message, workplace):
    done = run(*args, **named)
    assert done.exit_code == 2
    (line,) = [one for one in done.stderr.splitlines() if one.startswith("dllm-sweep: ")]
    assert re.search(message, line)
    assert list(workplace.iterdir()) == []


def test_a_folder_in_the_way_is_named_before_anything_is_done(workplace):
    (workplace / "out").mkdir()
    (workplace / "out" / "thesis.tex").write_text("all of it")
    done = run(model="llada-tini")
    assert done.exit_code == 2
    assert (
        done.stderr == "dllm-sweep: out is there already: name a new folder, or remove this one\n"
    )
    assert (workplace / "out" / "thesis.tex").read_text() == "all of it"


@pytest.mark.parametrize("out", ["notes/out", "n" * 300, "~nobody-of-this-name/out"])
def test_a_place_that_cannot_be_written_is_named_before_anything_is_done(workplace, out):
    (workplace / "notes").write_text("a file")
    done = run(model="llada-tini", out=out)
    assert done.exit_code == 2
    assert done.stderr.startswith(f"dllm-sweep: {out} cannot be made: ")


def test_a_full_disk_is_told_and_leaves_nothing(workplace, monkeypatch):
    def full(*_, **__):
        raise SafetensorError("I/O error: No space left on device (os error 28)")

    monkeypatch.setattr("dllm_sweep.saving.weights.save_file", full)
    done = run(method="rtn")
    assert done.exit_code == 3
    assert done.stderr.splitlines()[-1].endswith("No space left on device (os error 28)")
    assert list(workplace.iterdir()) == []


def test_an_interrupt_leaves_nothing_behind(workplace, monkeypatch):
    def interrupted(*_):
        raise KeyboardInterrupt

    monkeypatch.setattr("dllm_sweep.saving.folder.write_manifest", interrupted)
    done = run(method="rtn")
    assert done.exit_code == 130
    assert done.stderr.splitlines()[-1] == "dllm-sweep: interrupted"
    assert list(workplace.iterdir()) == []


def test_a_method_in_a_file_of_one_s_own_is_recorded_with_its_digest(workplace):
    example = Path(__file__).parents[2] / "examples" / "my_method.py"
    (workplace / "mine.py").write_text(example.read_text())
    name = next(
        line.split()[1].split("(")[0].rstrip(":")
        for line in example.read_text().splitlines()
        if line.startswith("class ")
    )
    done = run(*SMALL, method=f"mine.py:{name}", scheme="w4a16")
    assert done.exit_code == 0, done.output
    recipe = read_manifest(workplace / "out").recipe
    assert recipe.method == f"{workplace}/mine.py:{name}"
    assert len(recipe.method_sha256) == 64


def test_a_sweep_evaluates_the_folder_and_quantizes_it_no_more(workplace):
    assert run(method="rtn").exit_code == 0
    sweep = """
models: [out, llada-tiny]
methods: [fp, rtn]
schemes: [w4a16-g16]
tasks: [tiny_math]
outliers: false
"""
    plan = plan_of(sweep, workplace)
    rows = {trial.label: trial.skip_reason for trial in plan.trials}
    assert [label for label, reason in rows.items() if reason is None] == [
        "out fp w4a16-g16-asym",
        "llada-tiny fp",
        "llada-tiny rtn w4a16-g16",
    ]
    assert plan.added == ()
    reason = rows["out rtn w4a16-g16"]
    assert reason.startswith(
        "out is quantized already (rtn w4a16-g16-asym): the method fp evaluates it"
    )


def test_a_folder_is_evaluated_in_the_type_and_by_the_protocol_of_what_it_was_made_from(workplace):
    assert run(model="llada-tiny", method="rtn", scheme="w3a16-g32").exit_code == 0
    sweep = "models: [out, llada-tiny]\nmethods: [fp]\ntasks: [tiny_math]\noutliers: false\n"
    saved, full = (trial.spec for trial in plan_of(sweep, workplace).trials)
    assert (str(saved.scheme), str(full.scheme)) == ("w3a16-g32-asym", "w16a16")
    assert saved.protocol == full.protocol
    assert run("--dtype", "bfloat16", method="rtn", out="half").exit_code == 0
    (half,) = plan_of(sweep.replace("[out, llada-tiny]", "[half]"), workplace).trials
    assert half.spec.protocol.dtype == "bfloat16"


def test_a_folder_of_another_content_is_another_trial(workplace):
    keys = set()
    for scheme in ("w4a16-g16", "w3a16-g16"):
        assert run(method="rtn", scheme=scheme, out=scheme).exit_code == 0
        text = f"models: [{scheme}]\nmethods: [fp]\ntasks: [tiny_math]\noutliers: false\n"
        keys |= {trial.spec.key for trial in plan_of(text, workplace).trials}
    assert len(keys) == 2


def plan_of(text, folder):
    return make_plan(parse(text, folder / "sweep.yaml"), gpus=0)


def test_the_defaults_are_the_method_s():
    assert run(*SMALL).exit_code == 0
    recipe = read_manifest(Path("out")).recipe
    assert dict(recipe.parameters) == {key: getattr(Gptq(), key) for key, _ in recipe.parameters}
