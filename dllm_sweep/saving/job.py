"""Quantizing one model into a folder, without a sweep: what is asked for, checked, and done."""

from __future__ import annotations

import time
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Protocol

import torch
from pydantic import ValidationError

from dllm_sweep import catalog
from dllm_sweep.catalog import ModelFacts
from dllm_sweep.errors import InputError
from dllm_sweep.methods import quantize
from dllm_sweep.methods.base import Workspace
from dllm_sweep.models import load_model
from dllm_sweep.models.load import DTYPES
from dllm_sweep.overrides import Setting, overridden, read_setting
from dllm_sweep.saving import compressed_tensors
from dllm_sweep.saving.folder import OWN_LAYOUT, SavedModel, free_folder, save_quantized
from dllm_sweep.spec import FULL_PRECISION_METHOD, CalibrationSpec, ModelRef, QuantScheme
from dllm_sweep.sweep_entries import Entry, MethodEntry, ModelEntry, Seed
from dllm_sweep.sweep_file import SchemeName
from dllm_sweep.sweep_problems import explain
from dllm_sweep.sweep_texts import CalibrationEntry
from dllm_sweep.yaml_places import Document, Place

OFFLOADED_DTYPE = "bfloat16"
"""The type of weights that stay on the CPU, where nothing else is said."""


class Display(Protocol):
    """Shows what is being done."""

    def note(self, text: str) -> None:
        """Say what happens now."""

    def block(self, done: int, total: int) -> None:
        """Say that a block is quantized."""


class Request(Entry):
    """What is asked for, with the keys of a sweep file."""

    model: ModelEntry
    method: MethodEntry
    scheme: SchemeName
    calibration: CalibrationEntry = CalibrationEntry()
    seed: Seed = 0


@dataclass(frozen=True, kw_only=True)
class Job:
    """A quantization that planning found possible.

    Attributes:
        model: The checkpoint with its digest.
        method: The name by which it loads.
        parameters: Of the method, where they differ from its defaults.
        scheme: Bit-widths and grids.
        calibration: What the method sees; None if it needs nothing.
        seed: Of its own random choices.
        layout: Of the folder.
    """

    model: ModelRef
    method: str
    parameters: dict[str, Any]
    scheme: QuantScheme
    calibration: CalibrationSpec | None
    seed: int
    layout: str


@dataclass(frozen=True, kw_only=True)
class Machine:
    """Where a job runs.

    Attributes:
        devices: As `load_model` takes them; none is the GPU if there is one.
        dtype: As `load_model` takes it.
        offload: Keep the weights on the CPU; blocks visit the device.
    """

    devices: tuple[str, ...] = ()
    dtype: str | None = None
    offload: bool = False


@dataclass(frozen=True, kw_only=True)
class Outcome:
    """What a job gave.

    Attributes:
        saved: The folder.
        linears: How many were quantized.
        seconds: How long quantizing took, without loading and writing.
        warnings: What the user should know.
    """

    saved: SavedModel
    linears: int
    seconds: float
    warnings: tuple[str, ...]


def plan_job(
    *,
    model: str,
    method: str,
    scheme: str,
    settings: Sequence[str] = (),
    family: str | None = None,
    seed: int = 0,
    layout: str = OWN_LAYOUT,
) -> Job:
    """Check all that can be known before a model is loaded.

    Args:
        model: As in a sweep file.
        method: The same; a file is looked for in the working folder.
        scheme: The same.
        settings: `NAME=VALUE` for a parameter, `calibration.KEY=VALUE` for the calibration.
        family: Of the model; None finds it.
        seed: Of the method's own random choices.
        layout: Of the folder.

    Raises:
        InputError: If something does not exist, or does not go together.
    """
    named = {"name": model} if family is None else {"name": model, "family": family}
    data = {"model": named, "method": {"name": method}, "scheme": scheme, "seed": seed}
    options: dict[Place, str] = {
        ("model",): f"--model {model}",
        ("method",): f"--method {method}",
        ("scheme",): f"--scheme {scheme}",
    }
    document = Document(data, {}, options)
    document = overridden(document, [_placed(read_setting(text)) for text in settings])
    folder = Path.cwd()
    try:
        request = Request.model_validate(document.data, context={"folder": folder})
    except ValidationError as error:
        raise InputError("; ".join(explain(error, Request, document))) from None
    location, parameters = request.method.location(folder), request.method.parameters
    built = catalog.build_method(location, parameters)
    job = Job(
        model=request.model.ref(folder),
        method=location,
        parameters=parameters,
        scheme=QuantScheme.parse(request.scheme),
        calibration=request.calibration.text(folder) if built.needs_calibration else None,
        seed=request.seed,
        layout=layout,
    )
    reason = _refusal(job, built)
    if reason is not None:
        raise InputError(f"{method} cannot make this of {model}: {reason}")
    return job


