"""Building a method from the parameters that somebody wrote, with one clear line for a mistake."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from types import NoneType, UnionType
from typing import Any, cast, get_args, get_type_hints

from dllm_sweep import plugins
from dllm_sweep.errors import InputError, UnknownName
from dllm_sweep.methods.base import Method

Patterns = tuple[str, ...]
"""Shell patterns over the full names of linears, such as `*.self_attn.*`."""

_WANTED = {bool: "true or false", int: "a whole number", float: "a number", str: "a text"}


def build(name: str, parameters: Mapping[str, Any] | None = None) -> Method:
    """Make an instance of the method `name`.

    Args:
        name: A method of the package, of an installed package, or `path/to/file.py:Class`.
        parameters: Values by parameter name, as a sweep file gives them; lists become tuples.

    Raises:
        UnknownName: If there is no such method, or it has no such parameter.
        InputError: If a value has the wrong type or lies outside its range, or `name` chains
            several methods.
    """
    _refuse_chain(name)
    kind: Any = plugins.load("method", name)
    if not (isinstance(kind, type) and dataclasses.is_dataclass(kind)):
        raise InputError(f"method {name!r} is not a dataclass, so it has no parameters to set")
    hints = get_type_hints(kind)
    known = {field.name for field in dataclasses.fields(kind)}
    values = dict(parameters or {})
    for parameter in values:
        if parameter not in known:
            raise UnknownName(f"parameter of {name}", parameter, known)
    checked = {key: _value(name, key, hints[key], given) for key, given in values.items()}
    return cast(Method, kind(**checked))


def _refuse_chain(name: str) -> None:
    parts = [part.strip() for part in name.split("+")]
    if len(parts) > 1 and all(part in plugins.names("method") for part in parts):
        raise InputError(
            f"method {name!r}: methods are not chained by name; what composes is a parameter:"
            " `solver: gptq` of awq, smoothquant, quarot and duquant, `smoothing` of quarot"
        )


def require(holds: bool, parameter: str, given: object, expected: str) -> None:
    """Raise InputError unless `holds`, naming the parameter, its value and what is expected."""
    if not holds:
        raise InputError(f"parameter {parameter}: expected {expected}, not {given!r}")


def _value(method: str, parameter: str, kind: Any, given: Any) -> Any:
    if kind == tuple[str, ...]:
        return _patterns(method, parameter, given)
    if isinstance(kind, UnionType) and given is None:
        return None
    kind = _without_none(kind)
    if kind is float and type(given) is int:
        return float(given)
    if kind in _WANTED and type(given) is not kind:
        raise InputError(
            f"parameter {parameter} of {method}: expected {_WANTED[kind]}, not {given!r}"
        )
    return tuple(given) if isinstance(given, list) else given


def _without_none(kind: Any) -> Any:
    """Give T for `T | None`, and any other type as it is."""
    some = [part for part in get_args(kind) if part is not NoneType]
    return some[0] if isinstance(kind, UnionType) and len(some) == 1 else kind


def _patterns(method: str, parameter: str, given: Any) -> Patterns:
    patterns = (given,) if isinstance(given, str) else given
    if not isinstance(patterns, list | tuple) or not all(isinstance(p, str) for p in patterns):
        raise InputError(
            f"parameter {parameter} of {method}: expected a list of patterns such as"
            f" '*.mlp.*', not {given!r}"
        )
    return tuple(patterns)
