"""Where a campaign runs: a database, a Ray cluster of several nodes, and controller processes."""

from __future__ import annotations

import contextlib
import os
import signal
import sqlite3
import subprocess
import sys
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import psycopg

from chaos_kit import controller_main
from dllm_sweep.db.connect import open_store
from dllm_sweep.db.store import SqlStore
from dllm_sweep.workers.files import root_for
from tests.postgres import Postgres, Proxy, running

ROOT = Path(__file__).resolve().parents[2]
HEAD_CPUS, NODE_CPUS = 1, 2


class Database:
    """The campaign's own way to the store, past all cut links, and the address for the others."""

    server: Postgres | None = None
    proxy: Proxy | None = None
    url: str
    direct_url: str

    def read(self, sql: str) -> list[tuple[Any, ...]] | None:
        """Rows of a query; None while the database is away."""
        raise NotImplementedError

    def write(self, sql: str) -> bool:
        """Run one statement; False if the database is away."""
        raise NotImplementedError

    def store(self) -> SqlStore:
        """The store, opened directly."""
        return open_store(self.direct_url)


class PostgresDatabase(Database):
    """A Postgres server of our own; controllers and workers reach it through a proxy."""

    def __init__(self, server: Postgres) -> None:
        self.server, self.proxy = server, Proxy(server.port)
        server.execute("CREATE DATABASE chaos")
        self.direct_url = server.url("chaos")
        self._link: psycopg.Connection[Any] | None = None
        self.url = server.url("chaos", port=self.proxy.port)

    def read(self, sql: str) -> list[tuple[Any, ...]] | None:
        """Rows of a query; None while the server is away."""
        try:
            if self._link is None or self._link.closed:
                self._link = psycopg.connect(self.direct_url, autocommit=True, connect_timeout=3)
            cursor = self._link.execute(sql.encode())
            return cursor.fetchall() if cursor.description else []
        except psycopg.Error:
            if self._link is not None:
                self._link.close()
            return None

    def write(self, sql: str) -> bool:
        """Run one statement; False if the server is away."""
        return self.read(sql) is not None


class SqliteDatabase(Database):
    """A SQLite file; the controllers' writer owns it."""

    def __init__(self, folder: Path) -> None:
        self.path = folder / "chaos.db"
        self.url = self.direct_url = f"sqlite:///{self.path}"

    def read(self, sql: str) -> list[tuple[Any, ...]] | None:
        """Rows of a query; None while the file is locked or not there yet."""
        try:
            with contextlib.closing(sqlite3.connect(self.path, timeout=5)) as link:
                rows = link.execute(sql).fetchall()
                link.commit()
                return rows
        except sqlite3.Error:
            return None

    def write(self, sql: str) -> bool:
        """Run one statement; False while the file is locked."""
        return self.read(sql) is not None


@contextlib.contextmanager
def database(kind: str, folder: Path) -> Iterator[Database]:
    """A fresh database of a kind."""
    if kind == "sqlite":
        yield SqliteDatabase(folder)
        return
    with running() as server:
        made = PostgresDatabase(server)
        yield made
        assert made.proxy is not None
        made.proxy.close()


class RayCluster:
    """A head, and nodes that come and go, all on this machine.

    Args:
        nodes: How many nodes there are at first.
        memory_limit: Share of the machine's memory beyond which Ray ends workers; None never.
    """

    def __init__(self, nodes: int = 1, memory_limit: float | None = None) -> None:
        os.environ |= environment()
        if memory_limit is not None:
            limit = {"RAY_memory_usage_threshold": f"{memory_limit:.3f}"}
            os.environ |= limit | {"RAY_memory_monitor_refresh_ms": "100"}
        from ray.cluster_utils import Cluster

        self._cluster = Cluster()
        health = {
            "health_check_initial_delay_ms": 2000,
            "health_check_period_ms": 1000,
            "health_check_timeout_ms": 2000,
            "health_check_failure_threshold": 4,
        }
        self._cluster.add_node(
            num_cpus=HEAD_CPUS, include_dashboard=False, _system_config=health, dashboard_port=None
        )
        for _ in range(nodes):
            self.add()

    @property
    def address(self) -> str:
        """Where controllers join."""
        return str(self._cluster.address)

    @property
    def nodes(self) -> list[Any]:
        """The nodes that may go."""
        return sorted(self._cluster.worker_nodes, key=lambda node: node.unique_id)

    def add(self) -> None:
        """Add a node."""
        self._cluster.add_node(num_cpus=NODE_CPUS, wait=False)

    def remove(self, node: Any) -> None:
        """Take a node away without notice."""
        self._cluster.remove_node(node, allow_graceful=False)

    def raylet(self, node: Any) -> int:
        """Process id of a node's raylet."""
        return int(node.all_processes["raylet"][0].process.pid)

    def close(self) -> None:
        """End all nodes."""
        self._cluster.shutdown()


