"""Which options of calibration go together."""

import subprocess
import sys
from dataclasses import replace

import pytest

from dllm_sweep import load_model
from dllm_sweep.calibration import load
from dllm_sweep.calibration.options import OPTIONS, check_calibration, clean
from dllm_sweep.errors import CalibrationError, UnknownName
from dllm_sweep.spec import CalibrationSpec, canonical, from_json, to_json

WRONG = [
    ({"masking": "uniform", "steps": 8}, "steps: masking 'uniform' does not read it; .*trajectory"),
    ({"masking": "uniform", "prompt_share": 0.5}, "prompt_share: .*it is for prefix, trajectory"),
    ({"masking": "prefix", "mask_ratios": (0.5,)}, "mask_ratios: masking 'prefix' does not"),
    ({"masking": "none", "masked_weight": 2.0}, "masked_weight: masking 'none' does not read it"),
    ({"masking": "chat", "text_field": "body"}, "text_field: masking 'chat' does not read it"),
    ({"masking": "none", "answer_field": "a"}, "answer_field: .*; it is for chat"),
    ({"masking": "prefix", "prompt_share": 1.0}, "prompt_share must be at least 0 and below 1"),
    ({"masking": "prefix", "visible_weight": -1.0}, "visible_weight must be finite and at least 0"),
    (
        {"masking": "prefix", "visible_weight": float("nan")},
        "visible_weight must be finite and at least 0, not nan",
    ),
    (
        {"masking": "prefix", "masked_weight": 0.0, "visible_weight": 0.0},
        "visible_weight is 0 like masked_weight",
    ),
    ({"masking": "trajectory", "mask_ratios": (0.5, 0.0)}, "mask_ratios must be above 0"),
    ({"masking": "trajectory", "prompts": "talk"}, "prompts must be text or chat, not 'talk'"),
    (
        {"masking": "trajectory", "prompt_field": "ask"},
        "prompt_field: with prompts 'text', text_field is read",
    ),
    (
        {"masking": "trajectory", "prompts": "chat", "text_field": "body"},
        "text_field: with prompts 'chat', prompt_field is read",
    ),
    ({"masking": "trajectory", "steps": 0}, "steps must be at least 1, not 0"),
]


@pytest.mark.parametrize(("options", "message"), WRONG)
def test_what_does_not_go_together_is_refused(options, message):
    with pytest.raises(CalibrationError, match=f"calibration {message}"):
        check_calibration(CalibrationSpec(**options))


def test_loading_refuses_it_too():
    model = load_model("llada-tiny", device="cpu")
    with pytest.raises(CalibrationError, match="steps: masking 'prefix'"):
        load(CalibrationSpec(masking="prefix", steps=3), model, batch_size=2)


def test_an_unknown_mode_names_the_nearest():
    with pytest.raises(UnknownName, match="did you mean 'trajectory'"):
        check_calibration(CalibrationSpec(masking="trajectry"))


def test_a_label_says_which_commit_of_a_data_set_is_meant():
    spec = CalibrationSpec(source="org/set", digest="org/set@0123456789abcdef")
    assert str(spec) == "org/set@01234567/128x128/none"


def test_a_label_says_everything_that_differs_from_the_defaults():
    assert str(CalibrationSpec(masking="prefix")) == "tiny-text/128x128/prefix"
    spec = CalibrationSpec(
        samples=8, masking="trajectory", steps=64, mask_ratios=(0.25, 0.5), seed=3
    )
    assert str(spec) == "tiny-text/8x128/trajectory/steps=64/mask_ratios=0.25,0.5/seed3"
    labels = {str(replace(spec, **{name: value})) for name, value in CHANGED.items()}
    assert len(labels | {str(spec)}) == len(CHANGED) + 1


CHANGED = {
    "source": "other",
    "samples": 9,
    "length": 7,
    "masking": "prefix",
    "seed": 4,
    "split": "test",
    "subset": "small",
    "text_field": "body",
    "prompt_share": 0.5,
    "steps": 5,
    "block_length": 4,
    "mask_ratios": (1.0,),
    "masked_weight": 2.0,
    "visible_weight": 0.7,
    "prompts": "chat",
    "prompt_field": "ask",
    "answer_field": "say",
}


def test_options_at_their_defaults_leave_older_keys_as_they_are():
    said = canonical(CalibrationSpec())
    assert all(name not in said for name in OPTIONS if name != "text_field")
    spec = CalibrationSpec(masking="trajectory", mask_ratios=(0.5, 1.0), steps=4)
    assert from_json(CalibrationSpec, to_json(spec)) == spec
    assert canonical(spec) != canonical(replace(spec, steps=8))


def test_clean_text_is_the_same_text_with_nothing_hidden():
    spec = CalibrationSpec(masking="trajectory", steps=4, text_field="body", seed=2)
    assert clean(spec) == CalibrationSpec(text_field="body", seed=2)
    check_calibration(clean(spec))


def test_modes_are_read_without_torch():
    code = (
        "import sys; from dllm_sweep import plugins; from dllm_sweep.calibration import options;"
        "[plugins.load('masking', name) for name in plugins.names('masking')];"
        "print([m for m in ('torch', 'datasets', 'pyarrow') if m in sys.modules])"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"


def test_a_set_in_which_nothing_counts_is_refused():
    model = load_model("llada-tiny", device="cpu")
    spec = CalibrationSpec(samples=1, length=1, masking="uniform", visible_weight=0.0)
    refused = 0
    for seed in range(12):
        (plain,) = load(replace(spec, visible_weight=1.0, seed=seed), model, batch_size=1)
        if not plain.masked.any():
            refused += 1
            with pytest.raises(CalibrationError, match="no token counts, since none is masked"):
                load(replace(spec, seed=seed), model, batch_size=1)
    assert 1 <= refused < 12
