import dataclasses
import json
from pathlib import Path

import pytest
import torch

from dllm_sweep import load_model
from dllm_sweep.calibration import load
from dllm_sweep.errors import CalibrationError, UnknownName
from dllm_sweep.spec import CalibrationSpec

CHECKPOINT = Path(__file__).parents[1] / "data" / "llada-random"
SENTENCE = "the model is quantized and its weights are rounded to a grid"
WORDS = SENTENCE.split()


@pytest.fixture(scope="module")
def model():
    return load_model(str(CHECKPOINT), device="cpu")


@pytest.fixture
def spec(tmp_path):
    path = tmp_path / "texts.jsonl"
    lines = (" ".join(WORDS[i % 12 :] + WORDS[: i % 7]) for i in range(100))
    path.write_text("\n".join(json.dumps({"text": line}) for line in lines))
    return CalibrationSpec(source=str(path), samples=10, length=24)


def ids(batches):
    return torch.cat([batch.input_ids for batch in batches])


def test_samples_and_length_are_as_asked_for_and_the_text_is_the_sources(spec, model):
    batches = load(spec, model, batch_size=4)
    assert [tuple(batch.input_ids.shape) for batch in batches] == [(4, 24), (4, 24), (2, 24)]
    assert not any(batch.masked.any() for batch in batches)
    text = model.tokenizer.decode(ids(batches)[0], skip_special_tokens=True)
    assert set(text.split()[1:-1]) <= {*WORDS, *(a + b for a in WORDS for b in WORDS)}


def test_documents_are_joined_with_the_end_of_text(spec, model):
    assert (ids(load(spec, model, batch_size=4)) == model.special.end_ids[0]).any()


def test_nothing_depends_on_the_batch_size(spec, model):
    spec = dataclasses.replace(spec, masking="uniform")
    one, many = load(spec, model, batch_size=1), load(spec, model, batch_size=7)
    assert torch.equal(ids(one), ids(many))
    assert torch.equal(
        torch.cat([batch.masked for batch in one]), torch.cat([batch.masked for batch in many])
    )


def test_the_seed_chooses_the_crops(spec, model):
    same = load(spec, model, batch_size=4), load(spec, model, batch_size=4)
    other = load(dataclasses.replace(spec, seed=1), model, batch_size=4)
    assert torch.equal(ids(same[0]), ids(same[1]))
    assert not torch.equal(ids(same[0]), ids(other))


def test_masked_positions_hold_mask_tokens_and_the_others_the_clean_text(spec, model):
    clean = load(spec, model, batch_size=16)[0]
    masked = load(dataclasses.replace(spec, masking="uniform"), model, batch_size=16)[0]
    assert masked.masked.any()
    assert not masked.masked.all()
    expected = clean.input_ids.masked_fill(masked.masked, model.special.mask_id)
    assert torch.equal(masked.input_ids, expected)


def test_too_little_text_says_how_much_there_is_and_how_much_is_needed(spec, model):
    spec = dataclasses.replace(spec, samples=100_000)
    with pytest.raises(CalibrationError, match=r"holds \d+ tokens, but 100000 samples of 24 need"):
        load(spec, model, batch_size=4)


def test_sequences_longer_than_the_models_are_refused(spec, model):
    spec = dataclasses.replace(spec, length=model.max_length + 1)
    with pytest.raises(CalibrationError, match=f"more than the {model.max_length} tokens"):
        load(spec, model, batch_size=4)


def test_an_unknown_masking_names_the_nearest(spec, model):
    with pytest.raises(UnknownName, match="did you mean 'uniform'"):
        load(dataclasses.replace(spec, masking="unifrom"), model, batch_size=4)


def test_only_as_much_text_is_read_as_the_crops_are_drawn_from(spec, model, tmp_path):
    path = tmp_path / "long.jsonl"
    good = json.dumps({"text": " ".join(WORDS * 1000)})
    path.write_text(f"{good}\nthis line is never reached\n")
    spec = dataclasses.replace(spec, source=str(path), samples=2)
    assert len(ids(load(spec, model, batch_size=4))) == 2
