from dataclasses import replace

import torch

from dllm_sweep.quant.capture import (
    capture_first_block,
    counted,
    counted_weights,
    run_block,
    token_weights,
    visit_inputs,
    watching,
    weighted,
)


def outputs_in_a_plain_forward(model, batch):
    seen = []
    hooks = [
        block.register_forward_hook(lambda _, args, out: seen.append(out)) for block in model.blocks
    ]
    model.logits(batch.input_ids, batch.attention_mask)
    for hook in hooks:
        hook.remove()
    return seen


def check_blocks_equal_the_plain_forward(model, batches):
    inputs = capture_first_block(model, batches)
    expected = [outputs_in_a_plain_forward(model, batch) for batch in batches]
    for depth, block in enumerate(model.blocks):
        inputs.advance(block)
        for hidden, outputs in zip(inputs.hidden, expected, strict=True):
            assert torch.equal(hidden, outputs[depth])


def test_blocks_on_their_own_equal_a_plain_forward_bit_for_bit(small_llada, make_batches):
    check_blocks_equal_the_plain_forward(small_llada, make_batches())


def test_so_they_do_with_padding(small_llada, make_batches):
    check_blocks_equal_the_plain_forward(small_llada, make_batches(padding=5))


def test_the_first_position_of_a_block_sees_the_last(small_llada, make_batches):
    inputs = capture_first_block(small_llada, make_batches(4))
    changed = inputs.hidden[0].clone()
    changed[:, -1] += 1
    block, keywords = small_llada.blocks[0], inputs.keywords[0]
    before, after = (run_block(block, hidden, keywords) for hidden in (inputs.hidden[0], changed))
    assert not torch.equal(before[:, 0], after[:, 0])


def test_capturing_leaves_no_trace(small_llada, make_batches):
    small_llada.host.train()
    batches = make_batches(padding=3)
    copies = [batch.input_ids.clone() for batch in batches]
    inputs = capture_first_block(small_llada, batches)
    assert small_llada.host.training
    assert not any(module._forward_pre_hooks for module in small_llada.host.modules())
    assert not inputs.hidden[0].requires_grad
    assert all(torch.equal(b.input_ids, copy) for b, copy in zip(batches, copies, strict=True))


def test_watched_inputs_are_those_of_the_forward_pass(small_llada, make_batches):
    (batch,) = make_batches(4)
    names = ["self_attn.o_proj", "mlp.down_proj"]
    seen, plain = {}, {}
    inputs = capture_first_block(small_llada, [batch])
    visit_inputs(small_llada.blocks[0], names, inputs, lambda name, x, _: seen.update({name: x}))
    with watching(small_llada.blocks[0], names, lambda name, x: plain.update({name: x})):
        small_llada.logits(batch.input_ids)
    assert set(seen) == set(names)
    assert all(torch.equal(seen[name], plain[name]) for name in names)


def test_weights_of_kept_tokens_stand_in_the_order_of_the_tokens():
    x = torch.arange(12.0).reshape(2, 3, 2)
    weights = torch.tensor([[0.5, 0.0, 1.0], [0.0, 0.0, 2.0]])
    assert counted_weights(weights, x.device).tolist() == [0.5, 1.0, 2.0]
    assert counted_weights((weights > 0).float(), x.device) is None
    assert counted_weights(None, x.device) is None
    values, total = weighted(x, weights)
    assert values.tolist() == [[0.0, 0.5], [4.0, 5.0], [20.0, 22.0]]
    assert total == 3.5
    assert weighted(x, None)[1] == 6


def test_padding_counts_nothing_whatever_its_weight(make_batches):
    batch = make_batches(2, padding=3)[0]
    heavy = replace(batch, weights=torch.full(batch.input_ids.shape, 0.5))
    device = torch.device("cpu")
    assert torch.equal(token_weights(heavy, device), batch.attention_mask * 0.5)
    assert torch.equal(token_weights(batch, device), batch.attention_mask.float())
    assert token_weights(replace(heavy, attention_mask=None), device).min() == 0.5


def test_captured_tensors_can_take_part_in_autograd(small_llada, make_batches):
    (batch,) = make_batches(4, padding=2)
    inputs = capture_first_block(small_llada, [replace(batch, weights=batch.attention_mask * 0.7)])
    hidden = inputs.hidden[0].clone().requires_grad_()
    out = small_llada.blocks[0](hidden, **inputs.keywords[0])
    loss = ((out[0] if isinstance(out, tuple) else out).sum(-1) * inputs.weights[0]).sum()
    loss.backward()
    assert hidden.grad.any()


def test_padding_is_left_out():
    x = torch.arange(12.0).reshape(2, 3, 2)
    tokens = torch.tensor([[True, True, False], [True, False, False]])
    assert counted(x, None).shape == (6, 2)
    assert torch.equal(counted(x, tokens), x.flatten(0, 1)[[0, 1, 3]])
