"""How a method is set up: what the sweep file says goes before what its preset says."""

import json
from pathlib import Path

import pytest

from dllm_sweep.errors import SweepFileError
from dllm_sweep.plan import make_plan
from dllm_sweep.sweep_file import parse

BASE = {"models": ["llada-tiny"], "tasks": ["gsm8k"], "outliers": False, "preset": "qdlm-code"}
PAGE = Path(__file__).parents[1] / "docs" / "presets.md"
LEFT_OUT = ("*.q_proj", "*.k_proj", "*.v_proj")


def plan_of(folder, *settings, **keys):
    return make_plan(parse(json.dumps(BASE | keys), folder / "sweep.yaml", settings), gpus=1.0)


def specs(folder, *settings, **keys):
    return [t.spec for t in plan_of(folder, *settings, **keys).trials if not t.spec.is_baseline]


def only(folder, *settings, **keys):
    (spec,) = specs(folder, *settings, **keys)
    return dict(spec.parameters), str(spec.scheme)


def test_a_preset_sets_a_method_up_for_each_family(tmp_path):
    models = ["llada-tiny", "dream-tiny"]
    llada, dream = specs(tmp_path, models=models, methods=["gptq"], schemes=["w4a16-g128"])
    assert dict(llada.parameters)["skip_modules"] == LEFT_OUT
    assert dict(dream.parameters)["skip_modules"] == ()
    assert str(llada.scheme) == str(dream.scheme) == "w4a16-g128-sym"


def test_without_a_preset_a_method_is_as_it_is_by_default(tmp_path):
    for method in ("gptq", "duquant", "quarot"):
        keys = {"methods": [method], "schemes": ["w4a4"]}
        bare, scheme = only(tmp_path, **keys, preset=None, calibration="tiny-text")
        assert "kv" not in scheme
        assert bare.get("skip_modules") == ()
        assert bare.get("activation_clip") in (None, 1.0)


def test_a_methods_own_parameter_goes_before_the_presets(tmp_path):
    method = {"name": "gptq", "skip_modules": [], "static_groups": True}
    parameters, _ = only(tmp_path, methods=[method], schemes=["w4a16-g128"])
    assert parameters["skip_modules"] == ()
    assert parameters["static_groups"] is True
    assert parameters["output_first"] is True, "the preset's"


def test_null_is_said_too(tmp_path):
    method = {"name": "duquant", "activation_clip": None}
    parameters, _ = only(tmp_path, methods=[method], schemes=["w8a8"])
    assert (parameters["activation_clip"], parameters["weight_clip"]) == (None, 0.8)


@pytest.mark.parametrize(
    ("method", "written", "planned"),
    [
        ("gptq", "w4a16-g128-asym", "w4a16-g128-asym"),
        ("quarot", "w4a4", "w4a4-kv4-sym"),
        ("quarot", "w4a4-kv8", "w4a4-kv8-sym"),
        ("quarot", "w4a4-kv16", "w4a4-sym"),
        ("quarot", "w4a4-asym", "w4a4-kv4-asym"),
        ("duquant", "w8a8", "w8a8-asym-qkv"),
        ("duquant", "W8A8-KV16", "w8a8-asym"),
        ("duquant", "w4a16", "w4a16-asym"),
    ],
)
def test_what_a_scheme_says_itself_goes_before_the_preset(tmp_path, method, written, planned):
    assert only(tmp_path, methods=[method], schemes=[written])[1] == planned


def test_what_is_really_quantized_is_in_the_label(tmp_path):
    plan = plan_of(tmp_path, methods=["quarot", "duquant"], schemes=["w4a4"])
    _, quarot, duquant = (trial.label for trial in plan.trials)
    assert " w4a4-kv4 " in quarot
    assert "operand_grids=token" in quarot
    assert " w4a4-qkv " in duquant


