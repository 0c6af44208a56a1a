"""The campaign's own accounts: what it would say if something were lost, doubled or mixed."""

import contextlib
import io
import random
import shutil
import sqlite3
import uuid
from collections import Counter

import pytest

from dllm_sweep.process import this_process
from dllm_sweep.records import HostInfo
from dllm_sweep.workers.messages import WorkerOptions

SWEEP = "round-0"
HERE = HostInfo(host="here", pid=1, device="cpu")


@pytest.fixture(scope="module")
def done(tmp_path_factory):
    """A folder with a round that one quiet process did, its plan, and what must come of it."""
    from chaos_kit.bench import ChaosBench
    from chaos_kit.site import SqliteDatabase
    from chaos_kit.sweeps import SOURCE, planned, undisturbed

    folder = tmp_path_factory.mktemp("quiet")
    database = SqliteDatabase(folder)
    files = folder / "files"
    (files / "begun").mkdir(parents=True)
    trials = planned(1, 3, 1)
    store = database.store()
    row = store.plan_sweep(SWEEP, SOURCE, trials)
    lease = store.take_lease(SWEEP, this_process(), seconds=60.0)
    bench = ChaosBench(WorkerOptions(files=files, device="cpu", threads=1, batch_size=1))
    for trial in store.trials(row.id):
        claim = store.claim(lease, trial.id, uuid.uuid4().hex, HERE)
        for unit in claim.units:
            with contextlib.redirect_stdout(io.StringIO()):
                result = bench.run(claim, unit)
            store.commit_unit(claim, result)
    store.close()
    return folder, trials, undisturbed(SWEEP, trials)


@pytest.fixture
def quiet(done, tmp_path):
    """A copy of it to change: its database, folder for files, plan and expected results."""
    from chaos_kit.site import SqliteDatabase

    folder, trials, expected = done
    shutil.copytree(folder, tmp_path, dirs_exist_ok=True)
    return SqliteDatabase(tmp_path), tmp_path / "files", trials, expected


def account_of(quiet, moments=(), harmed=frozenset()):
    from chaos_kit.ledger import account

    database, files, trials, expected = quiet
    return account(database, files, SWEEP, trials, expected, moments, harmed)


def change(quiet, sql):
    with contextlib.closing(sqlite3.connect(quiet[0].path)) as link:
        assert link.execute(sql).rowcount
        link.commit()


def test_a_quiet_round_holds(quiet):
    found = account_of(quiet)
    assert found.holds
    assert found.executed == found.units


STEADY = "(SELECT id FROM trial WHERE method = 'steady-0')"
DRIFT = "(SELECT id FROM trial WHERE method = 'drift')"


@pytest.mark.parametrize(
    ("sql", "field"),
    [
        (f"DELETE FROM metric WHERE task = 'hard' AND trial_id = {STEADY}", "lost"),
        (
            f"UPDATE metric SET name = 'again' WHERE task = 'hard' AND trial_id = {STEADY}",
            "doubled",
        ),
        (f"UPDATE metric SET value = value + 1e-15 WHERE trial_id = {STEADY}", "different"),
        (f"UPDATE metric SET value = 0.5 WHERE task = 'long' AND trial_id = {DRIFT}", "mixed"),
        (f"UPDATE trial SET weights_sha256 = '{'0' * 64}' WHERE id = {DRIFT}", "mixed"),
        (f"UPDATE metric SET n = 63 WHERE task = 'short' AND trial_id = {DRIFT}", "mixed"),
    ],
)
def test_whatever_is_lost_doubled_changed_or_mixed_is_counted(quiet, sql, field):
    change(quiet, sql)
    found = account_of(quiet)
    assert getattr(found, field) == 1 or field == "different"
    assert not found.holds


def test_a_unit_that_was_redone_without_a_fault_is_held_against_the_product(quiet):
    (quiet[1] / "begun" / "1.1.evaluate:hard.77.5").touch()
    found = account_of(quiet)
    assert (found.redone, found.in_flight) == (1, 0)
    assert not found.holds


def test_a_unit_that_was_redone_in_a_fault_is_not(quiet):
    mark = quiet[1] / "begun" / "1.0.evaluate:long:2-4.77.5"
    mark.touch()
    found = account_of(quiet, moments=[mark.stat().st_mtime])
    assert (found.redone, found.in_flight) == (1, 1)
    assert found.holds


def test_weights_that_were_harmed_may_be_made_again(quiet):
    (quiet[1] / "begun" / "2.2.quantize.77.5").touch()
    assert account_of(quiet, harmed={2}).holds
    assert not account_of(quiet).holds


@pytest.mark.parametrize("store", ["sqlite", "postgres"])
def test_a_campaign_has_every_kind_and_is_the_same_again_from_its_seed(store):
    from chaos_kit.kinds import KINDS, deck

    cards = deck(500, store, random.Random(3))
    assert len(cards) == 500
    assert {card.name for card in cards} == {k.name for k in KINDS if store in k.stores}
    assert cards == deck(500, store, random.Random(3))
    assert cards != deck(500, store, random.Random(4))
    assert Counter(cards) == Counter(deck(500, store, random.Random(4)))
