"""Which tasks there are and how lm-eval gets them: one YAML file each beside this one.

Names are listed without lm-eval. A task of the package reads its data from the files that its
YAML names, straight into memory: no network, no cache folder, nothing that two processes share.
"""

from __future__ import annotations

import hashlib
import json
import logging
import random
import re
from collections.abc import Iterator
from contextlib import contextmanager
from functools import lru_cache
from importlib.metadata import version
from importlib.util import find_spec
from pathlib import Path
from typing import Any

from dllm_sweep.errors import InputError, UnknownName
from dllm_sweep.shipping import local
from dllm_sweep.spec import TaskSpec

FOLDER = Path(__file__).parent
_SHUFFLE_SEED = 0
_FEWSHOT_SEED = 1234

_DATA_FILE = re.compile(r"[\w./-]+\.jsonl?\b")
_UNCUT = re.compile(r"^(class|group): ", re.MULTILINE)
_MEANS_BY_DEFAULT = frozenset({"generate_until", "multiple_choice"})
"""Output types whose metrics are means where the task names none."""
_MEANS = frozenset({"acc", "acc_norm", "exact_match"})
"""Metrics that lm-eval averages where the task does not say how to aggregate."""
_FUNCTION = re.compile(r"!function (\w+)\.")


def task_names() -> tuple[str, ...]:
    """Names of the package's own tasks, sorted; any task of lm-eval can be named, too."""
    return tuple(sorted(path.stem for path in FOLDER.glob("*.yaml")))


def task_file(name: str) -> Path | None:
    """Find the YAML file of a task of the package or of the user's own; None if it has none.

    Args:
        name: A task's name, or a path that ends in `.yaml`.
    """
    if name in task_names():
        return FOLDER / f"{name}.yaml"
    path = local(name)
    return path if path.suffix == ".yaml" and path.is_file() else None


def task_files(path: Path) -> tuple[Path, ...]:
    """List a task's YAML file with the data and the Python files beside it that it names."""
    text = path.read_text(encoding="utf-8")
    named = {path.name, *_DATA_FILE.findall(text)}
    named |= {f"{module}.py" for module in _FUNCTION.findall(text)}
    return tuple(path.parent / name for name in sorted(named) if (path.parent / name).is_file())


def task_digest(name: str) -> str:
    """Say what a task's scores depend on apart from the model.

    Returns:
        SHA-256 over the task's YAML file, its data and the Python files that it names; for a task
        of lm-eval's own, lm-eval's version.
    """
    path = task_file(name)
    if path is None:
        return f"lm-eval {version('lm-eval')}"
    digest = hashlib.sha256()
    for file in task_files(path):
        digest.update(f"{file.relative_to(path.parent)}\0".encode())
        digest.update(hashlib.sha256(file.read_bytes()).digest())
    return digest.hexdigest()


def is_lm_eval_task(name: str) -> bool:
    """Say whether lm-eval has a task, group or tag of this name; without lm-eval none has."""
    try:
        return name in _lm_eval_tasks().all_tasks
    except ImportError:
        return False


def may_be_cut(name: str) -> bool:
    """Say, from a task's file alone, whether shards of its items merge to the whole task's scores.

    They do where every metric is the mean of the items' scores. What cannot be told without
    lm-eval (a group, a tag, a task in Python) is not cut.
    """
    path = task_file(name) or _lm_eval_file(name)
    text = "" if path is None else _with_includes(path)
    if not re.search(r"^task: *[\w/.'\"-]+ *$", text, re.MULTILINE) or _UNCUT.search(text):
        return False
    kind = re.search(r"^output_type: *(\w+)", text, re.MULTILINE)
    listed = text.partition("metric_list:")[2]
    if not listed:
        return kind is not None and kind[1] in _MEANS_BY_DEFAULT
    metrics = re.split(r"\bmetric:", listed)[1:]
    return all(_is_mean(metric) for metric in metrics)


def _is_mean(metric: str) -> bool:
    """Whether an entry of `metric_list`, from behind `metric:` on, is a mean of item scores."""
    how = re.search(r"\baggregation: *([^\s,}]+)", metric)
    name = re.match(r" *[\"']?([\w.]+)", metric)
    return how[1] == "mean" if how else name is not None and name[1] in _MEANS


def _with_includes(path: Path) -> str:
    text = path.read_text(encoding="utf-8")
    found = re.search(r"^include: *(\S+)", text, re.MULTILINE)
    base = path.parent / found[1].strip("'\"") if found else path
    if base == path or not base.is_file():
        return text
    # The file's own keys go before those of the file that it includes.
    inherited = _with_includes(base)
    return text + (inherited if "metric_list:" not in text else inherited.split("metric_list:")[0])


