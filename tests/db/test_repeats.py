"""A link that is cut at COMMIT: the call is made again and does its work once."""

from __future__ import annotations

import pytest
import sqlalchemy as sa
from sqlalchemy.exc import DBAPIError

from dllm_sweep.db.bulk import insert_rows
from dllm_sweep.db.connect import open_store
from dllm_sweep.errors import Fenced
from dllm_sweep.records import EndReason, TrialState
from tests.postgres import Proxy

CUTS = ["cut_after_commit", "cut_before_commit"]


@pytest.fixture
def link(postgres):
    proxy = Proxy(postgres.port)
    yield proxy
    proxy.close()


@pytest.fixture
def far(postgres, link):
    """A store on Postgres behind a link that can be cut."""
    with postgres.database() as url:
        opened = open_store(sa.make_url(url).set(port=link.port).render_as_string(False))
        yield opened
        opened.close()


@pytest.fixture
def lease(far, build):
    far.plan_sweep("demo", "", build.planned(build.spec("rtn")))
    return far.take_lease("demo", build.holder, seconds=60)


@pytest.fixture
def claim(far, lease, build):
    return far.claim(lease, far.trials(lease.sweep_id)[0].id, "c", build.host)


def _count(store, table):
    return store.query(f"SELECT COUNT(*) FROM {table}").rows[0][0]


@pytest.mark.parametrize("where", CUTS)
def test_a_plan_is_written_once(far, link, build, where):
    getattr(link, where)()
    sweep = far.plan_sweep("demo", "", build.planned(build.spec("rtn"), build.spec("fp")))
    assert link.cuts == 1
    assert len(far.trials(sweep.id)) == _count(far, "event") == 2
    assert _count(far, "unit") == 7


@pytest.mark.parametrize("where", CUTS)
def test_results_are_taken_over_once(far, link, lease, build, where):
    build.run(far, lease, far.trials(lease.sweep_id)[0])
    getattr(link, where)()
    second = far.plan_sweep("second", "", build.planned(build.spec("rtn")))
    assert (link.cuts, second.reused) == (1, 1)
    assert _count(far, "unit") == 8
    assert len(far.scores(second.id)) == 2


@pytest.mark.parametrize("where", CUTS)
def test_the_lease_that_comes_back_holds(far, link, build, where):
    far.plan_sweep("demo", "", build.planned(build.spec("rtn")))
    getattr(link, where)()
    lease = far.take_lease("demo", build.holder, seconds=60)
    assert link.cuts == 1
    far.renew_lease(lease, seconds=60)


@pytest.mark.parametrize("where", CUTS)
def test_a_lease_is_given_back_once(far, link, lease, claim, build, where):
    getattr(link, where)()
    far.release_lease(lease)
    assert link.cuts == 1
    assert far.take_lease("demo", build.other, seconds=60).epoch == lease.epoch + 2
    with pytest.raises(Fenced):
        far.release_lease(lease)


@pytest.mark.parametrize("where", CUTS)
def test_a_piece_of_log_is_kept_once(far, link, claim, where):
    for number in (1, 2):
        getattr(link, where)()
        far.beat(claim, "here:7", "text\n", number=number)
    assert link.cuts == 2
    assert [chunk.text for chunk in far.logs(claim.trial_id)] == ["text\n"] * 2


@pytest.mark.parametrize("where", CUTS)
def test_a_loss_is_charged_once(far, link, claim, build, where):
    getattr(link, where)()
    lost = build.failure(EndReason.LOST)
    assert far.lose_worker(claim, lost, worker="2") is TrialState.RUNNING
    assert link.cuts == 1
    assert far.query("SELECT losses FROM trial").rows == ((1,),)
    assert _count(far, "failure") == 1


@pytest.mark.parametrize("where", CUTS)
def test_a_trial_is_pruned_once_and_the_answer_is_yes(far, link, lease, claim, where):
    getattr(link, where)()
    assert far.prune(lease, claim.trial_id, "beaten") is True
    assert link.cuts == 1
    pruned = "SELECT COUNT(*) FROM event WHERE to_state = 'PRUNED'"
    assert far.query(pruned).rows == ((1,),)


@pytest.mark.parametrize("where", CUTS)
def test_shards_are_merged_once(far, link, build, where):
    sweep = far.plan_sweep("cut", "", [build.in_shards(build.spec("fp"), 2)])
    lease = far.take_lease("cut", build.holder, seconds=60)
    claim = far.claim(lease, far.trials(sweep.id)[0].id, "c", build.host)
    for unit in claim.units:
        if unit.shards > 1:
            getattr(link, where)()
            far.commit_unit(claim, build.scored(unit, [0.0, 1.0, 1.0]))
    assert link.cuts == 2
    (score,) = far.scores(sweep.id)
    assert score.n == 3


def test_a_server_that_goes_away_amid_many_rows_is_an_error_like_all_others(postgres, far):
    def rows():
        yield ("one", "{}")
        postgres.execute(
            "SELECT pg_terminate_backend(pid) FROM pg_stat_activity WHERE state = 'active'"
            " AND query LIKE 'COPY protocol%' AND pid <> pg_backend_pid()"
        )
        for number in range(100_000):
            yield (f"key {number}", "{}")

    with (
        pytest.raises(DBAPIError) as error,
        far._engines.write.begin() as connection,
    ):
        insert_rows(connection, "protocol", ("key", "spec"), rows())
    assert error.value.connection_invalidated
    assert _count(far, "protocol") == 0
