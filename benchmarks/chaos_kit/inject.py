"""Faults from outside: signals, nodes, the database, files, clocks, other controllers."""

from __future__ import annotations

import contextlib
import heapq
import itertools
import random
import signal
import sqlite3
import threading
import time
from collections.abc import Callable
from pathlib import Path

from fake_bench import BEGUN

from chaos_kit.processes import is_worker, resume, send, writer
from chaos_kit.site import Controllers, Database, PostgresDatabase, RayCluster, SqliteDatabase

_HOUR_S = 3600.0
_OPEN = "t.state IN ('PENDING', 'RUNNING')"


class Injector:
    """Does faults to a running sweep, and undoes those that pass.

    Args:
        database: The store's.
        cluster: The nodes.
        controllers: Of the sweep.
        files: The folder for files.
        dice: Chooses targets and lengths.
    """

    def __init__(
        self,
        database: Database,
        cluster: RayCluster,
        controllers: Controllers,
        files: Path,
        dice: random.Random,
    ) -> None:
        self._database, self._cluster, self._controllers = database, cluster, controllers
        self._files, self._dice = files, dice
        self._undo: list[tuple[float, int, Callable[[], None]]] = []
        self._order = itertools.count()
        self._database_away = False
        self.wrong: list[str] = []
        self.moments: list[float] = []
        self.harmed: set[int] = set()
        self._acts: dict[str, Callable[[], bool]] = {
            "worker killed": lambda: self._signal_worker(signal.SIGKILL),
            "worker stopped for a while": self._stop_worker,
            "controller killed": lambda: self._signal_controller(signal.SIGKILL),
            "controller dies after a claim": self._die_after_claim,
            "controller interrupted once": lambda: self._signal_controller(signal.SIGINT),
            "controller interrupted twice": self._interrupt_twice,
            "controller stopped and overtaken": self._overtake,
            "second controller": self._second,
            "second controller with --takeover": self._take_over,
            "node removed, another added": self._replace_node,
            "raylet stopped for a while": self._stop_raylet,
            "link cut after COMMIT": lambda: self._arm("after"),
            "link cut before COMMIT": lambda: self._arm("before"),
            "all links cut": self._cut,
            "database restarted": lambda: self._stop_database(signal.SIGINT, 0.0),
            "database crashed and recovered": lambda: self._stop_database(signal.SIGQUIT, 0.0),
            "database stopped for seconds": lambda: self._stop_database(signal.SIGINT, 8.0),
            "database stopped for a minute": lambda: self._stop_database(signal.SIGINT, 60.0),
            "database locked by another": self._lock,
            "writer process killed": lambda: self._signal_writer(signal.SIGKILL),
            "writer process stopped for a while": self._stop_writer,
            "weights truncated": lambda: self._harm_weights(_truncate),
            "weights deleted": lambda: self._harm_weights(Path.unlink),
            "database clock an hour on": lambda: self._step(-_HOUR_S),
            "database clock an hour back": lambda: self._step(_HOUR_S),
        }

    def inject(self, name: str) -> bool:
        """Do a fault; False if there is nothing to do it to right now."""
        done = self._acts[name]()
        if done:
            self.moments.append(time.time())
        return done

    def tend(self) -> None:
        """Undo what is over."""
        while self._undo and self._undo[0][0] <= time.monotonic():
            _, _, undo = heapq.heappop(self._undo)
            undo()
            self.moments.append(time.time())

    @property
    def quiet(self) -> bool:
        """Whether nothing is left to be undone."""
        return not self._undo

    def finish(self) -> None:
        """Undo everything now."""
        while self._undo:
            _, _, undo = heapq.heappop(self._undo)
            undo()

    def _later(self, seconds: float, undo: Callable[[], None]) -> None:
        heapq.heappush(self._undo, (time.monotonic() + seconds, next(self._order), undo))

    def _signal_worker(self, number: signal.Signals) -> bool:
        pid = self._busy_worker()
        return pid is not None and send(pid, number)

    def _stop_worker(self) -> bool:
        pid = self._busy_worker()
        if pid is None or not send(pid, signal.SIGSTOP):
            return False
        # Now and then longer than a unit may take: its end is then a zombie's.
        seconds = self._dice.choice([2.0, 4.0, 16.0])
        self._later(seconds, lambda: resume(pid))
        return True

    def _busy_worker(self) -> int | None:
        marks = sorted((self._files / BEGUN).iterdir(), key=lambda path: path.stat().st_mtime)
        pids = {int(mark.name.split(".")[-2]) for mark in marks[-8:]}
        alive = [pid for pid in sorted(pids) if is_worker(pid)]
        return self._dice.choice(alive) if alive else None

    def _signal_controller(self, number: signal.Signals) -> bool:
        process = self._controllers.newest
        return process is not None and send(process.pid, number)

    def _die_after_claim(self) -> bool:
        """The next controller dies after one of its first claims; this one is killed for it."""
        process = self._controllers.newest
        if process is None:
            return False
        process.kill()
        process.wait()
        self._controllers.start("--die-at", str(self._dice.randint(1, 4)))
        return True

    def _interrupt_twice(self) -> bool:
        process = self._controllers.newest
        if process is None or not send(process.pid, signal.SIGINT):
            return False
        self._later(0.3, lambda: send(process.pid, signal.SIGINT) and None)
        return True

    def _overtake(self) -> bool:
        """Stop the controller, let another take over, and wake the first one up again."""
        process = self._controllers.newest
        if process is None or not send(process.pid, signal.SIGSTOP):
            return False
        self._controllers.start("--takeover")
        self._later(self._dice.uniform(12.0, 20.0), lambda: resume(process.pid))
        return True

    def _second(self) -> bool:
        """A second controller that must go away by itself, with the store's exit code."""
        if self._controllers.newest is None or self._database_away:
            return False
        second = self._controllers.start()
        self._later(25.0, lambda: self._expect_refusal(second.poll()))
        return True

    def _expect_refusal(self, code: int | None) -> None:
        # The first may have died meanwhile of another fault: then the second was right to stay.
        if code not in (3, None, 0, 1, 130, -9):
            self.wrong.append(f"a second controller ended with {code}")

    def _take_over(self) -> bool:
        if self._controllers.newest is None:
            return False
        self._controllers.start("--takeover")
        return True

    def _replace_node(self) -> bool:
        nodes = self._cluster.nodes
        if not nodes:
            return False
        self._cluster.remove(self._dice.choice(nodes))
        self._cluster.add()
        return True

    def _stop_raylet(self) -> bool:
        nodes = self._cluster.nodes
        if not nodes:
            return False
        node = self._dice.choice(nodes)
        pid = self._cluster.raylet(node)
        if not send(pid, signal.SIGSTOP):
            return False
        self._later(14.0, lambda: self._wake_raylet(node, pid))
        return True

    def _wake_raylet(self, node: object, pid: int) -> None:
        """Wake it up, to find that it was declared dead; put another in its place."""
        resume(pid)
        self._later(4.0, lambda: self._swap(node))

    def _swap(self, node: object) -> None:
        if node in self._cluster.nodes:
            self._cluster.remove(node)
            self._cluster.add()

    def _arm(self, when: str) -> bool:
        proxy = self._postgres().proxy
        assert proxy is not None
        if proxy.armed or self._database_away:
            return False
        proxy.cut_after_commit() if when == "after" else proxy.cut_before_commit()
        return True

    def _cut(self) -> bool:
        proxy = self._postgres().proxy
        assert proxy is not None
        proxy.cut()
        return True

    def _stop_database(self, how: signal.Signals, seconds: float) -> bool:
        server = self._postgres().server
        assert server is not None
        if self._database_away:
            return False
        self._database_away = True
        server.stop(how)

        def start() -> None:
            server.start()
            self._database_away = False

        self._later(seconds, start)
        return True

    def _lock(self) -> bool:
        path, seconds = self._sqlite().path, self._dice.choice([1.0, 4.0, 10.0])
        threading.Thread(target=_hold_lock, args=(path, seconds), daemon=True).start()
        return True

    def _signal_writer(self, number: signal.Signals) -> bool:
        pid = writer()
        return pid is not None and send(pid, number)

    def _stop_writer(self) -> bool:
        pid = writer()
        if pid is None or not send(pid, signal.SIGSTOP):
            return False
        self._later(self._dice.choice([2.0, 5.0]), lambda: resume(pid))
        return True

    def _harm_weights(self, harm: Callable[[Path], None]) -> bool:
        """Harm the file of weights that an unfinished trial still needs."""
        rows = self._database.read(
            "SELECT a.path, t.id FROM artifact a JOIN trial t ON t.id = a.trial_id"
            f" WHERE a.kind = 'weights' AND {_OPEN} AND a.generation = t.generation"
        )
        there = sorted(row for row in rows or () if (self._files / row[0]).is_file())
        if not there:
            return False
        path, trial = self._dice.choice(there)
        with contextlib.suppress(FileNotFoundError):
            harm(self._files / path)
        self.harmed.add(trial)
        return True

    def _step(self, seconds: float) -> bool:
        """Move all deadlines: what a step of the database's clock the other way does."""
        moved = self._database.write(f"UPDATE sweep SET lease_until_s = lease_until_s + {seconds}")
        return moved and self._database.write(
            f"UPDATE trial SET not_before_s = not_before_s + {seconds} WHERE state = 'PENDING'"
        )

    def _postgres(self) -> PostgresDatabase:
        assert isinstance(self._database, PostgresDatabase)
        return self._database

    def _sqlite(self) -> SqliteDatabase:
        assert isinstance(self._database, SqliteDatabase)
        return self._database


def _hold_lock(path: Path, seconds: float) -> None:
    with (
        contextlib.suppress(sqlite3.Error),
        contextlib.closing(sqlite3.connect(path, timeout=30, isolation_level=None)) as link,
    ):
        link.execute("BEGIN IMMEDIATE")
        time.sleep(seconds)
        link.execute("ROLLBACK")


def _truncate(path: Path) -> None:
    with path.open("r+b") as file:
        file.truncate(path.stat().st_size // 2)
