"""What workers print is kept in the store, in order, once, and within bounds."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from dllm_sweep.db.logbook import HEAD_BYTES, KEPT_BYTES, Piece, cut_line, overflow
from dllm_sweep.errors import Fenced
from dllm_sweep.records import EndReason

SMALL = "x" * 1000


@pytest.fixture
def claim(store, sweep, lease, build):
    return store.claim(lease, store.trials(sweep.id)[0].id, "c1", build.host)


def _text(store, claim, after=0):
    return "".join(chunk.text for chunk in store.logs(claim.trial_id, after=after))


def test_a_log_is_read_from_where_one_left_off(store, claim):
    store.beat(claim, "here:7", "one\n", number=1)
    store.beat(claim, "here:7")
    store.beat(claim, "there:8", "two\n", number=1)
    first, second = store.logs(claim.trial_id)
    assert (first.text, first.worker, first.attempt) == ("one\n", "here:7", 1)
    assert store.logs(claim.trial_id, after=first.id) == (second,)
    assert store.logs(claim.trial_id, after=second.id) == ()
    assert store.logs(10**6) == ()


def test_a_piece_that_is_handed_over_again_is_kept_once(store, claim):
    for _ in range(2):
        store.beat(claim, "here:7", "one\n", number=1)
        store.beat(claim, "here:7", "one\n", number=2)
        store.beat(claim, "there:8", "one\n", number=1)
    assert len(store.logs(claim.trial_id)) == 3


def test_a_worker_that_no_longer_owns_its_trial_is_told_so_by_its_beat(store, sweep, claim):
    store.beat(claim, "here:7")
    store.cancel(sweep.id)
    with pytest.raises(Fenced):
        store.beat(claim, "here:7", "late\n", number=1)
    assert store.logs(claim.trial_id) == ()


def test_the_logs_of_all_attempts_stay(store, sweep, lease, claim, build):
    store.beat(claim, "here:7", "first\n", number=1)
    store.end_attempt(claim, build.failure(EndReason.PREEMPTED))
    again = store.claim(lease, claim.trial_id, "c2", build.host)
    store.beat(again, "here:7", "second\n", number=1)
    assert [(c.attempt, c.text) for c in store.logs(claim.trial_id)] == [
        (1, "first\n"),
        (2, "second\n"),
    ]


def test_the_beginning_and_the_newest_of_a_long_log_are_kept(store, claim):
    pieces = [f"{number:04}{SMALL}\n" for number in range(400)]
    for number, text in enumerate(pieces, start=1):
        store.beat(claim, "here:7", text, number=number)
    kept = _text(store, claim)
    assert len(kept) <= KEPT_BYTES
    head = HEAD_BYTES // len(pieces[0])
    assert kept.startswith("".join(pieces[:head]))
    assert kept.endswith("".join(pieces[-180:]))
    dropped = len(pieces) - (len(store.logs(claim.trial_id)) - 1)
    assert kept.count(cut_line(dropped * len(pieces[0]))) == 1


def test_one_piece_that_is_too_long_keeps_its_end(store, claim):
    store.beat(claim, "here:7", "a" * KEPT_BYTES + "the end\n", number=1)
    kept = _text(store, claim)
    assert kept.startswith("\n[... ")
    assert kept.endswith("the end\n")
    assert len(kept) < KEPT_BYTES


def test_a_reader_that_follows_misses_only_what_was_dropped(store, claim):
    seen, last = "", 0
    for number in range(1, 301):
        store.beat(claim, "here:7", f"{number:04}{SMALL}\n", number=number)
        for chunk in store.logs(claim.trial_id, after=last):
            seen, last = seen + chunk.text, chunk.id
    assert [f"{number:04}" for number in range(1, 301)] == [line[:4] for line in seen.splitlines()]


@given(st.lists(st.integers(1, KEPT_BYTES // 3), max_size=60))
def test_a_log_never_outgrows_its_bounds_and_counts_what_it_drops(sizes):
    rows: list[Piece] = []
    for number, size in enumerate(sizes):
        rows.append(Piece(number, size, 0))
        cut = overflow(rows)
        if cut is not None:
            marker = Piece(cut.marker, len(cut.text), cut.dropped_bytes)
            rows = [marker if r.id == cut.marker else r for r in rows if r.id not in cut.gone]
        assert sum(row.bytes for row in rows) <= KEPT_BYTES + len(cut_line(10**9))
        assert sum(1 for row in rows if row.dropped_bytes) <= 1
        assert rows[-1].id == number
    kept = sum(row.bytes for row in rows if not row.dropped_bytes)
    assert kept + sum(row.dropped_bytes for row in rows) == sum(sizes)