def environment() -> dict[str, str]:
    """What all processes of a campaign need."""
    return {
        "PYTHONPATH": f"{ROOT}:{ROOT / 'benchmarks'}",
        "RAY_AUTH_MODE": "disabled",
        "RAY_DEDUP_LOGS": "0",
        "RAY_USAGE_STATS_ENABLED": "0",
        "RAY_memory_monitor_refresh_ms": "0",
        "OMP_NUM_THREADS": "1",
    }


class Controllers:
    """The controller processes of one sweep; the newest is the one in charge.

    Args:
        url: The store.
        address: The cluster.
        folder: Where they run; their folder for files is `files_of` it.
        logs: Where their output goes.
    """

    def __init__(self, url: str, address: str, folder: Path, logs: Path) -> None:
        self._url, self._address, self._folder, self._logs = url, address, folder, logs
        self.sweep = ""
        self.all: list[subprocess.Popen[bytes]] = []
        self.ends: list[int] = []

    @property
    def newest(self) -> subprocess.Popen[bytes] | None:
        """The one in charge; None if none runs."""
        alive = [process for process in self.all if process.poll() is None]
        return alive[-1] if alive else None

    def start(self, *arguments: str) -> subprocess.Popen[bytes]:
        """Start one more."""
        command: Sequence[str] = (
            sys.executable,
            controller_main.__file__,
            self.sweep,
            self._address,
            f"local://{self._folder / 'shared'}",
            *arguments,
        )
        log = (self._logs / f"controller-{len(self.ends) + len(self.all)}.log").open("wb")
        secrets = {"DLLM_SWEEP_STORE": self._url}
        process = subprocess.Popen(
            command,
            env=os.environ | environment() | secrets,
            stdout=log,
            stderr=subprocess.STDOUT,
            stdin=subprocess.DEVNULL,
            start_new_session=True,
            cwd=self._folder,
        )
        log.close()
        self.all.append(process)
        return process

    def reap(self) -> list[int]:
        """Exit codes of those that ended since the last call."""
        ended = [process for process in self.all if process.poll() is not None]
        self.all = [process for process in self.all if process.poll() is None]
        codes = [int(process.returncode) for process in ended]
        self.ends += codes
        return codes

    def unexpected(self) -> list[str]:
        """Tracebacks in the controllers' output: none of them may end so."""
        found = []
        for log in sorted(self._logs.glob("controller-*.log")):
            text = log.read_text(errors="replace")
            if "Traceback (most recent call last)" in text:
                found.append(f"{log.name}: {text.strip().splitlines()[-1]}")
        return found

    def end(self) -> None:
        """End all of them."""
        for process in self.all:
            with contextlib.suppress(ProcessLookupError):
                process.send_signal(signal.SIGCONT)
                process.kill()
            process.wait()
        self.reap()


def files_of(url: str, folder: Path) -> Path:
    """Where controllers that run in `folder` put files of this machine.

    They are told of a shared folder too, as machines without a common disk are: then no machine
    starts a process to hand files to the others, of which this one machine would get many.
    """
    return root_for(url) if url.startswith("sqlite") else folder / "dllm-sweep-files"
