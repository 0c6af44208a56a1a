"""`gc`: what nobody needs goes, what anybody may need stays."""

import dataclasses

import pytest

from dllm_sweep.db import upkeep
from dllm_sweep.records import EndReason
from dllm_sweep.spec import Unit
from dllm_sweep.upkeep import cleaning
from dllm_sweep.upkeep.folders import LocalFolder, RemoteFolder
from dllm_sweep.workers import files

ORPHANS = "--orphans"


def quantized(bench, method, content):
    """A running trial that has quantized, and its weights."""
    claim = bench.claim(method)
    bench.commit(claim, Unit(kind="quantize"), content)
    (row,) = [row for row in upkeep.named_files(bench.store) if row.trial_key == claim.trial_key]
    return claim, bench.root / row.path


def kinds(bench, *options):
    rows = bench.json("gc", "--dry-run", ORPHANS, *options)
    return {(row["kind"], row["why"]): row["files"] for row in rows}


def test_a_dry_run_says_how_much_of_what_and_touches_nothing(bench):
    bench.succeed("rtn")
    bench.keep("samples", b"nobody names this", ".parquet")
    bench.age(days=2)
    before = sorted(bench.root.rglob("*"))
    assert kinds(bench) == {
        ("samples", "no row names it"): 1,
        ("weights", "weights of a trial that succeeded"): 1,
    }
    assert "20 B would be deleted" in bench.cli("gc", "--dry-run", ORPHANS).output
    assert sorted(bench.root.rglob("*")) == before
    assert not any(row.removed for row in upkeep.named_files(bench.store))


def test_what_a_trial_needs_that_runs_or_waits_is_never_deleted(bench):
    _, running = quantized(bench, "rtn", b"of a running trial")
    claim, waiting = quantized(bench, "gptq", b"of a waiting trial")
    bench.store.end_attempt(claim, bench.build.failure(EndReason.LOST))
    bench.age(days=400)
    done = bench.cli("gc", ORPHANS, "--weights-older-than", "0h", "--samples-older-than", "0h")
    assert done.exit_code == 0, done.output
    assert running.exists()
    assert waiting.exists()


def test_whatever_is_younger_than_an_hour_stays(bench):
    bench.succeed("rtn")
    orphan = bench.root / bench.keep("weights", b"nobody names this").path
    assert kinds(bench) == {}
    assert "nothing to delete" in bench.cli("gc", ORPHANS).output
    assert orphan.exists()


def test_a_crash_between_rename_and_commit_leaves_a_file_that_gc_deletes(bench):
    orphan = bench.root / bench.keep("weights", b"nobody names this").path
    half = bench.root / "weights" / ".new-abc.safetensors"
    half.write_bytes(b"half")
    (bench.root / "weights" / "notes.txt").write_text("somebody's own")
    bench.age(days=2)
    assert bench.cli("gc", ORPHANS).exit_code == 0
    assert not orphan.exists()
    assert not half.exists()
    assert (bench.root / "weights" / "notes.txt").exists(), "not ours: it has no digest"


def test_equal_weights_of_two_trials_stay_until_both_have_ended(bench):
    _, shared = quantized(bench, "rtn", b"equal")
    assert quantized(bench, "gptq", b"equal")[1] == shared
    bench.store.cancel(1, keys=(bench.trial("rtn").key,))
    bench.end_earlier(days=30)
    bench.age(days=30)
    bench.cli("gc", ORPHANS)
    assert shared.exists()
    bench.store.cancel(1, keys=(bench.trial("gptq").key,))
    bench.end_earlier(days=30)
    bench.cli("gc", ORPHANS)
    assert not shared.exists()


def test_weights_stay_as_long_as_another_trial_would_quantize_to_the_same(bench):
    """The second trial differs from the first in what it is measured on alone."""
    known = dataclasses.replace(bench.build.spec("rtn").model, digest="d" * 64)
    spec = dataclasses.replace(bench.build.spec("rtn", seed=9), model=known)
    limited = dataclasses.replace(spec.protocol, tasks=spec.protocol.tasks[:1])
    twin = dataclasses.replace(spec, protocol=limited)
    bench.store.plan_sweep("demo", "name: demo", bench.build.planned(spec, twin))
    first, second = (row for row in bench.store.trials(1) if row.key in (spec.key, twin.key))
    claim = bench.store.claim(bench.lease, first.id, "c", bench.build.host)
    for unit in claim.units:
        bench.commit(claim, unit, b"shared weights")
    bench.age(days=30)
    bench.end_earlier(days=30)
    assert kinds(bench) == {}
    bench.store.cancel(1, keys=(second.key,))
    assert kinds(bench) == {("weights", "weights of a trial that succeeded"): 1}


def test_weights_of_a_failed_trial_wait_a_week_for_a_retry(bench):
    claim, weights = quantized(bench, "rtn", b"w")
    bench.store.end_attempt(claim, bench.build.failure())
    bench.age(days=30)
    bench.end_earlier(days=6)
    bench.cli("gc")
    assert weights.exists()
    bench.end_earlier(days=2)
    bench.cli("gc")
    assert not weights.exists()
    assert bench.cli("fsck", ORPHANS).exit_code == 0, "the row says that the file was deleted"


