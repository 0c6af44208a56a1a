"""The model card of a saved quantized model: what it is, how it was made, how it is loaded."""

from __future__ import annotations

import json
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path

from dllm_sweep.manifest import Recipe
from dllm_sweep.models.base import DiffusionModel
from dllm_sweep.records import ModuleRow
from dllm_sweep.saving import compressed_tensors
from dllm_sweep.spec import FULL_PRECISION_BITS, with_places


def model_card(
    model: DiffusionModel,
    recipe: Recipe,
    *,
    layout: str,
    name: str,
    bytes: int,
    bits: float | None,
) -> str:
    """Write the card, in Markdown with the front matter that the hub reads.

    Args:
        model: Quantized.
        recipe: How.
        layout: Of the folder.
        name: Of the folder.
        bytes: Of its files.
        bits: Mean bits that a packed weight takes in it; None if none is packed.
    """
    report = model.quantization_report
    parts = [
        *_front_matter(recipe, layout),
        f"# {name}\n",
        f"{_code(recipe.model)} quantized by dllm-sweep with {_code(Path(recipe.method).name)} to"
        f" {_code(recipe.scheme)}. It is a masked diffusion language model of the family"
        f" {_code(recipe.family)}: {_attention(model)}.\n",
        "## How to load it\n",
        *(_loading(name, model) if layout == compressed_tensors.LAYOUT else _own_loading(name)),
        "## Size\n",
        *_size(report.average_bits, bits, bytes),
        "## Recipe\n",
        *_table(("", ""), _recipe_rows(recipe)),
        "## What was quantized\n",
        *_table(("module", "blocks", "weight bits", "activation bits"), _modules(report.modules)),
    ]
    if report.warnings:
        parts += ["## Warnings\n", *(f"- {_line(warning)}" for warning in report.warnings), ""]
    return "\n".join(parts)


def _front_matter(recipe: Recipe, layout: str) -> Iterator[str]:
    yield "---"
    if not Path(recipe.model).exists() and recipe.model.count("/") == 1:
        yield f"base_model: {recipe.model.partition('@')[0]}"
        yield "base_model_relation: quantized"
    yield "tags:"
    yield from (f"- {tag}" for tag in sorted({"dllm-sweep", "diffusion-language-model", layout}))
    yield "---\n"


def _own_loading(name: str) -> tuple[str, ...]:
    return (
        "With the version of dllm-sweep below or a later one:\n",
        "```python",
        "from dllm_sweep import load_model\n",
        f'model = load_model("{name}")  # this folder',
        "```\n",
        "Its logits are bit for bit those of the model that was saved. Weights are unpacked into"
        " the model's type: the folder is small, the model in memory is not. A sweep file can name"
        " the folder under `models`, with the method `fp`.\n",
    )


def _loading(name: str, model: DiffusionModel) -> tuple[str, ...]:
    shift = (
        "The logits that predict position i are those of position i - 1."
        if model.family.logit_shift
        else "The logits of position i predict position i."
    )
    mask = "The mask of blocks has to be given in each call. " if model.block_size else ""
    return (
        "With transformers and the package compressed-tensors:\n",
        "```python",
        "from transformers import AutoModelForCausalLM\n",
        f'model = AutoModelForCausalLM.from_pretrained("{name}")  # this folder',
        "```\n",
        "The class is one of an autoregressive model, but attention must not be causal:"
        " `is_causal` in config.json says so, which transformers 5 obeys."
        f" {mask}{shift} The mask token has"
        f" the id {model.special.mask_id}.\n",
    )


def _attention(model: DiffusionModel) -> str:
    if model.block_size is None:
        return "every token sees the whole sequence"
    return f"a token sees its own block of {model.block_size} tokens and all earlier blocks"


def _size(average_bits: float, stored_bits: float | None, bytes: int) -> Iterator[str]:
    yield f"- {average_bits:.3f} bits a quantized weight, counting 16 bits for a scale"
    if stored_bits is not None:
        yield f"- {stored_bits:.3f} bits a packed weight in this folder, with its scales as stored"
    yield f"- {bytes:,} bytes in all, with what is not quantized\n"


def _recipe_rows(recipe: Recipe) -> Iterator[tuple[str, str]]:
    yield "model", _code(recipe.model)
    yield "its digest", _code(recipe.model_digest)
    yield "method", f"{_code(recipe.method)}, version {recipe.method_version}"
    if recipe.method_sha256 is not None:
        yield "SHA-256 of its file", _code(recipe.method_sha256)
    yield "scheme", _code(recipe.scheme)
    yield from ((f"parameter {key}", _in_yaml(value)) for key, value in recipe.parameters)
    if recipe.calibration is not None:
        text = json.loads(with_places(recipe.calibration))
        yield from ((f"calibration {key}", _in_yaml(value)) for key, value in text.items())
    elif recipe.calibration_tokens is not None:
        yield "calibration", recipe.calibration_tokens
    yield "seed", _code(recipe.seed)
    yield "dtype", _code(recipe.dtype)
    yield from ((key, _code(value)) for key, value in recipe.versions)


def _modules(rows: Sequence[ModuleRow]) -> Iterator[tuple[str, str, str, str]]:
    """Give one row for all blocks in which a module was quantized in the same way."""
    blocks: dict[tuple[str, str, str], list[int]] = {}
    for row in rows:
        *_, number, name = row.module.split(".", 3)
        key = (name, _weight_bits(row), str(row.a_bits))
        blocks.setdefault(key, []).append(int(number))
    for (name, weight_bits, a_bits), numbers in blocks.items():
        yield _code(name), _ranges(numbers), weight_bits, a_bits


def _weight_bits(row: ModuleRow) -> str:
    if row.w_bits == FULL_PRECISION_BITS:
        return str(row.w_bits)
    grid = "symmetric" if row.symmetric else "asymmetric"
    group = "a grid for each output" if row.group_size is None else f"groups of {row.group_size}"
    return f"{row.w_bits}, {grid}, {group}"


def _ranges(numbers: Sequence[int]) -> str:
    """Write block numbers as `0-3, 5`."""
    runs: list[list[int]] = []
    for number in sorted(numbers):
        if runs and number == runs[-1][-1] + 1:
            runs[-1].append(number)
        else:
            runs.append([number])
    return ", ".join(str(run[0]) if len(run) == 1 else f"{run[0]}-{run[-1]}" for run in runs)


def _table(heads: Sequence[str], rows: Iterable[Sequence[str]]) -> Iterator[str]:
    yield f"| {' | '.join(heads)} |"
    yield f"|{'---|' * len(heads)}"
    yield from (f"| {' | '.join(row)} |" for row in rows)
    yield ""


def _code(value: object) -> str:
    return f"`{_line(value)}`"


def _in_yaml(value: object) -> str:
    """Write a value as a sweep file takes it."""
    return _code(value if isinstance(value, str) else json.dumps(value))


def _line(value: object) -> str:
    return " ".join(str(value).split()).replace("|", "/").replace("`", "'")
