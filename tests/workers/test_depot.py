"""Files here, behind a URL, and on other machines; each found only if it is whole."""

import fsspec
import pytest

from dllm_sweep.errors import InputError
from dllm_sweep.workers import files
from dllm_sweep.workers.depot import Depot

URL = "memory://bucket/sweeps"


@pytest.fixture
def bucket():
    """A shared folder behind a URL, empty."""
    system = fsspec.filesystem("memory")
    system.rm("/bucket", recursive=True) if system.exists("/bucket") else None
    return system


def written(depot, content=b"numbers", kind="weights"):
    with files.new_file(depot.root / kind, ".bin") as path:
        path.write_bytes(content)
        return depot.keep(path, kind)


def content_of(depot, artifact):
    with depot.borrow(artifact) as path:
        return None if path is None else path.read_bytes()


def test_a_file_kept_behind_a_url_is_found_from_another_machine(tmp_path, bucket):
    here, there = (Depot(tmp_path / name, remote=URL) for name in ("a", "b"))
    artifact = written(here)
    assert content_of(there, artifact) == b"numbers"
    left = [path for path in (tmp_path / "b").rglob("*") if path.is_file()]
    assert left == [], "what was borrowed does not pile up"


def test_only_whole_files_stand_behind_the_url(tmp_path, bucket):
    artifact = written(Depot(tmp_path, remote=URL))
    assert list(bucket.find("/bucket")) == [f"/bucket/sweeps/{artifact.path}"]


@pytest.mark.parametrize("content", [b"number", b"numbed!", b""])
def test_a_file_damaged_behind_the_url_counts_as_absent(tmp_path, bucket, content):
    artifact = written(Depot(tmp_path / "a", remote=URL))
    bucket.pipe_file(f"/bucket/sweeps/{artifact.path}", content)
    assert content_of(Depot(tmp_path / "b", remote=URL), artifact) is None


def test_a_local_copy_that_was_damaged_is_replaced_by_the_one_behind_the_url(tmp_path, bucket):
    depot = Depot(tmp_path, remote=URL)
    artifact = written(depot)
    (tmp_path / artifact.path).write_bytes(b"nothing")
    assert content_of(depot, artifact) == b"numbers"


def test_removing_removes_both_copies_and_may_be_repeated(tmp_path, bucket):
    depot = Depot(tmp_path, remote=URL)
    artifact = written(depot)
    for _ in range(2):
        depot.remove(artifact.path)
    assert content_of(depot, artifact) is None
    assert bucket.find("/bucket") == []


def test_a_file_without_a_shared_folder_is_on_its_machine_alone(tmp_path):
    artifact = written(Depot(tmp_path / "a"))
    assert content_of(Depot(tmp_path / "b"), artifact) is None
    assert content_of(Depot(tmp_path / "a"), artifact) == b"numbers"


def test_a_shared_folder_that_cannot_be_reached_is_an_error_that_may_pass(tmp_path):
    depot = Depot(tmp_path, remote="http://127.0.0.1:9/files")
    artifact = written(Depot(tmp_path / "other"))
    with pytest.raises(ConnectionError, match=r"127\.0\.0\.1:9/files cannot be reached"):
        content_of(depot, artifact)


def test_files_of_a_stage_are_found_by_the_start_of_their_name(tmp_path, bucket):
    here, there = (Depot(tmp_path / name, remote=URL) for name in ("a", "b"))
    with files.new_file(tmp_path / "a", ".bin") as path:
        path.write_bytes(b"numbers")
        here.keep(path, "stages/words", name="key")
    found = there.find("stages/words", "key", ".bin")
    assert found.read_bytes() == b"numbers"
    assert found.is_relative_to(tmp_path / "b"), "a stage's copy stays: it will be read again"
    assert there.find("stages/words", "ke", ".bin") is None


def test_files_go_beside_the_store_into_a_folder_or_behind_a_url(tmp_path):
    store = f"sqlite:///{tmp_path}/a.db"
    beside = tmp_path / "a-files"
    assert files.roots(None, store) == (beside, "")
    assert files.roots(str(tmp_path / "own"), store) == (tmp_path / "own", "")
    assert files.roots(f"file://{tmp_path}/own", store) == (tmp_path / "own", "")
    assert files.roots(f"{URL}/", store) == (beside, URL)


@pytest.mark.parametrize("url", ["nothing://bucket", "ssh3://host/folder"])
def test_a_url_of_an_unknown_kind_is_refused_with_its_name(url, tmp_path):
    with pytest.raises(InputError, match=rf"files '{url}' cannot be used"):
        files.roots(url, f"sqlite:///{tmp_path}/a.db")