def test_rules_call_a_scheme_as_the_file_does(tmp_path):
    keys = {"methods": ["quarot"], "schemes": ["w4a4", "w8a8", "w8a8-kv16"]}
    kept = specs(tmp_path, **keys, exclude=[{"scheme": "w8a8*"}])
    assert [str(spec.scheme) for spec in kept] == ["w4a4-kv4-sym"]
    kept = specs(tmp_path, **keys, include=[{"scheme": "w8a8-kv16"}])
    assert [str(spec.scheme) for spec in kept] == ["w8a8-sym"]


def test_keys_and_values_that_qkv_rounds_anyway_make_no_other_trial(tmp_path):
    schemes = ["w4a4-qkv", "w4a4-kv4-qkv", "w4a4"]
    keys = {"methods": ["duquant"], "calibration": "tiny-text"}
    assert len(specs(tmp_path, **keys, schemes=schemes)) == 1


def test_the_plan_says_what_the_preset_set_and_the_file_did_not(tmp_path):
    methods = ["fp", "rtn", {"name": "gptq", "static_groups": False}, "quarot", "awq"]
    keys = {"methods": methods, "schemes": ["w4a8", "w4a16"]}
    notes = plan_of(tmp_path, **keys, models=["llada-tiny", "dream-tiny"]).notes
    assert [note for note in notes if " on " in note and "calibrated" not in note] == [
        "preset qdlm-code: gptq(static_groups=false) on llada: activation_order=false,"
        " output_first=true, skip_modules=[*.q_proj *.k_proj *.v_proj], symmetric weight grids",
        "preset qdlm-code: gptq(static_groups=false) on dream: activation_order=false,"
        " symmetric weight grids",
        "preset qdlm-code: quarot on llada and dream: activation_clip=1.0, operand_clip=1.0,"
        " operand_grids=token, operand_symmetric=true, keys and values rounded with the"
        " activations (-kv)",
        "preset qdlm-code: awq on llada: search_on=block",
    ]


def test_the_plan_does_not_say_what_every_scheme_overrides(tmp_path):
    methods = [{"name": "smoothquant", "groups": "norm"}, "quarot"]
    notes = plan_of(tmp_path, methods=methods, schemes=["w4a4-kv16-sym", "w8a8-kv8-sym"]).notes
    smoothquant, quarot = (note for note in notes if " on " in note and "calibrated" not in note)
    assert smoothquant == (
        "preset qdlm-code: smoothquant(groups=norm) on llada: activation_symmetric=false,"
        " scale_from=first"
    )
    assert quarot.endswith("operand_symmetric=true")


def test_a_preset_may_be_named_on_the_command_line(tmp_path):
    keys = {"methods": ["gptq"], "schemes": ["w4a16-g128"], "preset": "paper"}
    assert only(tmp_path, **keys)[1] == "w4a16-g128-asym"
    assert only(tmp_path, "preset=qdlm-code", **keys)[1] == "w4a16-g128-sym"


def test_what_does_not_go_with_the_preset_is_refused_with_its_place(tmp_path):
    keys = {"methods": ["awq", {"name": "gptq", "true_sequential": False}], "schemes": ["w4a16"]}
    with pytest.raises(SweepFileError) as caught:
        plan_of(tmp_path, **keys)
    assert caught.value.problems == (
        "line 1: methods[1]: with what preset qdlm-code says of gptq on llada: parameter"
        " output_first: expected false without true_sequential, not True",
    )
    assert len(specs(tmp_path, **keys, models=["dream-tiny"])) == 2


def texts(folder, **keys):
    found = specs(folder, methods=["awq", "duquant"], schemes=["w4a16-g128", "w4a4"], **keys)
    return {(one.method, str(one.calibration)) for one in found if one.calibration}


def test_a_calibration_set_that_names_no_text_changes_the_presets(tmp_path):
    models = ["Dream-org/Dream-v0-Base-7B@6572adb5535263e4d1a337b56942ba48b6dee2a9"]
    found = texts(tmp_path, models=models, calibration=[{"masking": "uniform", "samples": 8}, {}])
    pile = "mit-han-lab/pile-val-backup@2f5e46ae/{}/split=validation/seed42"
    wikitext = "Salesforce/wikitext@b08601e0/{}/subset=wikitext-2-raw-v1/seed2"
    assert found == {
        ("awq", pile.format("8x512/uniform")),
        ("awq", pile.format("128x512/none")),
        ("duquant", wikitext.format("8x2048/uniform")),
        ("duquant", wikitext.format("128x2048/none")),
    }


