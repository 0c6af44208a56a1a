"""Full names of the linears that may be quantized, and the patterns that choose among them; without
torch, for planning."""

from __future__ import annotations

from collections.abc import Collection, Iterable, Mapping, Sequence
from fnmatch import fnmatchcase
from typing import Any

from dllm_sweep.models.family import LinearGroup

_NAMES_SHOWN = 8


def block_name(index: int) -> str:
    """Full name of block `index` in the host class, the prefix of its linears' names."""
    return f"model.layers.{index}"


def linear_names(groups: Sequence[LinearGroup], layers: int) -> tuple[str, ...]:
    """Give the full names of all linears that may be quantized, in depth order."""
    return tuple(
        f"{block_name(index)}.{name}"
        for index in range(layers)
        for group in groups
        for name in group.linears
    )


def layers_of(config: Mapping[str, Any]) -> int:
    """Read the number of blocks from config.json, in LLaDA's keys or those of all others.

    Raises:
        KeyError: If it does not say.
    """
    return int(config["n_layers"] if "d_model" in config else config["num_hidden_layers"])


def unmatched(
    names: Collection[str], modules: Collection[str], skip_modules: Collection[str]
) -> str | None:
    """Say which pattern matches none of the linears' full names, or that nothing is left.

    None if neither is so: `matching` will find something.
    """
    for pattern in (*modules, *skip_modules):
        if not any(fnmatchcase(name, pattern) for name in names):
            return f"the module pattern {pattern!r} matches no linear; there are: {_some(names)}"
    if not matching(names, modules, skip_modules):
        return "the patterns modules and skip_modules together leave no linear"
    return None


def matching(
    names: Iterable[str], modules: Collection[str], skip_modules: Collection[str]
) -> tuple[str, ...]:
    """Give the names that a pattern of `modules` matches and none of `skip_modules`."""
    return tuple(
        name for name in names if _matches(name, modules) and not _matches(name, skip_modules)
    )


def _matches(name: str, patterns: Iterable[str]) -> bool:
    return any(fnmatchcase(name, pattern) for pattern in patterns)


def _some(names: Collection[str]) -> str:
    tail = f" and {len(names) - _NAMES_SHOWN} more" if len(names) > _NAMES_SHOWN else ""
    return ", ".join(list(names)[:_NAMES_SHOWN]) + tail
