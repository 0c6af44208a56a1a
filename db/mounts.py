"""Which files lie on a network file system, where SQLite loses data."""

from __future__ import annotations

import os
import re
from pathlib import Path

from dllm_sweep.errors import StoreError

ALLOW_VARIABLE = "DLLM_SWEEP_ALLOW_NETWORK_SQLITE"
_MOUNT_TABLE = Path("/proc/self/mountinfo")
_CLUSTER = (
    "acfs",
    "beegfs",
    "ceph",
    "gfs",
    "gfs2",
    "glusterfs",
    "gpfs",
    "lustre",
    "ocfs2",
    "orangefs",
)
_SHARES = ("9p", "afs", "cifs", "coda", "ncpfs", "nfs", "nfs4", "smb3", "smbfs", "vboxsf")
_NETWORK = frozenset((*_CLUSTER, *_SHARES, "panfs", "pvfs2", "wekafs"))
_LOCAL_FUSE = frozenset(("fuse.fuse-overlayfs", "fuse.bindfs", "fuse.ntfs-3g", "fuse.lxcfs"))


def refuse_network(path: Path, mounts: str | None = None) -> None:
    """Refuse a SQLite file on a network file system.

    Args:
        path: The file; it need not exist.
        mounts: The mount table; None takes this process's, if the system has one.

    Raises:
        StoreError: With the reason, unless the environment says that the user knows.
    """
    kind = network_kind(path, mounts)
    if kind is None or os.environ.get(ALLOW_VARIABLE) == "1":
        return
    raise StoreError(
        f"{path}: lies on a network file system ({kind}), where SQLite's locks fail and a store"
        " gets damaged; name a file on a local disk or a Postgres server with --store, or set"
        f" {ALLOW_VARIABLE}=1 if no other machine has it mounted"
    )


def network_kind(path: Path, mounts: str | None = None) -> str | None:
    """The type of the network file system that `path` lies on; None if it lies on another."""
    table = _this_table() if mounts is None else mounts
    kind = _kind_at(path.resolve(), table)
    is_fuse = kind == "fuse" or kind.startswith("fuse.")
    return kind if kind in _NETWORK or (is_fuse and kind not in _LOCAL_FUSE) else None


def _this_table() -> str:
    try:
        return _MOUNT_TABLE.read_text(encoding="utf-8", errors="surrogateescape")
    except OSError:
        return ""


def _kind_at(path: Path, table: str) -> str:
    """The type of the file system that holds `path`: the deepest mount, the last if stacked."""
    deepest, kind = -1, ""
    for line in table.splitlines():
        mount, _, device = line.partition(" - ")
        point = Path(_unescape(mount.split(" ")[4]))
        if path.is_relative_to(point) and len(point.parts) >= deepest:
            deepest, kind = len(point.parts), device.split(" ")[0]
    return kind


def _unescape(text: str) -> str:
    return re.sub(r"\\([0-7]{3})", lambda match: chr(int(match[1], 8)), text)
