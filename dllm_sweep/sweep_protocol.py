"""From a sweep file to the protocol of each of its models.

What is written of a task goes before what the whole file says, that before the preset, and that
before what is usual for the model's family.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from typing import TYPE_CHECKING

from dllm_sweep import catalog, presets
from dllm_sweep.errors import InputError
from dllm_sweep.presets.base import TaskSettings
from dllm_sweep.spec import CalibrationSpec, DecodingSpec, ProtocolSpec, TaskSpec
from dllm_sweep.sweep_problems import Finding
from dllm_sweep.sweep_tasks import DecodingEntry, TaskEntry, data_folder, task_location

if TYPE_CHECKING:
    from dllm_sweep.catalog import ModelFacts
    from dllm_sweep.sweep_entries import ModelEntry
    from dllm_sweep.sweep_file import SweepFile
    from dllm_sweep.yaml_places import Place

EMBEDDED_TEXT = CalibrationSpec(source="tiny-text", samples=32, length=128)
"""What presets calibrate the package's own models on: the text that they were trained on, and so
little of it that it takes seconds on a CPU."""
EMBEDDED_WINDOW = DecodingSpec(gen_length=32, steps=16)
"""How long presets let the package's own models write, and in how many steps: their answers are a
line long, and a study's hundreds of steps would take hours on a CPU to write nothing more."""
EMBEDDED_DRAWS = 16
"""The most Monte-Carlo draws that presets ask of them."""
_EMBEDDED_DTYPE = "float32"
"""The package's own models are small, and made to run on CPUs."""
_DTYPE = "bfloat16"


def protocol_of(file: SweepFile, model: ModelEntry) -> ProtocolSpec:
    """The evaluation that all trials of a model share, its tasks sorted by name."""
    maker = _Maker(file, model)
    outliers = None if file.outliers is None else file.outliers.spec(file.folder)
    return ProtocolSpec(
        tasks=tuple(sorted(maker.tasks(), key=lambda task: task.name)),
        decoding=maker.decoding,
        outliers=outliers,
        dtype=maker.dtype,
        chat_template=file.chat_template,
    )


def findings_of(file: SweepFile) -> list[Finding]:
    """What is wrong between what the file says and its models: options, lengths, tasks."""
    found = [
        finding
        for index, model in enumerate(file.models)
        for finding in _Maker(file, model).findings(index)
    ]
    return list(dict.fromkeys(found))


def fits_of(file: SweepFile, model: ModelEntry) -> Iterator[str]:
    """Say where a preset's settings were changed to fit a model, for people."""
    maker = _Maker(file, model)
    longest = maker.facts.max_length
    if file.preset is None or longest is None:
        return
    shorter = [task.name for task in maker.entries if maker.is_fitted(task)]
    if maker.facts.embedded:
        yield (
            f"preset {file.preset}: {model.name} is small, so it writes at most"
            f" {EMBEDDED_WINDOW.gen_length} tokens in {EMBEDDED_WINDOW.steps} steps and scores"
            f" with at most {EMBEDDED_DRAWS} draws"
        )
    elif shorter:
        yield (
            f"preset {file.preset}: {model.name} reads {longest} tokens, so {', '.join(shorter)}"
            f" write at most {longest // 2}"
        )
    if maker.facts.embedded and file.calibration is None:
        yield f"preset {file.preset}: {model.name} is calibrated on {EMBEDDED_TEXT}"


