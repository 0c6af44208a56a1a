"""What attempts printed, kept in the store within bounds: the beginning and the newest."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import sqlalchemy as sa
from sqlalchemy.engine import Connection

from dllm_sweep.db.clock import db_now
from dllm_sweep.db.schema import LogRow
from dllm_sweep.records import Claim, LogChunk

KEPT_BYTES = 256 * 1024
"""How much of one attempt's log is kept; a cut in it says how much was dropped there."""
HEAD_BYTES = 64 * 1024
"""The beginning of the log that is never dropped: versions, settings, first warnings."""


@dataclass(frozen=True)
class Piece:
    """A row of the log as `overflow` sees it.

    Attributes:
        id: Its number.
        bytes: Size of its text in UTF-8.
        dropped_bytes: What it stands for if it marks a cut, else 0.
    """

    id: int
    bytes: int
    dropped_bytes: int


@dataclass(frozen=True)
class Cut:
    """What must go: `marker` becomes (or stays) the row that says so, `gone` are deleted."""

    marker: int
    gone: tuple[int, ...]
    dropped_bytes: int

    @property
    def text(self) -> str:
        """The line that stands in the place of what was dropped."""
        return cut_line(self.dropped_bytes)


def cut_line(dropped_bytes: int) -> str:
    """The line that stands for a dropped part of a log."""
    return f"\n[... {dropped_bytes} bytes of the log were dropped here ...]\n"


def overflow(pieces: Sequence[Piece]) -> Cut | None:
    """What to drop from an attempt's log, oldest piece first; None if it is within its bounds."""
    excess = sum(piece.bytes for piece in pieces) - KEPT_BYTES
    if excess <= 0:
        return None
    marked = [piece for piece in pieces if piece.dropped_bytes]
    gone = _oldest_after_head([piece for piece in pieces if not piece.dropped_bytes], excess)
    if not gone:
        return None
    dropped = sum(piece.bytes for piece in gone) + sum(piece.dropped_bytes for piece in marked)
    marker, *rest = (*marked, *gone)
    return Cut(marker.id, tuple(piece.id for piece in rest), dropped)


def _oldest_after_head(pieces: Sequence[Piece], excess: int) -> list[Piece]:
    gone: list[Piece] = []
    seen = 0
    for piece in pieces[:-1]:
        seen += piece.bytes
        if seen > HEAD_BYTES and excess > 0:
            gone.append(piece)
            excess -= piece.bytes
    return gone


def plain(text: str) -> str:
    """Text as both databases take it: Postgres refuses NUL, and neither takes lone surrogates."""
    return text.encode("utf-8", "replace").decode().replace("\0", "\N{REPLACEMENT CHARACTER}")


def shortened(text: str) -> str:
    """The text, or its end if it is longer than what is kept of a log beside its head."""
    encoded = text.encode()
    most = KEPT_BYTES - HEAD_BYTES
    if len(encoded) <= most:
        return text
    return cut_line(len(encoded) - most) + encoded[-most:].decode(errors="ignore")


def append(connection: Connection, claim: Claim, worker: str, log: str, number: int) -> None:
    """Add a piece to the log of a claim's attempt, unless it is there, and keep the bounds."""
    if not log or _has(connection, claim, worker, number):
        return
    text = shortened(plain(log))
    connection.execute(
        sa.insert(LogRow).values(
            trial_id=claim.trial_id,
            attempt=claim.attempt,
            worker=worker,
            number=number or None,
            at_s=db_now(),
            text=text,
            bytes=len(text.encode()),
            dropped_bytes=0,
        )
    )
    _keep_bounds(connection, claim)


def read(connection: Connection, trial_id: int, after: int) -> tuple[LogChunk, ...]:
    """The pieces of a trial's log with numbers above `after`, oldest first."""
    row = LogRow.__table__.c
    query = (
        sa.select(row.id, row.trial_id, row.attempt, row.worker, row.at_s, row.text)
        .where(row.trial_id == trial_id, row.id > after)
        .order_by(row.id)
    )
    return tuple(LogChunk(**found._mapping) for found in connection.execute(query))


def _has(connection: Connection, claim: Claim, worker: str, number: int) -> bool:
    same = LogRow.worker == worker, LogRow.number == number
    query = sa.select(LogRow.id).where(*_of(claim), *same)
    return number > 0 and connection.scalar(query) is not None


def _keep_bounds(connection: Connection, claim: Claim) -> None:
    query = sa.select(LogRow.id, LogRow.bytes, LogRow.dropped_bytes)
    rows = connection.execute(query.where(*_of(claim)).order_by(LogRow.id))
    cut = overflow([Piece(*row) for row in rows])
    if cut is None:
        return
    connection.execute(
        sa.update(LogRow)
        .where(LogRow.id == cut.marker)
        .values(text=cut.text, bytes=len(cut.text), dropped_bytes=cut.dropped_bytes)
    )
    connection.execute(sa.delete(LogRow).where(LogRow.id.in_(cut.gone)))


def _of(claim: Claim) -> tuple[sa.ColumnElement[bool], ...]:
    return LogRow.trial_id == claim.trial_id, LogRow.attempt == claim.attempt
