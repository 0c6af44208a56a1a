"""The log of one trial in the store in memory."""

from __future__ import annotations

from dataclasses import dataclass, field, replace

from dllm_sweep.db.logbook import Piece, overflow, plain, shortened
from dllm_sweep.records import LogChunk


@dataclass(frozen=True)
class _Row:
    chunk: LogChunk
    number: int
    dropped_bytes: int = 0

    @property
    def piece(self) -> Piece:
        return Piece(self.chunk.id, len(self.chunk.text.encode()), self.dropped_bytes)


@dataclass
class MemoryLog:
    """What the workers of a trial printed, within the bounds of `logbook`."""

    rows: list[_Row] = field(default_factory=list)

    def add(self, chunk: LogChunk, number: int) -> None:
        """Add a piece, unless it is there under its number."""
        mine = [row for row in self.rows if row.chunk.attempt == chunk.attempt]
        if number and any((row.chunk.worker, row.number) == (chunk.worker, number) for row in mine):
            return
        row = _Row(replace(chunk, text=shortened(plain(chunk.text))), number)
        self.rows.append(row)
        self._keep_bounds([*mine, row])

    def read(self, after: int) -> tuple[LogChunk, ...]:
        """The pieces with numbers above `after`, oldest first."""
        return tuple(row.chunk for row in self.rows if row.chunk.id > after)

    def _keep_bounds(self, attempt: list[_Row]) -> None:
        cut = overflow([row.piece for row in attempt])
        if cut is None:
            return
        kept = (row for row in self.rows if row.chunk.id not in cut.gone)
        self.rows = [
            _Row(replace(row.chunk, text=cut.text), row.number, cut.dropped_bytes)
            if row.chunk.id == cut.marker
            else row
            for row in kept
        ]
