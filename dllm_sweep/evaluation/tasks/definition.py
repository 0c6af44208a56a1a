"""What a task's YAML file says, read without lm-eval: enough to check, digest and cut a task."""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from functools import lru_cache
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import yaml

from dllm_sweep.errors import InputError
from dllm_sweep.evaluation.tasks.facts import FACTS
from dllm_sweep.shipping import local

FOLDER = Path(__file__).parent
_STOCK = {
    "winogrande": "winogrande/default.yaml",
    "piqa": "piqa/piqa.yaml",
    "arc_challenge": "arc/arc_challenge.yaml",
    "arc_easy": "arc/arc_easy.yaml",
    "hellaswag": "hellaswag/hellaswag.yaml",
    "mmlu": "mmlu/default/_mmlu.yaml",
    "gsm8k": "gsm8k/gsm8k.yaml",
    "minerva_math": "benchmarks/minerva_math.yaml",
    **{name: f"mmlu/default/{name}.yaml" for name, _ in FACTS["mmlu"].members},
    **{name: f"minerva_math/{name}.yaml" for name, _ in FACTS["minerva_math"].members},
}
"""Where lm-eval 0.4.13 keeps the tasks of the study that load without a network."""


class Function(str):
    """What stood behind `!function`: a module beside the file and a name in it."""


@dataclass(frozen=True, kw_only=True)
class Definition:
    """A task or a group as its file defines it.

    Attributes:
        name: The task's name, or its file's path as the user named it.
        path: Its YAML file.
        config: What the file says, with what it includes; functions are names only.
        stock: Whether it is one of the study's tasks in lm-eval's own wording.
        members: The tasks of a group; empty for a single task.
    """

    name: str
    path: Path
    config: Mapping[str, Any]
    stock: bool = False
    members: tuple[Definition, ...] = ()

    @property
    def single(self) -> tuple[Definition, ...]:
        """The tasks to be run: a group's members, or the task itself."""
        return self.members or (self,)

    @property
    def evaluated_split(self) -> str:
        """The split whose items are scored.

        Raises:
            InputError: If the file names none.
        """
        split = self.config.get("test_split") or self.config.get("validation_split")
        if not split:
            raise InputError(f"{self.path}: no test_split and no validation_split")
        return str(split)

    @property
    def example_split(self) -> str | None:
        """The split that examples in prompts come from; None if they stand in the task itself."""
        settings = self.config.get("fewshot_config") or {}
        named = settings.get("split") or self.config.get("fewshot_split")
        if not named and settings.get("samples") is not None:
            return None
        usual = self.config.get("training_split") or self.config.get("validation_split")
        return str(named or usual or self.evaluated_split)

    def example_rows(self, shots: int) -> int:
        """Rows that the examples' split must have: lm-eval may draw one more than it shows.

        It does so where it takes the examples' split for the one that is scored, to leave out the
        item itself; two that the file does not name are alike to it.
        """
        settings = self.config.get("fewshot_config") or {}
        named = settings.get("split") or self.config.get("fewshot_split")
        first = settings.get("sampler") == "first_n"
        return shots + int(named == self.config.get("test_split") and not first)

    @property
    def data_set(self) -> tuple[str, str | None]:
        """Hub id of the data set (or lm-eval's name of a file format), and its subset."""
        subset = self.config.get("dataset_name")
        return str(self.config.get("dataset_path") or ""), None if subset is None else str(subset)

    @property
    def own_rows(self) -> Mapping[str, Path]:
        """Files by split that the task's file itself names, as JSON lines beside it; else none."""
        files = (self.config.get("dataset_kwargs") or {}).get("data_files")
        names = files if isinstance(files, Mapping) else {}
        mine = self.data_set[0] == "json" and all(isinstance(one, str) for one in names.values())
        return {split: self.path.parent / file for split, file in names.items()} if mine else {}

    @property
    def metric_names(self) -> tuple[str, ...] | None:
        """The metrics that the task or group reports; None if only running it tells."""
        if self.members:
            listed = self.config.get("aggregate_metric_list") or []
            return None if isinstance(listed, dict) else _names(listed, [])
        return _names(self.config.get("metric_list") or [], self.config.get("filter_list") or [])

    def shots(self, asked: int | None) -> int:
        """Number of examples in the prompt: as asked, else the task's own."""
        return int(self.config.get("num_fewshot") or 0) if asked is None else asked


def task_names() -> tuple[str, ...]:
    """Names of the package's own tasks, sorted; any task of lm-eval can be named, too."""
    return tuple(sorted(path.stem for path in FOLDER.glob("*.yaml")))


def known_tasks() -> dict[str, str]:
    """The package's own tasks and those of the study, sorted, each with where its rows lie."""
    stock = {name for name in FACTS if stock_file(name) is not None}
    return {name: _rows_of(name) for name in sorted({*task_names(), *stock})}


def _rows_of(name: str) -> str:
    found = find(name)
    if found is None or found.single[0].own_rows:
        return "with the package"
    return f"hub ({found.single[0].data_set[0]}), or a folder named by `data`"


