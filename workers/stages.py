"""Work that trials share, kept by what it was made from.

A stage is made once for equal inputs, whichever trial, worker or sweep asks first. Its file is
`stages/<stage>/<key>.<digest>`: the key says what went in, the digest what came out. A file whose
content is not its digest's is made again; two workers that make one stage at the same time do no
harm.
"""

from __future__ import annotations

import json
import logging
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from dllm_sweep.records import Artifact, ModuleRow
from dllm_sweep.spec import JsonValue, from_json, sha256_of, to_json
from dllm_sweep.workers import files
from dllm_sweep.workers.depot import Depot

log = logging.getLogger(__name__)

FOLDER = "stages"


@dataclass(frozen=True, kw_only=True)
class Stage:
    """What a stage's file is made from.

    Attributes:
        name: The kind of work, and its folder's name.
        version: Raised by hand whenever the same inputs give another file.
        inputs: Everything else that decides the result, as plain JSON.
        suffix: Of the file's name, with the dot.
    """

    name: str
    version: int
    inputs: JsonValue
    suffix: str

    @property
    def key(self) -> str:
        """SHA-256 of all that, but for the suffix."""
        return sha256_of([self.name, self.version, self.inputs])

    @property
    def folder(self) -> str:
        """Where its files lie, relative to the root."""
        return f"{FOLDER}/{self.name}"


class StageCache:
    """Finds stages that were made already, and keeps new ones.

    Args:
        depot: Where files lie.
    """

    def __init__(self, depot: Depot) -> None:
        self._depot = depot

    def find(self, stage: Stage) -> Path | None:
        """Give a stage's file, checked; None if it was not made yet, or is damaged."""
        found = self._depot.find(stage.folder, stage.key, stage.suffix)
        if found is not None:
            log.info("%s %s is there already", stage.name, stage.key[:12])
        return found

    def file(self, stage: Stage, make: Callable[[Path], None]) -> Path:
        """Give a stage's file; `make` writes it to the path that it is handed if need be.

        Raises:
            DiskFull: If there is no space left, or the folder may not be written.
        """
        return self.find(stage) or self.keep(stage, make)

    def keep(self, stage: Stage, make: Callable[[Path], None]) -> Path:
        """Make a stage's file anew and keep it."""
        root = self._depot.root
        with files.new_file(root / stage.folder, stage.suffix) as path:
            make(path)
            return root / self._depot.keep(path, stage.folder, name=stage.key).path

    def forget(self, stage: Stage) -> None:
        """Remove a stage's file on this machine and in the shared folder."""
        found = self._depot.find(stage.folder, stage.key, stage.suffix)
        if found is not None:
            self._depot.remove(f"{stage.folder}/{found.name}")


@dataclass(frozen=True, kw_only=True)
class Quantized:
    """What a quantization gave, beside its weights: all that another trial needs to go on.

    Attributes:
        weights: The weights' file.
        modules: What was quantized.
        average_bits: Mean bits of a weight of the blocks' linears, those left out at 16.
        warnings: What the user should know.
        seconds: How long quantizing took.
    """

    weights: Artifact
    modules: tuple[ModuleRow, ...]
    average_bits: float
    warnings: tuple[str, ...]
    seconds: float

    def write(self, path: Path) -> None:
        """Write it as JSON."""
        path.write_text(json.dumps(to_json(self), sort_keys=True), encoding="utf-8")

    @classmethod
    def read(cls, path: Path) -> Quantized:
        """Read what `write` wrote."""
        return from_json(cls, json.loads(path.read_text(encoding="utf-8")))
