"""`fsck` finds what is planted, and nothing in a store that is in order."""

import dataclasses

import pytest

from dllm_sweep.db import contradictions
from dllm_sweep.records import EndReason
from dllm_sweep.spec import Unit
from dllm_sweep.upkeep.checking import check
from dllm_sweep.upkeep.folders import LocalFolder


def problems(bench, *options):
    done = bench.cli("fsck", "--orphans", *options)
    rows = bench.json("fsck", "--orphans", *options)
    assert done.exit_code == (1 if rows else 0), done.output
    return [row["problem"] for row in rows]


def samples(bench):
    return sorted((bench.root / "samples").iterdir())


def busy(bench):
    """Every state that a trial can be in by itself."""
    bench.succeed("fp")
    bench.succeed("rtn")
    bench.fail("gptq", EndReason.LOST)
    bench.fail("gptq")
    claim = bench.claim("awq")
    bench.commit(claim, Unit(kind="quantize"), b"w")
    return bench


def test_a_store_in_order_has_no_problems_and_exits_with_0(bench):
    busy(bench)
    assert problems(bench) == []
    assert problems(bench, "--deep") == []
    text = bench.cli("fsck").output
    assert "no problems\n0 problems; 5 files checked by size" in text


def test_results_taken_over_from_another_sweep_are_in_order(bench):
    busy(bench)
    again = bench.plan("again", "fp", "rtn")
    assert again.reused == 2
    assert problems(bench, "--deep") == []


def test_a_truncated_artifact_is_found(bench):
    bench.succeed("fp")
    path = samples(bench)[0]
    path.write_bytes(path.read_bytes()[:-1])
    assert problems(bench) == ["file of another size"]
    assert str(path) in bench.cli("fsck").output


def test_an_altered_artifact_of_the_same_size_is_found_by_reading_it(bench):
    bench.succeed("fp")
    path = samples(bench)[0]
    path.write_bytes(bytes(byte ^ 1 for byte in path.read_bytes()))
    assert problems(bench) == []
    assert problems(bench, "--deep") == ["file with another content"]


def test_a_missing_artifact_is_found_and_one_that_gc_deleted_is_not_missed(bench):
    bench.succeed("fp")
    samples(bench)[0].unlink()
    assert problems(bench) == ["file missing"]
    bench.age(days=400)
    bench.end_earlier(days=400)
    bench.cli("gc", "--samples-older-than", "1d")
    assert problems(bench) == ["file missing"], "the one that was lost before"


def test_weights_are_missed_only_while_their_trial_may_need_them(bench):
    claim = bench.claim("rtn")
    first, *rest = claim.units or claim.trial.units()
    bench.commit(claim, first, b"w")
    for path in (bench.root / "weights").iterdir():
        path.unlink()
    assert problems(bench) == ["file missing"]
    for unit in rest:
        bench.commit(claim, unit, b"w")
    assert problems(bench) == []


def test_weights_on_another_machine_are_counted_and_not_missed(bench):
    claim = bench.claim("rtn")
    result = dataclasses.replace(bench.build.result(Unit(kind="quantize")), host="node-9")
    bench.store.commit_unit(claim, result)
    (bench.root / "weights").mkdir(parents=True)
    assert problems(bench) == []
    assert "; 1 are on other machines" in bench.cli("fsck").output


def test_what_a_running_sweep_changes_between_two_looks_is_no_problem(bench, on_sqlite):
    bench.succeed("fp")
    (hidden, _) = samples(bench)

    class Late(LocalFolder):
        """Does not see a file the first time, as if its row had been read before it was there."""

        looks = 0

        def files(self):
            Late.looks += 1
            return (f for f in super().files() if Late.looks > 1 or hidden.name not in f.path)

    report = check(bench.store, [Late(bench.root)], deep=False, orphans=True)
    assert (report.problems, Late.looks) == ((), 2)


def test_a_lost_folder_is_one_problem(bench):
    bench.succeed("fp")
    bench.root.rename(bench.root.with_name("moved"))
    assert problems(bench) == ["the folder for files is missing"]
    assert problems(bench, "--files", str(bench.root.with_name("moved")), "--deep") == []


def test_a_file_that_no_row_names_is_found_once_it_is_old_enough(bench):
    bench.keep("weights", b"nobody names this")
    assert problems(bench) == []
    bench.age(days=1)
    assert problems(bench) == ["file that no row names"]


PLANTED = {
    "succeeded with units not done": (
        "UPDATE unit SET state = 'PENDING' WHERE trial_id = 1 AND kind = 'outliers'",
    ),
    "succeeded without units": (
        "DELETE FROM artifact WHERE trial_id = 1",
        "DELETE FROM metric WHERE trial_id = 1",
        "DELETE FROM outlier WHERE trial_id = 1",
        "DELETE FROM unit WHERE trial_id = 1",
    ),
    "scores of a task that is not done": (
        "UPDATE unit SET state = 'PENDING' WHERE trial_id = 2 AND task = 'math'",
    ),
    "task done without scores": ("DELETE FROM metric WHERE trial_id = 1 AND task = 'math'",),
    "measured on different weights": (
        "UPDATE unit SET weights_sha256 = 'other' WHERE trial_id = 2 AND task = 'math'",
    ),
    "running without a controller": ("UPDATE sweep SET lease_until_s = 1.0",),
    "running under an older controller": ("UPDATE trial SET epoch = 0 WHERE id = 4",),
    "running without an attempt": ("UPDATE attempt SET ended_s = 1.0 WHERE trial_id = 4",),
    "attempt left open": ("UPDATE attempt SET ended_s = NULL WHERE trial_id = 3 AND attempt = 1",),
    "history ends in another state": (
        "INSERT INTO event (trial_id, attempt, at_s, to_state, actor, reason)"
        " VALUES (1, 1, 1.0, 'FAILED', 'user', '')",
    ),
}


def test_every_rule_is_tried():
    assert set(PLANTED) == {rule.name for rule in contradictions.RULES}


@pytest.mark.parametrize("name", PLANTED)
def test_a_planted_contradiction_is_found_with_its_trial_and_advice(bench, name):
    busy(bench)
    for statement in PLANTED[name]:
        bench.sql(statement)
    found = [row for row in bench.json("fsck") if row["problem"] == name]
    assert len(found) == 1
    assert found[0]["sweep"] == "demo"
    assert len(found[0]["key"]) == 64
    assert found[0]["what to do"]
    assert bench.cli("fsck").exit_code == 1
