from pathlib import Path

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