def test_one_that_names_its_text_goes_before_the_preset(tmp_path):
    found = texts(tmp_path, calibration=[{"source": "tiny-text", "samples": 4}])
    assert {text for _, text in found} == {"tiny-text/4x128/none"}


def test_a_size_without_a_hadamard_matrix_is_refused_when_planning(tmp_path):
    (tmp_path / "odd").mkdir()
    config = {"model_type": "llada", "d_model": 52 * 9, "n_heads": 4, "mlp_hidden_size": 64}
    (tmp_path / "odd" / "config.json").write_text(json.dumps(config))
    keys = {"models": ["odd"], "schemes": ["w4a4"], "calibration": "tiny-text"}
    with pytest.raises(
        SweepFileError, match=r"methods\[0\]: no trial of it can run: .*no Hadamard .* 117"
    ):
        plan_of(tmp_path, methods=["quarot"], **keys)
    assert len(specs(tmp_path, methods=["smoothquant"], **keys)) == 1


@pytest.mark.parametrize(
    ("parameters", "reason"),
    [
        ({"modules": ["*.w1"]}, r"the module pattern '\*\.w1' matches no linear"),
        ({"skip_modules": ["*.q_prj"]}, r"the module pattern '\*\.q_prj' matches no linear"),
        ({"modules": ["*.6.*"]}, r"the module pattern '\*\.6\.\*' matches no linear"),
        ({"skip_modules": ["*"]}, "together leave no linear"),
        ({"modules": []}, "together leave no linear"),
    ],
)
def test_patterns_that_match_none_of_a_models_layers_are_refused_when_planning(
    parameters, reason, tmp_path
):
    keys = {"preset": None, "models": ["llada-tiny"], "schemes": ["w4a16"]}
    entry = {"name": "gptq", **parameters}
    with pytest.raises(SweepFileError, match=rf"methods\[0\]: no trial of it can run: .*{reason}"):
        plan_of(tmp_path, methods=[entry], calibration="tiny-text", **keys)


def test_patterns_are_those_of_each_model(tmp_path):
    entry = {"name": "rtn", "modules": ["*.5.mlp.*"]}
    keys = {"preset": None, "models": ["llada-tiny"], "schemes": ["w4a16"]}
    assert len(specs(tmp_path, methods=[entry], **keys)) == 1


def test_groups_are_checked_where_only_the_preset_leaves_modules_out(tmp_path):
    with pytest.raises(SweepFileError, match="groups of 96 do not divide 256 inputs"):
        plan_of(tmp_path, methods=["gptq"], schemes=["w4a16-g96"])


def difference(first, second):
    """What two trials do not share: parameters by name, and the scheme."""
    pairs = zip(first.parameters, second.parameters, strict=True)
    changed = {one[0] for one, other in pairs if one != other}
    return changed | ({"scheme"} if first.scheme != second.scheme else set())


@pytest.mark.parametrize("number", [0, 1])
def test_each_step_of_the_pages_worked_example_flips_one_switch(tmp_path, number):
    blocks = PAGE.read_text(encoding="utf-8").split("```yaml\n")[1:]
    plan = make_plan(parse(blocks[number].partition("```")[0], tmp_path / "sweep.yaml"), gpus=1.0)
    gptq = [trial.spec for trial in plan.trials if trial.spec.method == "gptq"]
    assert {spec.protocol for spec in gptq} == {plan.trials[0].spec.protocol}
    assert [spec.method for spec in (t.spec for t in plan.trials)].count("awq") == 1
    for spec in gptq[1:]:
        assert len(difference(gptq[0], spec)) in (1, 2)
        assert any(len(difference(spec, other)) == 1 for other in gptq if other is not spec)
