"""Weight-only results in the compressed-tensors layout "pack-quantized", which transformers reads.

A weight w = s (q - z) is stored as integers from -2^(b-1) on, packed along its inputs without gaps
into 32-bit words, lowest bit first; asymmetric grids store their zeros likewise, packed along the
outputs. Scales stay in float32. The names of tensors and the configuration are those of the host
class, so that no adapter of ours is needed to read the folder.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save_file
from torch import Tensor

from dllm_sweep.models.base import DiffusionModel
from dllm_sweep.quant import attention
from dllm_sweep.quant.affine import WeightGrid
from dllm_sweep.quant.linear import QuantLinear
from dllm_sweep.quant.packing import codes_of, pack
from dllm_sweep.saving import weights
from dllm_sweep.spec import FULL_PRECISION_BITS, QuantScheme

LAYOUT = "compressed-tensors"
ROTATING = ("quarot", "duquant")
"""Methods that leave transforms in front of linears whatever their parameters."""
_WORD_BITS = 32
_FILE = "model.safetensors"


def early_refusal(name: str, method: Any, scheme: QuantScheme) -> str | None:
    """Say why the layout will not hold what a method makes; None if it may.

    Args:
        name: Of the method.
        method: The method with its parameters.
        scheme: What is asked for.
    """
    if name in ROTATING:
        return f"{name} transforms inputs at every call, which the layout {LAYOUT} cannot say"
    if scheme.a_bits < FULL_PRECISION_BITS:
        return f"{scheme} rounds activations, and the layout {LAYOUT} is written for weights alone"
    if scheme.qkv or scheme.kv_bits < FULL_PRECISION_BITS:
        return f"{scheme}: the layout {LAYOUT} has no place for rounded queries, keys or values"
    static = getattr(method, "static_groups", True) or not getattr(method, "activation_order", True)
    if scheme.group_size is not None and not static:
        return f"the layout {LAYOUT} has no place for scattered groups: set static_groups to true"
    return None


def refusal(model: DiffusionModel) -> str | None:
    """Say why the layout cannot hold a quantized model; None if it can."""
    if attention.operand_settings(model):
        return "it has no place for rounded queries, keys or values"
    changed = weights.changed_linears(model)
    if not any(
        isinstance(part, QuantLinear) and part.grid is not None for part in changed.values()
    ):
        return "it holds rounded weights, and here are none"
    found = ((name, _linear_refusal(part)) for name, part in changed.items())
    return next((f"{name} {reason}" for name, reason in found if reason is not None), None)


def _linear_refusal(part: weights.TransformedLinear) -> str | None:
    if part.transform is not None:
        return "transforms its input when it is called, which the layout cannot say"
    if not isinstance(part, QuantLinear):
        return None
    if part.activation.bits < FULL_PRECISION_BITS:
        return "rounds its input, and this export is for weights alone"
    if part.grid is None:
        return None
    if part.grid.group_of_input is not None:
        return "has groups of inputs that are no neighbours (set static_groups of gptq to true)"
    return None


def write(model: DiffusionModel, folder: Path) -> float:
    """Write config.json and the tensors of a model that the layout can hold.

    Args:
        model: One that `refusal` lets through.
        folder: An empty folder.

    Returns:
        Stored bits of a packed weight, its scales and zeros included.
    """
    tensors, schemes = weights.plain_tensors(model), {}
    packed_bytes = packed_weights = 0
    for name, part in weights.changed_linears(model).items():
        tensors |= {} if part.bias is None else {f"{name}.bias": part.bias}
        grid = part.grid if isinstance(part, QuantLinear) else None
        if grid is None:
            tensors[f"{name}.weight"] = part.weight
            continue
        stored, schemes[name] = _packed(part.weight, grid)
        tensors |= {f"{name}.{key}": tensor for key, tensor in stored.items()}
        packed_bytes += sum(tensor.nbytes for tensor in stored.values())
        packed_weights += part.weight.numel()
    ready = {name: tensor.detach().cpu().contiguous() for name, tensor in tensors.items()}
    save_file(ready, folder / _FILE, metadata={"format": "pt"})
    _write_config(model, folder, schemes)
    return 8 * packed_bytes / packed_weights


def _packed(weight: Tensor, grid: WeightGrid) -> tuple[dict[str, Tensor], dict[str, Any]]:
    """Give a weight's tensors by their names in the layout, and what its numbers mean."""
    outputs, inputs = weight.shape
    middle = 2 ** (grid.bits - 1)
    shift = grid.lowest + middle
    scales = grid.scales.expand(outputs, -1)
    zeros = (grid.zeros - shift).expand(outputs, -1)
    symmetric = not bool(zeros.any())
    tensors = {
        "weight_packed": _words(codes_of(weight, grid) - shift, grid.bits),
        "weight_scale": scales,
        "weight_shape": torch.tensor([outputs, inputs]),
    }
    if not symmetric:
        tensors["weight_zero_point"] = _words(zeros.T, grid.bits).T
    groups = scales.shape[1]
    meaning = {
        "num_bits": grid.bits,
        "type": "int",
        "symmetric": symmetric,
        "strategy": "channel" if groups == 1 else "group",
        "group_size": None if groups == 1 else inputs // groups,
        "dynamic": False,
    }
    return tensors, meaning


def _words(numbers: Tensor, bits: int) -> Tensor:
    """Pack each row of signed integers (r, c) into 32-bit words, (r, ceil(c * bits / 32)) int32."""
    rows, columns = numbers.shape
    lowest = -(2 ** (bits - 1))
    # 32 numbers fill whole words.
    padded = torch.nn.functional.pad(numbers, (0, -columns % _WORD_BITS), value=lowest)
    stream = pack(padded, bits=bits, lowest=lowest).cpu()
    return stream.view(torch.int32).view(rows, -1)[:, : -(-columns * bits // _WORD_BITS)]


def _write_config(
    model: DiffusionModel,
    folder: Path,
    schemes: Mapping[str, Mapping[str, Any]],
) -> None:
    host = model.host.config.to_dict()
    host |= {"architectures": [type(model.host).__name__], "is_causal": False}
    host["mask_token_id"] = model.special.mask_id
    host["dtype"] = str(model.dtype).removeprefix("torch.")
    host["quantization_config"] = {
        "quant_method": LAYOUT,
        "format": "pack-quantized",
        "quantization_status": "compressed",
        # transformers 5 unpacks at once: only so asymmetric grids are read, and in the model's
        # type nothing but the weight is rounded, as in the simulation.
        "dequantize": True,
        "config_groups": dict(_config_groups(schemes)),
        "ignore": [name for name in (*model.linears(), "lm_head") if name not in schemes],
    }
    text = json.dumps(host, indent=2, ensure_ascii=False)
    (folder / "config.json").write_text(f"{text}\n", encoding="utf-8")


def _config_groups(
    schemes: Mapping[str, Mapping[str, Any]],
) -> Iterator[tuple[str, dict[str, Any]]]:
    """Give one group for all linears whose numbers mean the same."""
    for number, scheme in enumerate({json.dumps(one): one for one in schemes.values()}.values()):
        targets = [name for name, one in schemes.items() if one == scheme]
        alone = len(targets) == len(schemes)
        yield f"group_{number}", _group(["Linear"] if alone else targets, scheme)


def _group(targets: Sequence[str], weights_as: Mapping[str, Any]) -> dict[str, Any]:
    return {
        "targets": list(targets),
        "weights": dict(weights_as),
        "input_activations": None,
        "output_activations": None,
    }
