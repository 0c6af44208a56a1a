"""From a task's definition and rows to what lm-eval evaluates."""

from __future__ import annotations

import logging
import random
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager, redirect_stderr, redirect_stdout
from functools import lru_cache
from importlib.metadata import PackageNotFoundError, version
from importlib.util import find_spec
from io import StringIO
from typing import Any

from dllm_sweep.errors import InputError, UnknownName
from dllm_sweep.evaluation.tasks import hub
from dllm_sweep.evaluation.tasks.data import Rows, load_rows, present, read_rows
from dllm_sweep.evaluation.tasks.definition import FOLDER, Definition, find, known_tasks
from dllm_sweep.spec import TaskSpec

_SHUFFLE_SEED = 0
_FEWSHOT_SEED = 1234
_SPLITS = ("training_split", "validation_split", "test_split", "fewshot_split")
_NO_TASK_FIELDS = ("tag", "group", "task_list")
_MATH_PACKAGES = (("math-verify", ""), ("antlr4-python3-runtime", "4.11"))
"""What lm-eval's `minerva_math` imports beside its own packages, and the version it insists on."""


def load_tasks(spec: TaskSpec) -> dict[str, Any]:
    """Build a task as lm-eval's `evaluate` takes it: `tasks` and `groups` by name.

    Raises:
        UnknownName: If there is no such task.
        InputError: If the task or its data cannot be loaded.
    """
    with _seeded(), _without_bars(), _telling(spec.name):
        loaded = _load(spec)
    for task in loaded["tasks"].values():
        _set_shots(task, spec)
    return loaded


def is_lm_eval_task(name: str) -> bool:
    """Say whether lm-eval has a task, group or tag of this name; without lm-eval none has."""
    try:
        return name in lm_eval_tasks().all_tasks
    except ImportError:
        return False


@lru_cache(maxsize=1)
def lm_eval_tasks() -> Any:
    """lm-eval's index of its own tasks; reading its thousands of files takes seconds."""
    from lm_eval.tasks import TaskManager

    return TaskManager()


def check_task_data(spec: TaskSpec) -> None:
    """Refuse, before any model is loaded, a task whose data or packages are not at hand, or a
    metric that it does not have.

    Local data are read and their fields checked; a user's own task with local data makes its first
    prompt; of a data set on the hub it is asked whether it is in this machine's cache or reachable.
    Tasks of lm-eval that are written in Python cannot be looked into.

    Raises:
        UnknownName: If the task has no metric of the name that is to stand for it.
        InputError: In one line: what is missing and where it would have to be.
    """
    definition = find(spec.name, anywhere=True)
    if definition is None:
        return
    if definition.members and not definition.config.get("aggregate_metric_list"):
        raise InputError(
            f"task {spec.name!r} is a group without a score of its own: name its tasks, or give it"
            " an aggregate_metric_list"
        )
    names = definition.metric_names
    if spec.metric is not None and names is not None and spec.metric not in names:
        raise UnknownName(f"metric of task {spec.name!r}", spec.metric, names)
    for one in present(definition, spec.data):
        _check_packages(one)
        if not (one.data_set[0] or "custom_dataset" in one.config):
            raise InputError(f"{one.path}: no dataset_path")
        if _rows(one, spec) is None:
            hub.check_data_set(one.name, *one.data_set)
        elif one.path.parent != FOLDER and not one.stock and find_spec("lm_eval") is not None:
            _try_prompt(one, spec)


def _try_prompt(definition: Definition, spec: TaskSpec) -> None:
    """Refuse a user's own task whose file lm-eval cannot make a first prompt of."""
    said = StringIO()
    with redirect_stdout(said), redirect_stderr(said), _seeded(), _telling(definition.name):
        task = _build(definition, spec)
        _set_shots(task, spec)
        task.build_all_requests(limit=1)


def _load(spec: TaskSpec) -> dict[str, Any]:
    definition = find(spec.name, anywhere=spec.data is not None)
    if definition is None:
        return _load_by_name(spec)
    tasks = {one.name: _build(one, spec) for one in present(definition, spec.data)}
    groups = {definition.name: _group(definition, tasks)} if definition.members else {}
    return {"tasks": tasks, "groups": groups}


