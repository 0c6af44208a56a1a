"""Stages are made once for equal inputs, and never read back unchecked."""

import threading

import pytest

from dllm_sweep.records import Artifact, ModuleRow
from dllm_sweep.workers.depot import Depot
from dllm_sweep.workers.stages import Quantized, Stage, StageCache


def stage(inputs="text", version=1):
    return Stage(name="words", version=version, inputs=[inputs], suffix=".txt")


@pytest.fixture
def cache(tmp_path):
    return StageCache(Depot(tmp_path))


class Maker:
    """Writes a text and counts how often it was asked to."""

    def __init__(self, text="made"):
        self.text, self.times = text, 0

    def __call__(self, path):
        self.times += 1
        path.write_text(self.text)


def test_equal_inputs_are_made_once(cache, tmp_path):
    make = Maker()
    first, again = (cache.file(stage(), make) for _ in range(2))
    assert first == again
    assert (first.read_text(), make.times) == ("made", 1)
    assert StageCache(Depot(tmp_path)).file(stage(), make) == first
    assert make.times == 1


@pytest.mark.parametrize("other", [stage("other"), stage(version=2)])
def test_other_inputs_or_another_version_are_made_anew(cache, other):
    make = Maker()
    assert cache.file(stage(), make) != cache.file(other, make)
    assert make.times == 2


@pytest.mark.parametrize("content", ["mad", "mode", ""])
def test_a_file_that_was_cut_or_altered_is_made_again(cache, content):
    make = Maker()
    path = cache.file(stage(), make)
    path.write_text(content)
    assert cache.find(stage()) is None
    assert cache.file(stage(), make).read_text() == "made"
    assert make.times == 2


def test_a_foreign_file_under_the_right_key_is_passed_over(cache):
    good = cache.file(stage(), Maker())
    (good.parent / f"{stage().key}.0000.txt").write_text("foreign")
    (good.parent / f"{stage().key}.txt").write_text("foreign")
    assert cache.find(stage()) == good


def test_what_a_killed_maker_left_is_never_taken_for_the_stage(cache, tmp_path):
    folder = tmp_path / stage().folder
    folder.mkdir(parents=True)
    (folder / ".new-killed.txt").write_text("half")
    assert cache.find(stage()) is None


def test_makers_at_the_same_time_do_no_harm(cache):
    ready = threading.Barrier(4)
    found = []

    def make(path):
        ready.wait(timeout=20)
        path.write_text("made")

    threads = [
        threading.Thread(target=lambda: found.append(cache.file(stage(), make))) for _ in range(4)
    ]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(found) == 4
    assert len(set(found)) == 1
    assert found[0].read_text() == "made"


def test_makers_that_disagree_leave_one_answer_for_all_later_readers(cache):
    cache.keep(stage(), Maker("one"))
    cache.keep(stage(), Maker("two"))
    assert cache.find(stage()) == cache.find(stage())


def test_a_failed_maker_leaves_nothing(cache, tmp_path):
    def fail(path):
        path.write_text("half")
        raise ValueError("no text")

    with pytest.raises(ValueError, match="no text"):
        cache.file(stage(), fail)
    assert [path for path in tmp_path.rglob("*") if path.is_file()] == []


def test_a_record_of_quantized_weights_comes_back_as_it_was(tmp_path):
    row = ModuleRow(
        module="model.layers.0.mlp.up_proj",
        w_bits=4,
        a_bits=16,
        group_size=None,
        symmetric=False,
        weights=12,
        bits=48.5,
        relative_error=0.1,
    )
    weights = Artifact(kind="weights", path="weights/a", sha256="a", bytes=3)
    made = Quantized(
        weights=weights, modules=(row,), average_bits=4.1, warnings=("few tokens",), seconds=1.5
    )
    made.write(tmp_path / "record.json")
    assert Quantized.read(tmp_path / "record.json") == made