def test_samples_stay_unless_asked_for_and_results_always(bench):
    bench.succeed("fp")
    bench.age(days=400)
    bench.end_earlier(days=400)
    before = bench.store.query("SELECT * FROM results").rows
    assert bench.cli("gc").exit_code == 0
    assert len(list((bench.root / "samples").iterdir())) == 2
    assert bench.cli("gc", "--samples-older-than", "52w").exit_code == 0
    assert list((bench.root / "samples").iterdir()) == []
    assert bench.store.query("SELECT * FROM results").rows == before != ()
    assert bench.cli("fsck").exit_code == 0


def test_old_logs_of_successes_go_from_disk_and_store_those_of_failures_stay(bench):
    paths = {}
    for method in ("fp", "rtn"):
        claim = bench.claim(method)
        bench.store.beat(claim, "w:1", f"text of {method}\n", number=1)
        paths[method] = files.log_path(bench.root, claim.trial_id, claim.trial_key, 1)
        paths[method].parent.mkdir(parents=True)
        paths[method].write_text("text\n")
        if method == "rtn":
            bench.store.end_attempt(claim, bench.build.failure())
            continue
        for unit in claim.units or claim.trial.units():
            bench.store.commit_unit(claim, bench.build.result(unit))
    bench.age(days=40)
    bench.end_earlier(days=29)
    bench.cli("gc")
    assert paths["fp"].exists()
    bench.end_earlier(days=2)
    rows = {row["kind"]: row["files"] for row in bench.json("gc", "--dry-run")}
    assert rows == {"logs": 1, "log in the store": 1}
    assert bench.cli("gc").exit_code == 0
    assert not paths["fp"].parent.exists()
    assert paths["rtn"].exists()
    kept = {method: bench.store.logs(bench.trial(method).id) for method in paths}
    assert kept["fp"] == ()
    assert [chunk.text for chunk in kept["rtn"]] == ["text of rtn\n"]


def test_shared_work_goes_when_it_is_old_and_is_no_orphan_before(bench):
    stage = bench.root / bench.keep("stages/calibration", b"tokens").path
    bench.age(days=20)
    assert kinds(bench) == {}
    bench.age(days=31)
    assert kinds(bench) == {("stages", "shared work, old"): 1}
    assert kinds(bench, "--stages-older-than", "never") == {}
    assert stage.exists()


def test_a_trial_that_began_to_need_a_file_since_it_was_found_keeps_it(bench):
    claim, weights = quantized(bench, "rtn", b"equal")
    bench.store.cancel(1, keys=(claim.trial_key,))
    bench.end_earlier(days=30)
    bench.age(days=30)
    folder = LocalFolder(bench.root)
    facts = cleaning.Facts.read(bench.store)
    found = cleaning.examine(facts, folder.files(), cleaning.Ages(), orphans=True)
    assert [waste.why for waste in found.waste] == ["weights of a trial that ended"]
    quantized(bench, "gptq", b"equal")
    bench.age(days=30)
    assert cleaning.remove(bench.store, found, [folder]).waste == ()
    assert weights.exists()


def test_a_file_that_was_written_again_since_it_was_found_stays(bench):
    orphan = bench.keep("samples", b"nobody names this")
    bench.age(days=30)
    folder = LocalFolder(bench.root)
    facts = cleaning.Facts.read(bench.store)
    found = cleaning.examine(facts, folder.files(), cleaning.Ages(), orphans=True)
    bench.keep("samples", b"nobody names this")
    assert cleaning.remove(bench.store, found, [folder]).waste == ()
    assert (bench.root / orphan.path).exists()


def test_files_of_a_server_may_be_another_stores_and_stay_unless_told(bench):
    orphan = bench.root / bench.keep("samples", b"nobody names this").path
    bench.age(days=2)
    done = bench.cli("gc")
    assert orphan.exists() is not bench.url.startswith("sqlite")
    assert ("another store may keep" in done.output) is orphan.exists()


def test_a_link_in_the_folder_is_left_alone(bench, on_sqlite, tmp_path):
    outside = tmp_path / ("f" * 64)
    outside.write_text("precious")
    (bench.root / "samples").mkdir(parents=True)
    (bench.root / "samples" / ("a" * 64)).symlink_to(outside)
    found = [file.path for file in LocalFolder(bench.root).files()]
    assert found == []


def test_a_folder_behind_a_url_is_cleaned_as_a_local_one(bench, on_sqlite):
    orphan = bench.root / bench.keep("samples", b"nobody names this").path
    bench.age(days=2)
    remote = RemoteFolder(f"file://{bench.root}")
    (file,) = remote.files()
    assert (file.path, file.bytes) == (f"samples/{orphan.name}", 17)
    assert file.age_s == pytest.approx(2 * 86400, abs=600)
    assert remote.sha256(file.path) == orphan.name.partition(".")[0]
    facts = cleaning.Facts.read(bench.store)
    found = cleaning.examine(facts, [file], cleaning.Ages(), orphans=True)
    cleaning.remove(bench.store, found, [remote])
    assert not orphan.exists()


def test_one_row_a_file_says_which(bench, on_sqlite):
    orphan = bench.root / bench.keep("samples", b"nobody names this").path
    bench.age(days=2)
    (row,) = bench.json("gc", "--dry-run", "--each")
    assert row == {
        "kind": "samples",
        "why": "no row names it",
        "file": str(orphan),
        "bytes": 17,
    }


def test_an_age_that_is_none_is_refused_with_what_to_write(bench, on_sqlite):
    done = bench.cli("gc", "--logs-older-than", "soon")
    assert done.exit_code == 2
    assert "write 12h, 30d, 2w or never" in done.stderr
