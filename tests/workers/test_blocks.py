"""A worker that dies in mid-model: who resumes goes on from the blocks that were finished."""

import logging
import multiprocessing
import os
import signal
from dataclasses import replace

import pytest

from dllm_sweep import load_model
from dllm_sweep.errors import QuantizationError
from dllm_sweep.methods.base import BlockRecord
from dllm_sweep.methods.in_place import quantize
from dllm_sweep.spec import CalibrationSpec, Unit
from dllm_sweep.upkeep.cleaning import Ages, Facts, examine
from dllm_sweep.upkeep.folders import LocalFolder
from dllm_sweep.workers import blocks
from dllm_sweep.workers.blocks import KeptBlocks
from dllm_sweep.workers.depot import Depot
from dllm_sweep.workers.quantizing import kept_blocks
from dllm_sweep.workers.stages import Stage
from dllm_sweep.workers.trial import Workbench
from tests.workers.test_trial import a_full_disk

QUANTIZE = Unit(kind="quantize")
STAGE = Stage(name="blocks", version=1, inputs=["what"], suffix=".safetensors")
STOPPING = """
import os, signal
from dataclasses import dataclass, replace
from pathlib import Path
from dllm_sweep.errors import QuantizationError
from dllm_sweep.methods.gptq import Gptq


@dataclass(frozen=True, kw_only=True)
class Stopping(Gptq):
    def quantize(self, model, scheme, calibration, *, seed=0, workspace):
        plan = Path(__file__).with_suffix(".plan")

        def watch(done, total):
            workspace.progress(done, total)
            how, _, after = plan.read_text().partition(" ") if plan.exists() else ("", "", "")
            if how and done == int(after):
                plan.unlink()
                if how == "kill":
                    os.kill(os.getpid(), signal.SIGKILL)
                raise QuantizationError("the plug was pulled")

        return super().quantize(
            model, scheme, calibration, seed=seed, workspace=replace(workspace, progress=watch)
        )
"""


@pytest.fixture(autouse=True)
def every_block_is_kept(monkeypatch):
    """However slow this machine's disk is today."""
    monkeypatch.setattr(blocks, "AT_ONCE_S", float("inf"))
    monkeypatch.setattr(blocks, "A_FEW_MS", float("inf"))


@pytest.fixture
def claim(claim_of, make_trial, tmp_path):
    """A claim on a trial of known content, whose method stops as a file beside it says."""
    (tmp_path / "own.py").write_text(STOPPING)
    text = tmp_path / "text.jsonl"
    text.write_text('{"text": "the quick brown fox jumps over the lazy dog"}\n' * 60)
    claim = claim_of(make_trial(f"{tmp_path / 'own.py'}:Stopping"))
    trial = replace(
        claim.trial,
        model=replace(claim.trial.model, digest="d" * 64),
        parameters=(("modules", ("*.k_proj", "*.up_proj")),),
        calibration=CalibrationSpec(source=str(text), samples=2, length=16, digest="t" * 64),
    )
    return replace(claim, trial=trial)


@pytest.fixture
def stop(tmp_path):
    """Plan how the next quantization stops, and after how many blocks."""
    return lambda how, after: (tmp_path / "own.plan").write_text(f"{how} {after}")


def done_to_blocks(caplog):
    """What was done to each block, in order."""
    told = [one.getMessage() for one in caplog.records if one.name == blocks.__name__]
    return [text.split(" in ")[0] for text in told]


def files_of(options):
    return sorted(path.name for path in (options.files / "stages/blocks").glob("*"))


def test_after_a_kill_the_finished_blocks_are_found_and_the_weights_are_the_same(
    options, claim, stop, tmp_path, caplog
):
    undisturbed = Workbench(replace(options, files=tmp_path / "other")).run(claim, QUANTIZE)
    stop("kill", 3)
    worker = multiprocessing.get_context("fork").Process(
        target=lambda: Workbench(options).run(claim, QUANTIZE)
    )
    worker.start()
    worker.join()
    assert worker.exitcode == -signal.SIGKILL
    assert len(files_of(options)) == 3
    caplog.set_level(logging.INFO)
    resumed = Workbench(options).run(replace(claim, attempt=2), QUANTIZE)
    assert done_to_blocks(caplog) == [
        *(f"restored block {number} of 6" for number in (1, 2, 3)),
        *(f"quantized block {number} of 6" for number in (4, 5, 6)),
    ]
    assert resumed.artifacts[0].sha256 == undisturbed.artifacts[0].sha256
    assert resumed.modules == undisturbed.modules
    assert files_of(options) == [], "they are removed once the weights are kept"


def test_a_worker_on_another_machine_goes_on_from_the_blocks_behind_the_url(
    options, claim, stop, tmp_path, caplog
):
    here = replace(options, remote=f"memory://{tmp_path.name}")
    there = replace(here, files=tmp_path / "elsewhere")
    stop("raise", 2)
    with pytest.raises(QuantizationError, match="plug"):
        Workbench(here).run(claim, QUANTIZE)
    caplog.set_level(logging.INFO)
    resumed = Workbench(there).run(claim, QUANTIZE)
    assert [text[:8] for text in done_to_blocks(caplog)] == ["restored"] * 2 + ["quantize"] * 4
    undisturbed = Workbench(replace(options, files=tmp_path / "other")).run(claim, QUANTIZE)
    assert resumed.artifacts[0].sha256 == undisturbed.artifacts[0].sha256
    assert files_of(there) == []
    assert Depot(tmp_path / "third", remote=here.remote).names("stages/blocks", "") == ()


