import errno
from pathlib import Path

import pytest

from dllm_sweep.errors import DiskFull
from dllm_sweep.workers import files


def written(folder, content=b"numbers"):
    with files.new_file(folder, ".bin") as path:
        path.write_bytes(content)
        return files.adopt(path, folder, "weights")


def test_files_lie_beside_a_sqlite_store_under_its_name(tmp_path):
    assert files.root_for(f"sqlite:///{tmp_path}/a.db") == tmp_path / "a-files"
    assert files.root_for("postgresql://host/a") == Path("dllm-sweep-files").resolve()


def test_a_temporary_file_is_gone_unless_it_was_adopted(tmp_path):
    with files.new_file(tmp_path, ".bin") as path:
        assert path.exists()
    assert list(tmp_path.iterdir()) == []


def test_a_kept_file_may_be_read_by_whoever_may_read_the_folder(tmp_path):
    (tmp_path / "plain").touch()
    path = tmp_path / written(tmp_path).path
    assert path.stat().st_mode == (tmp_path / "plain").stat().st_mode


def test_equal_content_is_kept_once_under_its_digest(tmp_path):
    first, second = written(tmp_path), written(tmp_path)
    assert first == second
    assert first.path == f"weights/{first.sha256}.bin"
    assert len(list((tmp_path / "weights").iterdir())) == 1


def test_a_file_that_was_cut_changed_or_removed_is_not_whole(tmp_path):
    artifact = written(tmp_path)
    assert files.is_whole(artifact, tmp_path)
    path = tmp_path / artifact.path
    path.write_bytes(b"number!")
    assert not files.is_whole(artifact, tmp_path)
    path.unlink()
    assert not files.is_whole(artifact, tmp_path)


@pytest.mark.parametrize(
    "error",
    [
        OSError(errno.ENOSPC, "No space left on device"),
        PermissionError(errno.EACCES, "Permission denied"),
        OSError(errno.EROFS, "Read-only file system"),
        RuntimeError("I/O error: No space left on device (os error 28)"),
    ],
)
def test_a_folder_that_cannot_be_written_is_named_with_what_to_do(tmp_path, error):
    text = rf"{tmp_path} cannot be written: .*--files, then resume"
    with pytest.raises(DiskFull, match=text), files.writing_into(tmp_path):
        raise error


@pytest.mark.parametrize("error", [ValueError("bad shape"), FileNotFoundError(2, "no such file")])
def test_other_errors_while_writing_stay_as_they_are(tmp_path, error):
    with pytest.raises(type(error)), files.writing_into(tmp_path):
        raise error


def test_a_machine_that_cannot_make_the_controllers_folder_has_one_of_its_own(tmp_path):
    (tmp_path / "file").write_text("no folder")
    assert files.usable(tmp_path / "new") == tmp_path / "new"
    other = files.usable(tmp_path / "file" / "below")
    assert other != files.usable(tmp_path / "file" / "beside")
    assert not other.is_relative_to(tmp_path)
    assert other == files.usable(tmp_path / "file" / "below"), "all workers of a machine agree"