def fitted(settings: TaskSettings, facts: ModelFacts) -> TaskSettings:
    """A preset's settings of a task, cut down for models that are too small for them.

    A window that would leave a model less than half of what it reads for the prompt is made
    shorter, with as many steps for each token; the package's own models get windows, steps and
    draws that suit them.
    """
    decoding, draws = settings.decoding, settings.draws
    if facts.embedded and draws is not None:
        draws = min(draws, EMBEDDED_DRAWS)
    if decoding is not None and facts.embedded:
        decoding = shortened(decoding, EMBEDDED_WINDOW.gen_length)
        decoding = replace(decoding, steps=min(decoding.steps, EMBEDDED_WINDOW.steps))
    elif decoding is not None and facts.max_length is not None:
        decoding = shortened(decoding, facts.max_length // 2)
    return replace(settings, decoding=decoding, draws=draws)


def shortened(decoding: DecodingSpec, room: int) -> DecodingSpec:
    """A window of at most `room` tokens; blocks and steps per token stay as they are."""
    if decoding.gen_length <= room:
        return decoding
    block = min(decoding.block_length, room)
    gen_length = room if decoding.sampler == "timeline" else room // block * block
    steps = max(decoding.steps * gen_length // decoding.gen_length, 1)
    return replace(decoding, gen_length=gen_length, block_length=block, steps=steps)


@dataclass(frozen=True)
class _Maker:
    """Makes the protocol of one model of a file."""

    file: SweepFile
    model: ModelEntry

    @cached_property
    def facts(self) -> ModelFacts:
        """What follows from the model's family."""
        return catalog.facts_of(self.model.ref(self.file.folder))

    @property
    def dtype(self) -> str:
        """The type of the computation: written, that of a saved quantized model, the package's own,
        the preset's, the usual."""
        made = self.facts.quantized
        if self.file.dtype is None and made is not None:
            return made.dtype
        preset = None if self.file.preset is None else presets.load(self.file.preset)
        usual = _DTYPE if preset is None else preset.dtype
        return self.file.dtype or (_EMBEDDED_DTYPE if self.facts.embedded else usual)

    @cached_property
    def decoding(self) -> DecodingSpec:
        """How text is generated for tasks that have no decoding of their own.

        With a preset all that write have one: what the file says may fit only on top of it.
        """
        written = self.file.decoding if self.file.preset is None else DecodingEntry()
        return _canonical(written.over(self._usual))

    @property
    def _usual(self) -> DecodingSpec:
        written = DecodingEntry.model_validate({"sampler": self.facts.sampler})
        usual = written.over(DecodingSpec())
        return self._in_blocks(usual)

    def _in_blocks(self, decoding: DecodingSpec) -> DecodingSpec:
        """A model with block-causal attention is decoded in the blocks of its attention."""
        block = self.facts.block_size
        return decoding if block is None else replace(decoding, block_length=block)

    def tasks(self) -> Iterator[TaskSpec]:
        """The model's tasks with all that is said of them."""
        for task in self.entries:
            settings = self._settings(task)
            decoding = self._decoding(task, settings)
            spec = TaskSpec(
                name=task_location(task.name, self.file.folder),
                shots=settings.shots if task.shots is None else task.shots,
                metric=task.metric or settings.metric,
                limit=task.limit or self.file.limit,
                draws=task.draws or self.file.draws or settings.draws or TaskSpec.draws,
                decoding=None if decoding == self.decoding else decoding,
                estimator=self._estimator(task, settings),
                data=self._data(task),
            )
            yield catalog.resolve_task(spec)

    @property
    def entries(self) -> tuple[TaskEntry, ...]:
        """The file's tasks, or the preset's; those of them that the model's entry names."""
        every = task_entries(self.file)
        if self.model.tasks is None:
            return every
        return tuple(task for task in every if task.name in self.model.tasks)

    def _settings(self, task: TaskEntry) -> TaskSettings:
        if self.file.preset is None:
            return TaskSettings()
        return fitted(self._asked(task), self.facts)

    def _asked(self, task: TaskEntry) -> TaskSettings:
        """What the preset says of a task, whatever the model's size."""
        assert self.file.preset is not None
        return presets.load(self.file.preset).settings(task.name, self.facts.family)

    def _decoding(self, task: TaskEntry, settings: TaskSettings) -> DecodingSpec | None:
        """How a task is written; None if the preset says that it is not."""
        base = self._usual
        if settings.decoding is None and task.name in self._scored:
            return None
        if settings.decoding is not None:
            base = self._in_blocks(settings.decoding)
        return _canonical(task.decoding.over(self.file.decoding.over(base)))

    @cached_property
    def _scored(self) -> frozenset[str]:
        """Tasks of the preset in which nothing is written."""
        if self.file.preset is None:
            return frozenset()
        preset, family = presets.load(self.file.preset), self.facts.family
        written = {task for task in preset.tasks if preset.settings(task, family).decoding}
        return frozenset(preset.tasks) - written

    def is_fitted(self, task: TaskEntry) -> bool:
        """Whether the preset's window for a task is too long for the model."""
        asked = self._asked(task)
        return fitted(asked, self.facts) != asked

    def _estimator(self, task: TaskEntry, settings: TaskSettings) -> str:
        written = task.estimator or self.file.estimator
        return written or settings.estimator or self.facts.estimator

    def _data(self, task: TaskEntry) -> str | None:
        written = task.data or self.file.data
        return None if written is None else data_folder(written, self.file.folder)

    def findings(self, index: int) -> Iterator[Finding]:
        """What does not go together; `index` is the model's in the file."""
        names = [task.name for task in task_entries(self.file)]
        for place, name in enumerate(self.model.tasks or ()):
            if name not in names:
                message = f"{name!r} is none of the sweep's tasks ({', '.join(names)})"
                yield Finding(("models", index, "tasks", place), message)
        problems: dict[tuple[Place, str], list[str]] = {}
        for task in self.entries:
            decoding = self._decoding(task, self._settings(task))
            problem = None if decoding is None else self._problem(decoding)
            if problem is not None:
                problems.setdefault((self._place(task), problem), []).append(task.name)
        for (where, problem), tasks in problems.items():
            yield Finding(where, f"{self._context(tasks)}{problem}")

    def _problem(self, decoding: DecodingSpec) -> str | None:
        try:
            catalog.check_decoding(decoding, self.facts)
        except InputError as error:
            return str(error).removeprefix("decoding: ")
        longest = self.facts.max_length
        if longest is None or decoding.gen_length < longest:
            return None
        return (
            f"gen_length {decoding.gen_length} leaves no room for a prompt in the {longest} tokens"
            f" that {self.model.name} reads: write at most {longest // 2}"
            f" (--set decoding.gen_length={longest // 2})"
        )

    def _place(self, task: TaskEntry) -> Place:
        if task.decoding.model_fields_set and self.file.tasks is not None:
            return ("tasks", self.file.tasks.index(task), "decoding")
        return ("decoding",)

    def _context(self, tasks: Sequence[str]) -> str:
        """For which tasks and model a problem is, where a preset makes them differ."""
        if self.file.preset is None:
            return ""
        preset, model = self.file.preset, self.model.name
        return f"with what preset {preset} says of {model} and {', '.join(tasks)}: "


def task_entries(file: SweepFile) -> tuple[TaskEntry, ...]:
    """The tasks that a file names, else those of its preset."""
    if file.tasks is not None or file.preset is None:
        return file.tasks or ()
    return tuple(TaskEntry(name=name) for name in presets.load(file.preset).tasks)


def _canonical(decoding: DecodingSpec) -> DecodingSpec:
    """The timeline sampler has no blocks: what is written of them must not make two keys."""
    if decoding.sampler != "timeline":
        return decoding
    return replace(decoding, block_length=decoding.gen_length)