def _placed(setting: Setting) -> Setting:
    """Find the key of `Request` that a setting is meant for."""
    first, *below = setting.place
    if first != "calibration":
        return replace(setting, place=("method", *setting.place))
    if not below and isinstance(setting.value, str):
        return replace(setting, place=("calibration", "source"))
    return setting


def _refusal(job: Job, built: Any) -> str | None:
    """Say why a job cannot be done, as far as that is known without the model."""
    facts = catalog.facts_of(job.model)
    if facts.quantized is not None:
        return f"it is quantized already ({facts.quantized})"
    if job.method == FULL_PRECISION_METHOD:
        return f"{job.method} quantizes nothing"
    own = job.layout == OWN_LAYOUT
    refusals = (
        built.refusal(job.scheme),
        catalog.misfit(built, job.scheme, facts),
        _odd_groups(job),
        _unreadable(job.calibration, facts),
        None if own else compressed_tensors.early_refusal(job.method, built, job.scheme),
    )
    return next((reason for reason in refusals if reason is not None), None)


def _unreadable(text: CalibrationSpec | None, facts: ModelFacts) -> str | None:
    if text is None:
        return None
    if facts.max_length is not None and text.length > facts.max_length:
        return f"calibration texts of {text.length} tokens, and it reads {facts.max_length}"
    return catalog.calibration_refusal(text, facts)


def _odd_groups(job: Job) -> str | None:
    size = job.scheme.group_size
    if size is None or any("modules" in key for key in job.parameters):
        return None
    odd = [str(inputs) for inputs in catalog.input_sizes(job.model) if inputs % size]
    return f"groups of {size} do not divide {' and '.join(odd)} inputs" if odd else None


def run_job(job: Job, out: str | Path, machine: Machine, display: Display) -> Outcome:
    """Load, quantize and save.

    Args:
        job: What `plan_job` gave.
        out: The new folder.
        machine: Where the work is done.
        display: Who is told.

    Raises:
        InputError: If the folder is in the way, or a device or the model cannot be used.
        QuantizationError: If the method cannot do it.
        DiskFull: If the folder cannot be written.
    """
    target = free_folder(out)
    visited = _visited(machine) if machine.offload else None
    devices = None if not machine.devices else [_device(one) for one in machine.devices]
    display.note(f"loading {job.model}")
    model = load_model(
        str(job.model),
        device="cpu" if machine.offload else devices,
        dtype=_dtype(machine),
        family=job.model.family,
    )
    display.note(f"quantizing with {Path(job.method).name} to {job.scheme}")
    started = time.monotonic()
    quantize(
        model,
        method=job.method,
        scheme=job.scheme,
        calibration=job.calibration,
        seed=job.seed,
        workspace=Workspace(progress=display.block, device=visited),
        **job.parameters,
    )
    seconds = time.monotonic() - started
    display.note(f"writing {out}")
    saved = save_quantized(model, target, layout=job.layout)
    report = model.quantization_report
    return Outcome(
        saved=saved,
        linears=sum(row.weights > 0 for row in report.modules),
        seconds=seconds,
        warnings=report.warnings,
    )


def _dtype(machine: Machine) -> str | None:
    if machine.dtype is not None and machine.dtype not in DTYPES:
        raise InputError(f"dtype {machine.dtype!r} is not supported: one of {', '.join(DTYPES)}")
    return machine.dtype or (OFFLOADED_DTYPE if machine.offload else None)


def _visited(machine: Machine) -> torch.device:
    """The device that blocks visit, one by one."""
    if len(machine.devices) > 1:
        raise InputError("offloaded blocks visit one device: name one")
    device = _device(machine.devices[0] if machine.devices else "cuda")
    if device.type == "cpu":
        raise InputError("offloading is for a GPU that the model does not fit: name a GPU")
    return device


def _device(text: str) -> torch.device:
    try:
        device = torch.device(text)
    except RuntimeError as error:
        raise InputError(f"device {text!r} is not known: write cpu, cuda or cuda:1") from error
    if device.type == "cuda" and (device.index or 0) >= torch.cuda.device_count():
        raise InputError(f"device {text!r} is not there: {torch.cuda.device_count()} GPUs are seen")
    return device