def test_a_damaged_block_is_quantized_again(options, claim, stop, caplog):
    stop("raise", 2)
    with pytest.raises(QuantizationError, match="plug"):
        Workbench(options).run(claim, QUANTIZE)
    first = next((options.files / "stages/blocks").glob("*-0.*.safetensors"))
    first.write_bytes(first.read_bytes()[:-1])
    caplog.set_level(logging.INFO)
    Workbench(options).run(claim, QUANTIZE)
    assert [text[:8] for text in done_to_blocks(caplog)][:2] == ["quantize", "restored"]


@pytest.fixture(scope="module")
def model():
    return quantize(load_model("llada-tiny", device="cpu"), method="rtn", scheme="w4a16")


def rows_of(model, index):
    prefix = f"{model.block_name(index)}."
    rows = (row for row in model.quantization_report.modules if row.module.startswith(prefix))
    return BlockRecord(modules=tuple(rows), warnings=("few tokens",))


def test_what_is_kept_of_a_block_comes_back(model, tmp_path):
    record = rows_of(model, 1)
    with KeptBlocks(Depot(tmp_path), STAGE, "bits") as first:
        assert first.restore(model, 1) is None
        first.keep(model, 1, record)
    with KeptBlocks(Depot(tmp_path), STAGE, "bits") as later:
        assert later.restore(model, 0) is None
        assert later.restore(model, 1) == record


@pytest.mark.parametrize("at_once", [0.0, float("inf")])
def test_what_takes_too_long_to_write_is_not_kept(at_once, model, tmp_path, monkeypatch):
    monkeypatch.setattr(blocks, "AT_ONCE_S", at_once)
    monkeypatch.setattr(blocks, "A_FEW_MS", 0.01)
    monkeypatch.setattr(blocks, "FIRST_SPEED", 1.0)
    with KeptBlocks(Depot(tmp_path), STAGE, "bits") as kept:
        kept.restore(model, 0)
        kept.keep(model, 0, rows_of(model, 0))
    assert not (tmp_path / "stages").exists()


def test_a_block_may_be_written_beside_the_next_one(model, tmp_path, monkeypatch):
    monkeypatch.setattr(blocks, "AT_ONCE_S", 0.0)
    monkeypatch.setattr(blocks, "FIRST_SPEED", float("inf"))
    with KeptBlocks(Depot(tmp_path), STAGE, "bits") as kept:
        kept.restore(model, 0)
        kept.keep(model, 0, rows_of(model, 0))
    assert len(list((tmp_path / "stages/blocks").iterdir())) == 1


def test_a_full_disk_ends_the_keeping_and_not_the_work(model, tmp_path, caplog):
    with KeptBlocks(Depot(tmp_path), STAGE, "bits") as kept, a_full_disk():
        for index in (0, 1):
            kept.keep(model, index, rows_of(model, index))
    assert [one.getMessage()[:37] for one in caplog.records] == [
        "finished blocks are not kept any more"
    ]


def test_blocks_are_found_only_where_nothing_can_change_their_last_bits(
    claim, model, make_batches, tmp_path
):
    def blocks_of(trial=claim.trial, size=4, device="cpu"):
        return kept_blocks(Depot(tmp_path), trial, make_batches(8, size), device)

    unknown = replace(claim.trial, model=replace(claim.trial.model, digest=None))
    with blocks_of() as one, blocks_of(size=8) as other, blocks_of(unknown) as nothing:
        for kept in (one, other, nothing):
            kept.keep(model, 0, rows_of(model, 0))
    assert len(list((tmp_path / "stages/blocks").iterdir())) == 2
    seed = replace(claim.trial, seed=claim.trial.seed + 1)
    for strange in (
        blocks_of(device="GPU"),
        blocks_of(seed),
        blocks_of(size=2),
        blocks_of(unknown),
    ):
        assert strange.restore(model, 0) is None
    again = blocks_of(size=8)
    assert again.restore(model, 0) is not None
    again.forget()
    assert list((tmp_path / "stages/blocks").iterdir()) == [], "those of smaller batches, too"


def test_gc_removes_blocks_that_nobody_came_back_for(model, tmp_path):
    with KeptBlocks(Depot(tmp_path), STAGE, "bits") as kept:
        kept.keep(model, 0, rows_of(model, 0))
    (file,) = (tmp_path / "stages/blocks").iterdir()
    os.utime(file, (0, 0))
    facts = Facts(named={}, ends={}, lending=frozenset())
    found = examine(facts, LocalFolder(tmp_path).files(), Ages(), orphans=False)
    assert [waste.file.path for waste in found.waste] == [f"stages/blocks/{file.name}"]