@lru_cache
def _lm_eval_file(name: str) -> Path | None:
    """Find the YAML file of a task of lm-eval's own, without importing lm-eval; None if unsure."""
    found = find_spec("lm_eval")
    if found is None or found.origin is None or not re.fullmatch(r"[\w.-]+", name):
        return None
    folder = Path(found.origin).parent / "tasks"
    files = {*folder.glob(f"**/{name}.yaml"), *folder.glob(f"**/{name}/*.yaml")}
    named = re.compile(rf"^task: *[\"']?{re.escape(name)}[\"']? *$", re.MULTILINE)
    fits = [path for path in files if named.search(path.read_text(encoding="utf-8"))]
    return fits[0] if len(fits) == 1 else None


def load_tasks(spec: TaskSpec) -> dict[str, Any]:
    """Build a task as lm-eval's `evaluate` takes it: `tasks` and `groups` by name.

    Raises:
        UnknownName: If there is no such task.
        InputError: If the task or its data cannot be loaded.
    """
    path = task_file(spec.name)
    with _seeded():
        try:
            loaded = _load_by_name(spec.name) if path is None else _load_file(path, spec.name)
        except (InputError, MemoryError):
            raise
        except Exception as error:
            reason = next(iter(str(error).splitlines()), "")
            raise InputError(
                f"task {spec.name!r} cannot be loaded: {type(error).__name__}: {reason}"
            ) from error
    for task in loaded["tasks"].values():
        _set_shots(task, spec)
    return loaded


def _load_file(path: Path, name: str) -> dict[str, Any]:
    from lm_eval.api.task import ConfigurableTask
    from lm_eval.tasks._yaml_loader import load_yaml

    config = {**load_yaml(path), "task": name}
    files = (config.get("dataset_kwargs") or {}).get("data_files")
    if config.get("dataset_path") == "json" and isinstance(files, dict):
        splits = {split: _read_rows(path.parent / file) for split, file in files.items()}
        config |= {"dataset_kwargs": None, "custom_dataset": _InMemory(splits)}
    return {"tasks": {name: ConfigurableTask(config=config)}, "groups": {}}


class _InMemory:
    """Hands rows that were read already to lm-eval as a data set."""

    def __init__(self, splits: dict[str, list[dict[str, Any]]]) -> None:
        self._splits = splits

    def __call__(self, **_: Any) -> dict[str, Any]:
        from datasets import Dataset

        return {split: Dataset.from_list(rows) for split, rows in self._splits.items()}


def _read_rows(path: Path) -> list[dict[str, Any]]:
    try:
        lines = path.read_text(encoding="utf-8").splitlines()
        return [json.loads(line) for line in lines if line.strip()]
    except (OSError, ValueError) as error:
        raise InputError(f"{path} cannot be read as JSON lines: {error}") from error


def _load_by_name(name: str) -> dict[str, Any]:
    if not is_lm_eval_task(name):
        raise UnknownName("task", name, task_names(), "any task of lm-eval")
    loaded: dict[str, Any] = _lm_eval_tasks().load([name])
    if len(loaded["tasks"]) > 1 and name not in loaded["groups"]:
        members = ", ".join(sorted(loaded["tasks"]))
        raise InputError(f"task {name!r} is only a tag: name its tasks one by one: {members}")
    return loaded


@lru_cache(maxsize=1)
def _lm_eval_tasks() -> Any:
    # Reading the index of thousands of files takes seconds: once a process.
    from lm_eval.tasks import TaskManager

    return TaskManager()


def _set_shots(task: Any, spec: TaskSpec) -> None:
    own = task.get_config("num_fewshot")
    task.set_config(key="num_fewshot", value=(own or 0) if spec.shots is None else spec.shots)
    task.set_fewshot_seed(seed=_FEWSHOT_SEED)


@contextmanager
def _seeded() -> Iterator[None]:
    # Some tasks shuffle their choices with the global generator while they are loaded.
    import numpy

    level = logging.getLogger("lm_eval").level
    states = random.getstate(), numpy.random.get_state()
    random.seed(_SHUFFLE_SEED)
    numpy.random.seed(_FEWSHOT_SEED)
    logging.getLogger("lm_eval").setLevel(logging.ERROR)
    try:
        yield
    finally:
        random.setstate(states[0])
        numpy.random.set_state(states[1])
        logging.getLogger("lm_eval").setLevel(level)