def task_file(name: str) -> Path | None:
    """Find the YAML file of a task of the package or of the user's own; None if it has none.

    Args:
        name: A task's name, or a path that ends in `.yaml`.
    """
    if name in task_names():
        return FOLDER / f"{name}.yaml"
    path = local(name)
    return path if path.suffix == ".yaml" and path.is_file() else None


def stock_file(name: str) -> Path | None:
    """Where lm-eval keeps one of the study's tasks; None for others and without lm-eval."""
    folder = _lm_eval_folder()
    path = folder / _STOCK[name] if folder is not None and name in _STOCK else None
    return path if path is not None and path.is_file() else None


@lru_cache
def lm_eval_file(name: str) -> Path | None:
    """Find the YAML file of any task of lm-eval without importing lm-eval; None if unsure."""
    folder = _lm_eval_folder()
    if folder is None or not re.fullmatch(r"[\w.-]+", name):
        return None
    files = {*folder.glob(f"**/{name}.yaml"), *folder.glob(f"**/{name}/*.yaml")}
    named = re.compile(rf"^task: *[\"']?{re.escape(name)}[\"']? *$", re.MULTILINE)
    fits = [path for path in files if named.search(path.read_text(encoding="utf-8"))]
    return fits[0] if len(fits) == 1 else None


def find(name: str, *, anywhere: bool = False) -> Definition | None:
    """Read the definition of a task of the package, of the study, or of the user's own.

    Args:
        name: A task's or group's name, or the path of a YAML file.
        anywhere: Look among all tasks of lm-eval that are written in YAML, too.

    Raises:
        InputError: If its file, or that of a group's member, cannot be read.
    """
    path = task_file(name)
    stock = None if path is not None else stock_file(name)
    if path is None and stock is None and anywhere:
        path = lm_eval_file(name)
    place = path or stock
    if place is None:
        return None
    config = read(place)
    if "class" in config:
        return None
    members = tuple(_members(name, place, config)) if "group" in config else ()
    return Definition(
        name=name, path=place, config=config, stock=stock is not None, members=members
    )


def read(path: Path) -> dict[str, Any]:
    """Read a task's YAML file, with what it includes.

    Raises:
        InputError: If it cannot be read, or is no mapping.
    """
    merged: dict[str, Any] = {}
    for file in reversed(list(with_includes(path))):
        merged |= _load(file)
    merged.pop("include", None)
    return merged


def with_includes(path: Path) -> Iterator[Path]:
    """The file and those that it includes, the nearest first."""
    yield path
    included = _load(path).get("include") or []
    # Of several, the last one's word counts.
    for name in reversed(included if isinstance(included, list) else [included]):
        base = path.parent / str(name)
        if base != path:
            yield from with_includes(base)


def _members(group: str, path: Path, config: Mapping[str, Any]) -> Iterator[Definition]:
    if group in FACTS:
        names: list[Any] = [name for name, _ in FACTS[group].members]
    else:
        listed = config.get("task")
        names = listed if isinstance(listed, list) else [listed]
    for name in names:
        if not isinstance(name, str):
            raise InputError(f"{path}: a group lists its tasks by name, not as {name!r}")
        beside = path.parent / f"{name}.yaml"
        found = _beside(name, beside) if beside.is_file() and group not in FACTS else find(name)
        if found is None or found.members:
            raise InputError(f"{path}: {name!r} is no task that a group can have")
        yield found


def _beside(name: str, path: Path) -> Definition:
    return Definition(name=name, path=path, config=read(path))


def _names(
    metrics: list[Mapping[str, Any]], filters: list[Mapping[str, Any]]
) -> tuple[str, ...] | None:
    """Each metric, behind it the filter where there are several."""
    names = [one.get("metric") for one in metrics]
    if not names or any(isinstance(name, Function) for name in names):
        return None
    if len(filters) < 2:
        return tuple(map(str, names))
    return tuple(f"{name},{one['name']}" for one in filters for name in names)


def _lm_eval_folder() -> Path | None:
    found = find_spec("lm_eval")
    return None if found is None or found.origin is None else Path(found.origin).parent / "tasks"


class _Loader(getattr(yaml, "CSafeLoader", yaml.SafeLoader)):  # type: ignore[misc]
    """YAML whose `!function` stays a name: nothing is imported."""


_Loader.add_multi_constructor("!", lambda loader, suffix, node: Function(node.value))


def _load(path: Path) -> dict[str, Any]:
    try:
        stamp = path.stat().st_mtime_ns
        loaded = _parsed(path, stamp)
    except (OSError, ValueError, yaml.YAMLError) as error:
        reason = " ".join(str(error).split())
        raise InputError(f"task file {path} cannot be read: {reason}") from error
    if not isinstance(loaded, dict):
        raise InputError(f"task file {path} is no mapping of names to values")
    return loaded


@lru_cache(maxsize=256)
def _parsed(path: Path, stamp: int) -> Any:
    return yaml.load(path.read_bytes(), Loader=_Loader)
