"""Calibration sets as a sweep file writes them."""

import json
from pathlib import Path

import pytest
import yaml

from dllm_sweep import catalog
from dllm_sweep.errors import SweepFileError
from dllm_sweep.spec import CalibrationSpec
from dllm_sweep.sweep_file import parse


def entries(folder, *sets):
    data = {
        "name": "sweep",
        "models": ["llada-tiny"],
        "methods": ["gptq"],
        "schemes": ["w4a16"],
        "tasks": ["tiny_math"],
        "calibration": list(sets),
    }
    file = parse(json.dumps(data), folder / "sweep.yaml")
    return [entry.text(file.folder) for entry in file.calibration]


def problems(folder, *sets):
    with pytest.raises(SweepFileError) as error:
        entries(folder, *sets)
    return "\n".join(error.value.problems)


def test_every_option_reaches_the_spec(tmp_path):
    (spec,) = entries(
        tmp_path,
        {
            "masking": "trajectory",
            "samples": 8,
            "prompt_share": 0.5,
            "steps": 32,
            "block_length": 16,
            "mask_ratios": [1, 0.5, 0.5],
            "masked_weight": 1,
            "visible_weight": 0.7,
        },
    )
    assert str(spec) == (
        "tiny-text/8x128/trajectory/prompt_share=0.5/steps=32/block_length=16"
        "/mask_ratios=0.5,1.0/visible_weight=0.7"
    )
    assert spec.digest is not None


def test_defaults_are_those_of_the_spec(tmp_path):
    (spec,) = entries(tmp_path, {"masking": "prefix"})
    assert spec == CalibrationSpec(masking="prefix", digest=spec.digest)


@pytest.mark.parametrize(
    ("entry", "message"),
    [
        ({"masking": "prefix", "steps": 8}, "calibration[0].steps: masking 'prefix' does not read"),
        ({"steps": 8}, "calibration[0].steps: masking 'none' does not read it"),
        ({"masking": "chat"}, "calibration[0].prompt_field: calibration text 'tiny-text' has no"),
        (
            {"masking": "trajectory", "prompts": "chat"},
            "calibration[0].prompt_field: calibration text 'tiny-text' has no column 'question'",
        ),
        ({"source": "tiny-chat"}, "calibration[0].text_field: calibration text 'tiny-chat' has no"),
        ({"masking": "prefix", "prompt_share": 1}, "calibration[0].prompt_share must be at least"),
        ({"masking": "trajectory", "mask_ratios": [2]}, "calibration[0].mask_ratios must be above"),
        (
            {"masking": "uniform", "masked_weight": "x"},
            "calibration[0].masked_weight must be a num",
        ),
        ({"masking": "prefixx"}, "calibration[0].masking: unknown masking 'prefixx': did you mean"),
    ],
)
def test_wrong_options_are_refused_at_their_key(tmp_path, entry, message):
    assert message in problems(tmp_path, entry)


def test_several_wrong_options_are_told_at_once(tmp_path):
    told = problems(tmp_path, {"masking": "uniform", "steps": 8, "answer_field": "a"})
    assert "calibration[0].steps" in told
    assert "calibration[0].answer_field" in told


def test_the_packages_conversations_are_found_beside_a_sweep_file(tmp_path):
    (spec,) = entries(tmp_path, {"source": "tiny-chat", "masking": "chat"})
    assert spec.source == "tiny-chat"


def test_the_examples_of_the_documentation_can_be_planned(tmp_path):
    page = (Path(__file__).parents[1] / "docs" / "calibration.md").read_text(encoding="utf-8")
    written = yaml.safe_load(page.split("```yaml\n")[1].split("```")[0])["calibration"]
    (tmp_path / "my_texts.jsonl").write_text(json.dumps({"content": "one text"}))
    llada = catalog.facts_of(catalog.resolve_model("llada-tiny"))
    for spec in entries(tmp_path, *written):
        assert catalog.calibration_refusal(spec, llada) is None
