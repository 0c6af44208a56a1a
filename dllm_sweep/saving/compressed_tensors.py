"""Weight-only results in the compressed-tensors layout "pack-quantized", which transformers reads.

A weight w = s (q - z) is stored as integers from -2^(b-1) on, packed along its inputs without gaps
into 32-bit words, lowest bit first; asymmetric grids store their zeros likewise, packed along the
outputs. Scales stay in float32. The names of tensors and the configuration are those of the host
class, so that no adapter of ours is needed to read the folder.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save_file
from torch import Tensor

from dllm_sweep.models.base import DiffusionModel
from dllm_sweep.quant import attention
from dllm_sweep.quant.affine import WeightGrid
from dllm_sweep.quant.linear import QuantLinear, TransformedLinear
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
    found = ((name, _linear_refusal(part)) for name, part in weights.changed_linears(model).items())
    reason = next((f"{name} {reason}" for name, reason in found if reason is not None), None)
    if reason is not None:
        return reason
    packed = _packed_linears(model)
    if not packed:
        return "it holds rounded weights, and here are none"
    if len({part.grid.bits for part in packed.values()}) > 1 or _group_size(packed) is None:
        return "transformers reads one bit-width and one group size for all linears"
    return None


def _linear_refusal(part: TransformedLinear) -> str | None:
    if part.transform is not None:
        return "transforms its input when it is called, which the layout cannot say"
    if not isinstance(part, QuantLinear):
        return None
    if part.activation.bits < FULL_PRECISION_BITS:
        return "rounds its input, and this export is for weights alone"
    grid = part.grid
    if grid is None:
        return None
    if grid.group_of_input is not None:
        return "has groups of inputs that are no neighbours (set static_groups of gptq to true)"
    if not grid.zeros_are_codes():
        return "has a grid on which zero is no code, which the layout cannot say"
    return None


def _packed_linears(model: DiffusionModel) -> dict[str, Any]:
    """Give the linears whose weights are stored as integers."""
    changed = weights.changed_linears(model).items()
    return {name: part for name, part in changed if isinstance(part, QuantLinear) and part.grid}


def _group_size(packed: Mapping[str, Any]) -> int | None:
    """Give how many inputs share a scale in all linears, 0 for all of them; None if that differs.

    A single group can be as long as those of the other linears, or stand for all inputs.
    """
    whole = [part.grid.scales.shape[1] == 1 for part in packed.values()]
    if all(whole):
        return 0
    sizes = {part.in_features // part.grid.scales.shape[1] for part in packed.values()}
    return sizes.pop() if len(sizes) == 1 else None


def write(model: DiffusionModel, folder: Path) -> float:
    """Write config.json and the tensors of a model that the layout can hold.

    Args:
        model: One that `refusal` lets through.
        folder: An empty folder.

    Returns:
        Stored bits of a packed weight, its scales and zeros included.
    """
    packed = _packed_linears(model)
    symmetric = all(_is_symmetric(part.grid) for part in packed.values())
    tensors, packed_bytes = weights.plain_tensors(model), 0
    for name, part in weights.changed_linears(model).items():
        tensors |= {} if part.bias is None else {f"{name}.bias": part.bias}
        if name not in packed:
            tensors[f"{name}.weight"] = part.weight
            continue
        stored = _packed(part.weight, packed[name].grid, symmetric=symmetric)
        tensors |= {f"{name}.{key}": tensor for key, tensor in stored.items()}
        packed_bytes += sum(tensor.nbytes for tensor in stored.values())
    ready = {name: tensor.detach().cpu().contiguous() for name, tensor in tensors.items()}
    save_file(ready, folder / _FILE, metadata={"format": "pt"})
    text = json.dumps(_config(model, packed, symmetric=symmetric), indent=2, ensure_ascii=False)
    (folder / "config.json").write_text(f"{text}\n", encoding="utf-8")
    count: int = sum(part.weight.numel() for part in packed.values())
    return 8 * packed_bytes / count


def _is_symmetric(grid: WeightGrid) -> bool:
    """Whether the middle code stands for zero everywhere."""
    return bool((grid.zeros == grid.lowest + 2 ** (grid.bits - 1)).all())


def _packed(weight: Tensor, grid: WeightGrid, *, symmetric: bool) -> dict[str, Tensor]:
    """Give a weight's tensors by their names in the layout."""
    outputs, inputs = weight.shape
    shift = grid.lowest + 2 ** (grid.bits - 1)
    tensors = {
        "weight_packed": _words(codes_of(weight, grid) - shift, grid.bits),
        "weight_scale": grid.scales.expand(outputs, -1),
        "weight_shape": torch.tensor([outputs, inputs]),
    }
    if not symmetric:
        zeros = (grid.zeros - shift).expand(outputs, -1)
        tensors["weight_zero_point"] = _words(zeros.T, grid.bits).T
    return tensors


def _words(numbers: Tensor, bits: int) -> Tensor:
    """Pack each row of signed integers (r, c) into 32-bit words, (r, ceil(c * bits / 32)) int32."""
    rows, columns = numbers.shape
    lowest = -(2 ** (bits - 1))
    # 32 numbers fill whole words.
    padded = torch.nn.functional.pad(numbers, (0, -columns % _WORD_BITS), value=lowest)
    stream = pack(padded, bits=bits, lowest=lowest).cpu()
    return stream.view(torch.int32).view(rows, -1)[:, : -(-columns * bits // _WORD_BITS)]


def _config(model: DiffusionModel, packed: Mapping[str, Any], *, symmetric: bool) -> dict[str, Any]:
    """Give what config.json says: the host class, and what the integers mean."""
    size = _group_size(packed)
    meaning = {
        "num_bits": next(iter(packed.values())).grid.bits,
        "type": "int",
        "symmetric": symmetric,
        "strategy": "group" if size else "channel",
        "group_size": size or None,
        "dynamic": False,
    }
    group = {"targets": ["Linear"], "weights": meaning}
    quantization = {
        "quant_method": LAYOUT,
        "format": "pack-quantized",
        "quantization_status": "compressed",
        # transformers 5 unpacks at once: only so asymmetric grids are read, and in the model's
        # type nothing but the weight is rounded, as in the simulation.
        "dequantize": True,
        "config_groups": {"group_0": group},
        "ignore": [name for name in (*model.linears(), "lm_head") if name not in packed],
    }
    host: dict[str, Any] = model.host.config.to_dict()
    return host | {
        "architectures": [type(model.host).__name__],
        "is_causal": False,
        "mask_token_id": model.special.mask_id,
        "dtype": str(model.dtype).removeprefix("torch."),
        "quantization_config": quantization,
    }
