"""A small LLaDA with random weights (norms apart from one, nothing tied), and batches for it."""

import pytest
import torch

from dllm_sweep.calibration.batch import CalibrationBatch
from dllm_sweep.models.base import DiffusionModel, Special
from dllm_sweep.models.llada import PLUGIN as LLADA
from tests.postgres import running

VOCABULARY, LENGTH = 64, 32


def build_model(*, seed=0, layers=2, dtype=torch.float32):
    from transformers import LlamaConfig, LlamaForCausalLM

    config = LlamaConfig(
        vocab_size=VOCABULARY,
        hidden_size=32,
        intermediate_size=64,
        num_hidden_layers=layers,
        num_attention_heads=4,
        num_key_value_heads=4,
        max_position_embeddings=LENGTH,
        tie_word_embeddings=False,
        use_cache=False,
        bos_token_id=None,
        eos_token_id=1,
        pad_token_id=1,
    )
    config.is_causal = False
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        host = LlamaForCausalLM(config)
        for name, parameter in host.named_parameters():
            scale = 0.3 if "norm" in name else 0.2
            parameter.data = torch.randn(parameter.shape) * scale + ("norm" in name)
    return small_model("small", host.to(dtype), LLADA)


def build_dream(*, seed=0, layers=2, dtype=torch.float32, tied=False):
    """Dream's shape: grouped queries, biases on q, k and v, norms apart from one, embeddings with
    a mean, its epsilon, and widths whose Hadamard matrices are Paley's (28 x 4 and 148 x 2)."""
    from transformers import Qwen2Config, Qwen2ForCausalLM

    from dllm_sweep.models.dream import PLUGIN as DREAM

    config = Qwen2Config(
        vocab_size=VOCABULARY,
        hidden_size=112,
        intermediate_size=296,
        num_hidden_layers=layers,
        num_attention_heads=28,
        num_key_value_heads=4,
        max_position_embeddings=LENGTH,
        rms_norm_eps=1e-6,
        tie_word_embeddings=tied,
        use_cache=False,
        bos_token_id=None,
        eos_token_id=1,
        pad_token_id=1,
    )
    config.is_causal = False
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        host = Qwen2ForCausalLM(config)
        for name, parameter in host.named_parameters():
            mean = 1.0 if "norm" in name else 0.1 if "embed" in name else 0.0
            scale = 0.3 if "norm" in name else 0.12
            parameter.data = torch.randn(parameter.shape) * scale + mean
    return small_model("small dream", host.to(dtype), DREAM)


def small_model(name, host, family):
    """A host with random weights as the model of a family."""
    for block in host.model.layers:
        block.self_attn.is_causal = False
    return DiffusionModel(
        name=name,
        host=host.eval().requires_grad_(False),
        family=family,
        tokenizer=None,
        special=Special(mask_id=VOCABULARY - 1, end_ids=(1,), pad_id=1),
        max_length=LENGTH,
    )


@pytest.fixture(scope="session")
def postgres():
    """A Postgres server of the tests' own."""
    with running() as server:
        yield server


@pytest.fixture
def make_small_llada():
    return build_model


@pytest.fixture
def small_llada():
    return build_model()


@pytest.fixture
def make_small_dream():
    return build_dream


@pytest.fixture
def make_batches():
    """Random sequences (count, LENGTH), cut into batches; the last tokens may be padding."""

    def make(count=16, batch_size=4, *, padding=0, seed=0):
        generator = torch.Generator().manual_seed(seed)
        ids = torch.randint(2, VOCABULARY - 1, (count, LENGTH), generator=generator)
        mask = torch.ones_like(ids)
        if padding:
            ids[::2, -padding:], mask[::2, -padding:] = 1, 0
        return tuple(
            CalibrationBatch(
                input_ids=part,
                attention_mask=mask_part if padding else None,
                masked=torch.zeros_like(part, dtype=torch.bool),
            )
            for part, mask_part in zip(ids.split(batch_size), mask.split(batch_size), strict=True)
        )

    return make
