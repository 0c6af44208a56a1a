"""`--set`: what it may say, and how its mistakes are told."""

import json

import pytest

from dllm_sweep.errors import InputError, SweepFileError
from dllm_sweep.overrides import read_setting
from dllm_sweep.sweep_file import parse

GOOD = """\
models: [toy]            # a comment
methods: [rtn, {name: gptq, damping: 0.02}]
schemes: [w4a16-g128, w8a8]
tasks: [own.yaml]
outliers: false
calibration: {source: text.txt, samples: 4}
exclude:
  - {scheme: w8a8, method: gptq}
"""


@pytest.fixture
def folder(tmp_path):
    for name in ("toy", "other"):
        (tmp_path / name).mkdir()
        (tmp_path / name / "config.json").write_text(json.dumps({"model_type": "llada"}))
    (tmp_path / "own.yaml").write_text("task: own\n")
    (tmp_path / "text.txt").write_text("some words to calibrate with\n")
    return tmp_path


def with_settings(folder, *settings):
    return parse(GOOD, folder / "sweep.yaml", settings)


def problems(folder, *settings):
    with pytest.raises(SweepFileError) as caught:
        with_settings(folder, *settings)
    return list(caught.value.problems)


def test_values_are_yaml_and_keys_may_be_dotted(folder):
    file = with_settings(
        folder,
        "limit=20",
        "models=[other]",
        "decoding.steps=8",
        "calibration.length=64",
        "methods.1.damping=1e-1",
        "name=small = fast",
    )
    assert (file.limit, file.name) == (20, "small = fast")
    assert [model.name for model in file.models] == ["other"]
    assert (file.decoding.steps, file.calibration[0].samples) == (8, 4)
    assert file.calibration[0].length == 64
    assert file.methods[1].parameters == {"damping": 0.1}


def test_the_last_one_wins(folder):
    assert with_settings(folder, "limit=1", "limit=2").limit == 2
    assert with_settings(folder, "decoding.steps=1", "decoding={steps: 2}").decoding.steps == 2


def test_without_any_the_text_is_kept_as_written(folder):
    assert with_settings(folder).text == GOOD


def test_the_text_that_is_kept_says_what_was_run(folder):
    file = with_settings(folder, "limit=20", "models=[other]", "store=postgres://me:pw@host/db")
    again = parse(file.text, folder / "sweep.yaml")
    assert again.model_dump(exclude={"store"}) == file.model_dump(exclude={"store"})
    assert file.text.splitlines()[1] == "#   --set limit=20"
    assert "pw" not in file.text


@pytest.mark.parametrize(
    ("setting", "expected"),
    [
        ("limit", "--set limit: write KEY=VALUE, such as --set limit=20"),
        ("=3", "--set =3: write KEY=VALUE"),
        ("a..b=3", "--set a..b=3: write KEY=VALUE"),
        ("models=[toy", "--set models=[toy: not YAML: expected"),
        ("limit=abc", "--set limit=abc: limit must be a whole number, not 'abc'"),
        ("limits=3", "--set limits=3: limits: unknown key 'limits': did you mean 'limit'?"),
        ("models=[toy,none]", "--set models=[toy,none]: models[1].name: unknown model 'none'"),
        ("decoding.step=3", "--set decoding.step=3: decoding.step: unknown key 'step'"),
        ("outliers.top=3", "--set outliers.top=3: outliers of the file is no mapping"),
        ("models.1=toy", "--set models.1=toy: the list has 1 entries, from 0"),
        ("exclude.0.scheme=w3", "--set exclude.0.scheme=w3: exclude[0].scheme: 'w3' matches"),
    ],
)
def test_a_mistake_names_the_option(folder, setting, expected):
    found = problems(folder, setting)
    assert len(found) == 1
    assert found[0].startswith(expected)


def test_options_that_do_not_go_together_are_all_named(folder):
    (problem,) = problems(folder, "decoding.steps=7", "limit=3", "decoding.block_length=16")
    where = "--set decoding.steps=7 --set decoding.block_length=16"
    assert problem == f"{where}: decoding: steps 7 do not divide into the 2 blocks of the window"


def test_what_is_wrong_in_the_file_itself_still_has_its_line(folder):
    text = GOOD.replace("[w4a16-g128, w8a8]", "[w9]")
    with pytest.raises(SweepFileError) as caught:
        parse(text, folder / "sweep.yaml", ["limit=0"])
    starts = [problem.split(":")[0] for problem in caught.value.problems]
    assert sorted(starts) == ["--set limit=0", "line 3"]


def test_a_rule_on_what_was_replaced_is_without_effect(folder):
    assert with_settings(folder, "schemes=[w4a16-g128]").exclude[0].scheme == ("w8a8",)
    assert with_settings(folder, "methods=[rtn]").exclude[0].method == ("gptq",)


def test_a_setting_is_read_apart():
    setting = read_setting("models.0.name=llada-tiny")
    assert (setting.place, setting.value) == (("models", 0, "name"), "llada-tiny")
    with pytest.raises(InputError, match="KEY=VALUE"):
        read_setting("nothing")
