"""Finished blocks of a model that is being quantized: kept until the whole of its weights is.

A crash in block 20 of 32 costs block 20 alone: whoever resumes, on this machine or another of the
run, finds the blocks before it, each in a file `stages/blocks/<key>-<bits>-<block>.<digest>`.
"""

from __future__ import annotations

import logging
import re
import time
from concurrent.futures import Future, ThreadPoolExecutor
from types import TracebackType
from typing import Self

from dllm_sweep.errors import DiskFull, StoreError
from dllm_sweep.methods.base import BlockRecord
from dllm_sweep.models.base import DiffusionModel
from dllm_sweep.quant import artifact
from dllm_sweep.records import Artifact
from dllm_sweep.spec import JsonValue, sha256_of
from dllm_sweep.workers import files
from dllm_sweep.workers.depot import Depot
from dllm_sweep.workers.stages import Stage

log = logging.getLogger(__name__)

AT_ONCE_S = 0.05
"""A block that takes no longer to write is written at once, longer ones beside the next block."""
SHARE = 0.1
"""How much longer a block may take for being written at once."""
A_FEW_MS = 0.01
"""What is always worth it."""
FIRST_SPEED = 5e8
"""Bytes a second that are thought to be written, digest included, before it has shown."""
_ENDING = re.compile(r"(\d+)\.([0-9a-f]{64})\.[a-z]+")
"""A block's index, the digest and the suffix."""
_DIGITS = 12


class KeptBlocks:
    """Keeps blocks as they are finished, and finds those of an attempt that did not get through.

    Writing never holds the work up for long: what takes too long to write beside what it takes to
    quantize again is not kept, and a disk that is full ends the keeping, not the work.

    Use it as a context: at its end, whatever is still being written is waited for.

    Args:
        depot: Where the files lie.
        stage: What is quantized, and how; None keeps nothing.
        bits: What else decides the last bits of the blocks, such as the device, as plain JSON.

    Attributes:
        restored: Blocks that were found.
    """

    def __init__(self, depot: Depot, stage: Stage | None, bits: JsonValue) -> None:
        self._depot, self._stage = depot, stage
        self._names: dict[int, tuple[str, str]] = {}
        self._speed = FIRST_SPEED
        self._writer = ThreadPoolExecutor(max_workers=1, thread_name_prefix="blocks")
        self._pending: Future[None] | None = None
        self._since = self._told = time.monotonic()
        self._given_up = False
        self.restored: set[int] = set()
        self._mark = sha256_of(bits)[:_DIGITS]
        if stage is not None:
            start = f"{stage.folder}/{stage.key}-{self._mark}-"
            names = self._depot.names(stage.folder, f"{stage.key}-{self._mark}-")
            endings = ((name, _ENDING.fullmatch(name.removeprefix(start))) for name in names)
            self._names = {int(end[1]): (name, end[2]) for name, end in endings if end}

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: object, trace: TracebackType | None
    ) -> None:
        self._writer.shutdown(wait=True)

    def restore(self, model: DiffusionModel, index: int) -> BlockRecord | None:
        """Put a block in place as it was finished; None if it was not, or its file is damaged."""
        record = self._found(model, index) if index in self._names else None
        if record is not None:
            self.restored.add(index)
        self._since = time.monotonic()
        return record

    def keep(self, model: DiffusionModel, index: int, record: BlockRecord) -> None:
        """Write a block that has just been quantized, if that is worth it."""
        if self._stage is None or self._given_up:
            return
        took_s = time.monotonic() - self._since
        if self._pending is not None:
            self._pending.result()
        write_s = _bytes(model, index) / self._speed
        at_once = write_s <= AT_ONCE_S
        if write_s > max(A_FEW_MS, took_s * SHARE if at_once else took_s):
            return
        content = artifact.BlockContent.of(
            model, index, modules=record.modules, warnings=record.warnings
        )
        self._pending = self._writer.submit(self._write, self._stage, index, content)
        if at_once:
            self._pending.result()

    def forget(self) -> None:
        """Remove all blocks, those of other bits included: what they were kept for is done."""
        if self._stage is not None:
            for name in self._depot.names(self._stage.folder, f"{self._stage.key}-"):
                self._depot.remove(name)
        self._names.clear()

    def progress(self, done: int, total: int) -> None:
        """Log what became of the block before `done`, and how long it took."""
        now = time.monotonic()
        verb = "restored" if done - 1 in self.restored else "quantized"
        log.info("%s block %d of %d in %.2f s", verb, done, total, now - self._told)
        self._told = now

    def _found(self, model: DiffusionModel, index: int) -> BlockRecord | None:
        name, digest = self._names[index]
        wanted = Artifact(kind="block", path=name, sha256=digest, bytes=0)
        try:
            with self._depot.borrow(wanted) as path:
                if path is None:
                    return None
                modules, warnings = artifact.load_block(model, path)
        except (StoreError, OSError) as error:
            log.warning("block %d is quantized again: %s", index + 1, error)
            return None
        return BlockRecord(modules=modules, warnings=warnings)

    def _write(self, stage: Stage, index: int, content: artifact.BlockContent) -> None:
        started = time.monotonic()
        try:
            with files.new_file(self._depot.root / stage.folder, stage.suffix) as path:
                content.write(path)
                name = f"{stage.key}-{self._mark}-{index}"
                kept = self._depot.keep(path, stage.folder, name=name, durable=False)
        except (DiskFull, OSError) as error:
            log.warning("finished blocks are not kept any more: %s", error)
            self._given_up = True
            return
        self._names[index] = kept.path, kept.sha256
        self._speed = kept.bytes / (time.monotonic() - started)


def _bytes(model: DiffusionModel, index: int) -> int:
    tensors = model.blocks[index].state_dict().values()
    return sum(tensor.numel() * tensor.element_size() for tensor in tensors)
