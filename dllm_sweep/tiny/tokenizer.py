"""The tokenizer of the tiny models: byte pairs over generated text, digits one by one."""

from __future__ import annotations

import json
from collections.abc import Iterable
from pathlib import Path

from tokenizers import Regex, Tokenizer, decoders, models, pre_tokenizers, trainers

from dllm_sweep.tiny.pieces import PATTERN

END, START, MASK = 0, 1, 2
SPECIAL = ("<|endoftext|>", "<|startoftext|>", "<|mdm_mask|>")
VOCABULARY = 1024


def train_tokenizer(texts: Iterable[str]) -> Tokenizer:
    """Train byte-level byte pairs; ids 0, 1, 2 are end-of-text, start and mask."""
    tokenizer = Tokenizer(models.BPE())
    cut = pre_tokenizers.Split(Regex(PATTERN), behavior="isolated")
    to_bytes = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence([cut, to_bytes])
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=VOCABULARY,
        special_tokens=list(SPECIAL),
        initial_alphabet=sorted(pre_tokenizers.ByteLevel.alphabet()),
        show_progress=False,
    )
    tokenizer.train_from_iterator(texts, trainer)
    return tokenizer


def save_tokenizer(tokenizer: Tokenizer, folder: Path) -> None:
    """Write tokenizer.json and tokenizer_config.json, of a stock class."""
    folder.mkdir(parents=True, exist_ok=True)
    tokenizer.save(str(folder / "tokenizer.json"))
    # As in LLaDA's checkpoints no mask token is named here: its id stands in config.json.
    config = {
        "add_bos_token": False,
        "bos_token": SPECIAL[START],
        "clean_up_tokenization_spaces": False,
        "eos_token": SPECIAL[END],
        "model_max_length": 256,
        "pad_token": SPECIAL[END],
        "tokenizer_class": "PreTrainedTokenizerFast",
    }
    (folder / "tokenizer_config.json").write_text(json.dumps(config, indent=2) + "\n")


def load_tokenizer(folder: Path) -> Tokenizer:
    """Read tokenizer.json."""
    return Tokenizer.from_file(str(folder / "tokenizer.json"))
