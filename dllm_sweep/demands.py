"""Which resources the trials of each model of a sweep ask for, by the sweep file's text."""

from __future__ import annotations

from dataclasses import dataclass

from dllm_sweep.sweep_entries import Resources


@dataclass(frozen=True, kw_only=True)
class SweepResources:
    """What a sweep file says about resources.

    Attributes:
        default: For the whole sweep.
        models: Names of models as written, with what is written for their trials.
    """

    default: Resources
    models: tuple[tuple[str, Resources], ...] = ()

    def of(self, model: str) -> Resources:
        """The resources of a trial of `model`, which is named as the store names it."""
        own = (found for name, found in self.models if _is_called(model, name))
        return next(own, Resources()).before(self.default)


def resources_of(text: str) -> SweepResources:
    """Read the resources of a sweep file's text; the rest of it is not checked again.

    A sweep may run where its models, methods and texts are not.
    """
    from dllm_sweep.yaml_places import load

    data = load(text).data
    written = data if isinstance(data, dict) else {}
    entries = written.get("models")
    listed = entries if isinstance(entries, list) else [entries]
    models = [entry for entry in listed if isinstance(entry, dict) and entry.get("resources")]
    return SweepResources(
        default=Resources.model_validate(written.get("resources") or {}),
        models=tuple(
            (_name_of(entry), Resources.model_validate(entry["resources"])) for entry in models
        ),
    )


def _name_of(entry: dict[str, str]) -> str:
    revision = entry.get("revision")
    return entry["name"] if revision is None else f"{entry['name']}@{revision}"


def _is_called(model: str, written: str) -> bool:
    """Whether a model has been written so: hub ids gain a commit, folders the place of the file."""
    name = written.removeprefix("./").rstrip("/")
    return model == name or model.partition("@")[0] == name or model.endswith(f"/{name}")
