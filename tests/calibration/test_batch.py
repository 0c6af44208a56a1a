"""Nobody can change a calibration batch in place."""

import pytest
import torch

from dllm_sweep import load_model
from dllm_sweep.calibration import load
from dllm_sweep.calibration.batch import CalibrationBatch
from dllm_sweep.quant.capture import counted
from dllm_sweep.spec import CalibrationSpec

REFUSED = {
    "whole": lambda t: t.zero_(),
    "row": lambda t: t[0].fill_(1),
    "item": lambda t: t.__setitem__((0, 0), 1),
    "slice": lambda t: t[:, 1:].zero_(),
    "copied into": lambda t: t.view(-1).copy_(torch.zeros(t.numel())),
    "transposed": lambda t: t.T.zero_(),
    "split": lambda t: t.split(1)[0].zero_(),
    "same device": lambda t: t.to("cpu").zero_(),
    "masked": lambda t: t.masked_fill_(torch.ones_like(t, dtype=torch.bool), 0),
}
IN_VAIN = {
    "data": lambda t: t.data.zero_(),
    "detached": lambda t: t.detach().zero_(),
    "numpy": lambda t: t.numpy().fill(0),
}


def batch(rows=3):
    ids = torch.arange(5 * rows).reshape(rows, 5)
    mask = torch.ones_like(ids)
    mask[0, 3:] = 0
    masked = ids % 2 == 0
    return CalibrationBatch(
        input_ids=ids, attention_mask=mask, masked=masked, weights=mask.float() / 2
    )


@pytest.mark.parametrize("write", REFUSED)
@pytest.mark.parametrize("name", ["input_ids", "attention_mask", "masked", "weights"])
def test_writing_into_a_batch_is_refused_and_changes_nothing(name, write):
    made = batch()
    with pytest.raises(RuntimeError, match="Inplace update to inference tensor"):
        REFUSED[write](getattr(made, name))
    with torch.no_grad(), pytest.raises(RuntimeError, match="Inplace update"):
        REFUSED[write](getattr(made, name))
    assert torch.equal(getattr(made, name), getattr(batch(), name))


@pytest.mark.parametrize("write", [*REFUSED, *IN_VAIN])
def test_what_gets_around_the_refusal_reaches_a_copy_alone(write):
    made = batch()
    with torch.inference_mode():
        (REFUSED | IN_VAIN)[write](made.input_ids)
    assert torch.equal(made.input_ids, batch().input_ids)


def test_so_it_is_for_batches_that_were_read_or_cut():
    model = load_model("llada-tiny", device="cpu")
    spec = CalibrationSpec(samples=4, length=16, masking="uniform", visible_weight=0.5)
    cut = tuple(batch().split(2))
    for one in (*load(spec, model, batch_size=3), *cut):
        for tensor in one.tensors().values():
            with pytest.raises(RuntimeError, match="Inplace update"):
                tensor.zero_()


def test_what_a_batch_was_made_from_may_change_without_it():
    ids = torch.zeros(2, 3, dtype=torch.int64)
    made = CalibrationBatch(input_ids=ids, attention_mask=None, masked=ids == 1)
    ids.fill_(7)
    assert not made.input_ids.any()


def test_reading_gives_ordinary_tensors():
    made = batch()
    copies = (
        made.input_ids.clone(),
        made.input_ids.masked_fill(made.masked, 9),
        made.input_ids[made.masked],
        made.weights * 2,
        made.attention_mask.float(),
        counted(torch.randn(3, 5, 2), made.weights),
    )
    for tensor in copies:
        tensor.zero_()
        assert not tensor.any()


def test_cut_batches_are_as_long_as_their_longest_sequence():
    first, second = batch().split(2)
    assert first.input_ids.shape == (2, 5)
    whole = CalibrationBatch(
        input_ids=torch.arange(8).reshape(2, 4),
        attention_mask=torch.tensor([[1, 1, 1, 1], [1, 1, 0, 0]]),
        masked=torch.zeros(2, 4, dtype=torch.bool),
    )
    long, short = whole.split(1)
    assert long.input_ids.tolist() == [[0, 1, 2, 3]]
    assert short.input_ids.tolist() == [[4, 5]]
    assert short.attention_mask.tolist() == [[1, 1]]
    assert second.weights.tolist() == [[0.5] * 5]