def _build(definition: Definition, spec: TaskSpec) -> Any:
    from lm_eval.api.task import ConfigurableTask
    from lm_eval.tasks._yaml_loader import load_yaml

    _check_packages(definition)
    rows = _rows(definition, spec)
    if rows is None:
        hub.check_data_set(definition.name, *definition.data_set)
    config = {**load_yaml(definition.path), "task": definition.name}
    for field in _NO_TASK_FIELDS:
        config.pop(field, None)
    if callable(config.get("process_docs")):
        config["process_docs"] = _once(config["process_docs"])
    if rows is not None:
        config |= {"dataset_kwargs": None, "custom_dataset": _InMemory(rows)}
    if spec.data is not None and rows is not None:
        # lm-eval looks up every split that is named.
        config |= {split: None for split in _SPLITS if config.get(split) not in rows}
    return ConfigurableTask(config=config)


def _rows(definition: Definition, spec: TaskSpec) -> dict[str, Rows] | None:
    """Rows by split from local files; None if the data are on the hub."""
    if definition.own_rows:
        return {split: read_rows(path) for split, path in definition.own_rows.items()}
    if spec.data is not None:
        return load_rows(definition, spec.data, definition.shots(spec.shots))
    return None


def _group(definition: Definition, tasks: Mapping[str, Any]) -> Any:
    from lm_eval.api.group import Group

    fields = ("group_alias", "aggregate_metric_list", "metadata")
    config = {field: definition.config.get(field) for field in fields}
    group = Group.from_config({"group": definition.name, "task": list(tasks), **config})
    for task in tasks.values():
        group.add(task)
    return group


def _check_packages(definition: Definition) -> None:
    if not (definition.stock and definition.name.startswith("minerva_math")):
        return
    for package, wanted in _MATH_PACKAGES:
        found = _version_of(package)
        if found is None or not found.startswith(wanted):
            needed = " and ".join(" ".join(one).strip() for one in _MATH_PACKAGES)
            raise InputError(
                f"task {definition.name!r} needs the packages {needed}; {package} is"
                f" {found or 'missing'}: pip install 'lm-eval[math]'"
            )


def _version_of(package: str) -> str | None:
    try:
        return version(package)
    except PackageNotFoundError:
        return None


class _InMemory:
    """Hands rows that were read already to lm-eval as a data set."""

    def __init__(self, splits: Mapping[str, Rows]) -> None:
        self._splits = splits

    def __call__(self, **_: Any) -> dict[str, Any]:
        from datasets import Dataset

        return {split: Dataset.from_list(rows) for split, rows in self._splits.items()}


def _once(process: Callable[[Any], Any]) -> Callable[[Any], Any]:
    """Keep what a task makes of its rows: lm-eval asks for it again whenever it needs the items."""
    done: dict[int, tuple[Any, Any]] = {}

    def processed(rows: Any) -> Any:
        if id(rows) not in done:
            done[id(rows)] = rows, process(rows)
        return done[id(rows)][1]

    return processed


def _load_by_name(spec: TaskSpec) -> dict[str, Any]:
    name = spec.name
    if not is_lm_eval_task(name):
        raise UnknownName("task", name, known_tasks(), "any task of lm-eval")
    if spec.data is not None:
        raise InputError(f"task {name!r} takes no local data: lm-eval loads it in its own way")
    loaded: dict[str, Any] = lm_eval_tasks().load([name])
    if len(loaded["tasks"]) > 1 and name not in loaded["groups"]:
        members = ", ".join(sorted(loaded["tasks"]))
        raise InputError(f"task {name!r} is only a tag: name its tasks one by one: {members}")
    return loaded


def _set_shots(task: Any, spec: TaskSpec) -> None:
    own = task.get_config("num_fewshot")
    task.set_config(key="num_fewshot", value=(own or 0) if spec.shots is None else spec.shots)
    task.set_fewshot_seed(seed=_FEWSHOT_SEED)


@contextmanager
def _telling(name: str) -> Iterator[None]:
    """Say of whatever lm-eval and `datasets` raise which task it was, in one line."""
    try:
        yield
    except (InputError, MemoryError):
        raise
    except Exception as error:
        reason = f"{type(error).__name__}: {next(iter(str(error).splitlines()), '')}".rstrip(": ")
        raise InputError(f"task {name!r} cannot be loaded: {reason}") from error


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


@contextmanager
def _without_bars() -> Iterator[None]:
    """Keep the progress bars of `datasets` out of the worker's log."""
    import datasets

    shown = not datasets.are_progress_bars_disabled()
    datasets.disable_progress_bars()
    try:
        yield
    finally:
        if shown:
            datasets.enable_progress_bars()
