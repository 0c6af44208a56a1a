import json
import shutil
from pathlib import Path

import pytest
from tokenizers import Tokenizer, models, pre_tokenizers

from dllm_sweep import load_model, plugins
from dllm_sweep.errors import InputError
from dllm_sweep.models.tokenizer import chat_ids, load_tokenizer

DATA = Path(__file__).parents[1] / "data"
FAMILIES = ("llada", "dream")


@pytest.fixture(params=FAMILIES)
def name(request):
    return request.param


@pytest.fixture
def family(name):
    return plugins.load("model family", name)


@pytest.fixture
def case(name):
    return json.loads((DATA / f"{name}-golden" / "tokenizer.json").read_text(encoding="utf-8"))


@pytest.fixture
def tokenizer(name, family):
    return load_tokenizer(DATA / f"{name}-random", family)


def test_the_tokenizer_gives_the_authors_ids(tokenizer, case):
    assert [tokenizer(text)["input_ids"] for text in case["texts"]] == case["input_ids"]


def test_a_conversation_is_written_as_the_authors_write_it(tokenizer, family, case):
    ids = chat_ids(tokenizer, family, case["chat"])
    assert tokenizer.decode(ids) == case["chat_text"]
    assert family.chat_text(case["chat"]) == case["chat_text"]


def test_a_template_of_the_family_stands_in_for_a_missing_one(tokenizer, family, case):
    expected = chat_ids(tokenizer, family, case["chat"])
    tokenizer.chat_template = None
    assert chat_ids(tokenizer, family, case["chat"]) == expected


def test_a_lone_text_is_what_the_user_says(tokenizer, family):
    turn = {"role": "user", "content": "2 + 2?"}
    assert chat_ids(tokenizer, family, "2 + 2?") == chat_ids(tokenizer, family, [turn])


def test_begin_of_text_is_written_once(name):
    model = load_model(str(DATA / f"{name}-random"), device="cpu")
    ids = model.chat_prompt("2 + 2?")
    assert ids.count(model.special.bos_id) == {"llada": 1, "dream": 0}[name]


def test_ids_that_only_the_tokenizer_knows_are_found(name, case):
    special = load_model(str(DATA / f"{name}-random"), device="cpu").special
    names = {"llada": ("<|startoftext|>", "<|eot_id|>"), "dream": ("<|beginoftext|>", "<|im_end|>")}
    bos, turn_end = names[name]
    assert special.bos_id == case["special_ids"][bos]
    assert special.turn_end_id == case["special_ids"][turn_end]


def test_a_dream_tokenizer_in_one_file_gives_the_same_ids(tmp_path):
    family = plugins.load("model family", "dream")
    case = json.loads((DATA / "dream-golden" / "tokenizer.json").read_text(encoding="utf-8"))
    load_tokenizer(DATA / "dream-random", family).save_pretrained(tmp_path)
    named = json.loads((tmp_path / "tokenizer_config.json").read_text())
    names = {"tokenizer_class": "DreamTokenizer", "auto_map": {"AutoTokenizer": ["x.X", None]}}
    (tmp_path / "tokenizer_config.json").write_text(json.dumps(named | names))
    assert not (tmp_path / "merges.txt").exists()
    found = load_tokenizer(tmp_path, family)
    assert [found(text)["input_ids"] for text in case["texts"]] == case["input_ids"]


@pytest.mark.parametrize(
    "named",
    [
        "PreTrainedTokenizerFast",
        "DreamTokenizer",
        "Qwen2TokenizerFast",
        "PreTrainedTokenizer",
        None,
    ],
)
def test_rules_of_a_tokenizer_in_one_file_are_kept(tmp_path, named):
    """Qwen2's class would cut "A1" before it looks into the file."""
    words = Tokenizer(models.WordLevel({"A1": 0, "<unk>": 1}, unk_token="<unk>"))
    words.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    words.save(str(tmp_path / "tokenizer.json"))
    if named is not None:
        (tmp_path / "tokenizer_config.json").write_text(json.dumps({"tokenizer_class": named}))
    found = load_tokenizer(tmp_path, plugins.load("model family", "dream"))
    assert found("A1 A1")["input_ids"] == [0, 0]


def test_a_conversation_without_a_tokenizer_is_refused(tmp_path):
    folder = shutil.copytree(DATA / "dream-random", tmp_path / "mute")
    for name in ("vocab.json", "merges.txt", "tokenizer_config.json"):
        (folder / name).unlink()
    with pytest.raises(InputError, match="has none"):
        load_model(str(folder), device="cpu").chat_prompt("2 + 2?")
