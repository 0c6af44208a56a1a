"""A SQLite file on a network file system is refused, with the reason and the way out."""

from __future__ import annotations

from pathlib import Path

import pytest

from dllm_sweep.db import mounts
from dllm_sweep.db.connect import open_store, upgrade
from dllm_sweep.errors import StoreError

TABLE = r"""
22 1 254:0 / / rw,relatime shared:1 - ext4 /dev/vda rw
30 22 0:40 / /home rw - nfs4 server:/home rw,vers=4.2
31 30 254:1 / /home/me/scratch rw - xfs /dev/vdb rw
32 22 0:41 / /mnt/team\040share rw - cifs //server/share rw
33 22 0:42 / /mnt/cloud rw - fuse.s3fs s3fs rw
34 22 0:43 / /var/lib/run rw - overlay overlay rw,lowerdir=/a
35 22 0:44 / /rootless rw - fuse.fuse-overlayfs fuse-overlayfs rw
36 22 0:45 / /stacked rw - lustre mgs@tcp:/fs rw
37 22 0:46 / /stacked rw - tmpfs tmpfs rw
38 22 0:47 / /gpfs rw master:3 propagate_from:2 - gpfs gpfs0 rw
39 22 0:48 / /windows rw - 9p drvfs rw
""".strip()


@pytest.mark.parametrize(
    ("path", "kind"),
    [
        ("/data/store.db", None),
        ("/home/me/store.db", "nfs4"),
        ("/home/me/scratch/store.db", None),
        ("/homes/store.db", None),
        ("/mnt/team share/store.db", "cifs"),
        ("/mnt/cloud/a/b/store.db", "fuse.s3fs"),
        ("/var/lib/run/store.db", None),
        ("/rootless/store.db", None),
        ("/stacked/store.db", None),
        ("/gpfs/project/store.db", "gpfs"),
        ("/windows/c/store.db", "9p"),
    ],
)
def test_the_deepest_mount_decides(path, kind):
    assert mounts.network_kind(Path(path), TABLE) == kind


def test_a_link_to_a_network_file_system_is_seen_through(tmp_path):
    table = f"{TABLE}\n40 22 0:50 / {tmp_path}/far rw - nfs server:/x rw"
    (tmp_path / "far").mkdir()
    (tmp_path / "near").symlink_to(tmp_path / "far")
    assert mounts.network_kind(tmp_path / "near" / "store.db", table) == "nfs"


def test_a_system_without_a_mount_table_refuses_nothing():
    assert mounts.network_kind(Path("/home/me/store.db"), "") is None


@pytest.fixture
def on_nfs(tmp_path, monkeypatch):
    """A folder that this process's mount table calls a network file system."""
    table = tmp_path / "mountinfo"
    table.write_text(
        f"22 1 254:0 / / rw - ext4 /dev/vda rw\n23 22 0:9 / {tmp_path} rw - nfs s:/ rw"
    )
    monkeypatch.setattr(mounts, "_MOUNT_TABLE", table)
    return tmp_path / "store.db"


@pytest.mark.parametrize("call", [open_store, upgrade])
def test_a_store_there_is_refused_before_anything_is_written(on_nfs, call):
    on_nfs.touch()
    with pytest.raises(StoreError, match=r"network file system \(nfs\).*local disk"):
        call(on_nfs)
    assert on_nfs.stat().st_size == 0


def test_a_new_store_is_not_made_there(on_nfs):
    with pytest.raises(StoreError, match="network file system"):
        open_store(on_nfs)
    assert not on_nfs.exists()


def test_whoever_knows_better_may_say_so(on_nfs, monkeypatch):
    with pytest.raises(StoreError, match="DLLM_SWEEP_ALLOW_NETWORK_SQLITE=1"):
        open_store(on_nfs)
    monkeypatch.setenv("DLLM_SWEEP_ALLOW_NETWORK_SQLITE", "1")
    open_store(on_nfs).close()


def test_doctor_says_so_before_a_store_is_made(on_nfs):
    from dllm_sweep.doctor import examine

    found = next(finding for finding in examine(str(on_nfs)) if finding.part == "store")
    assert found.state == "broken"
    assert "network file system (nfs)" in found.found + found.advice
