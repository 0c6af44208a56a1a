"""A Postgres server of the tests' own in a temporary folder, and a link to it that can be cut."""

from __future__ import annotations

import contextlib
import os
import pwd
import secrets
import shutil
import signal
import socket
import subprocess
import tempfile
import threading
import time
import uuid
from collections.abc import Iterator
from pathlib import Path

import psycopg

HOST = "127.0.0.1"
USER = "sweeper"
_START_S = 60.0
_NEEDED = ("initdb", "postgres", "pg_dump")
_SETTINGS = {
    # A killed server keeps what it has committed; only a power cut would lose it.
    "fsync": "off",
    "full_page_writes": "off",
    "listen_addresses": HOST,
    "max_connections": "200",
    "shared_buffers": "64MB",
}


class PostgresMissing(RuntimeError):
    """There is no Postgres server on this machine."""


def binaries() -> Path:
    """The folder with the newest server's programs.

    Raises:
        PostgresMissing: If there is none.
    """
    on_path = shutil.which("initdb")
    folders = [Path(on_path).resolve().parent] if on_path else []
    folders += sorted(Path("/usr/lib/postgresql").glob("*/bin"), key=_version, reverse=True)
    for folder in folders:
        if all((folder / name).exists() for name in _NEEDED):
            return folder
    raise PostgresMissing(
        "these tests start a Postgres server of their own and found none on PATH or in"
        " /usr/lib/postgresql; install one, as with: apt-get install postgresql"
    )


def _version(folder: Path) -> float:
    try:
        return float(folder.parent.name)
    except ValueError:
        return 0.0


class Postgres:
    """One server; `running` makes one that ends by itself. Its port stays over restarts.

    Args:
        folder: An empty folder that the server's user may enter.
        durable: Whether commits outlive a power cut: slower, for measurements.
    """

    def __init__(self, folder: Path, *, durable: bool = False) -> None:
        self._folder, self._bin, self._user = folder, binaries(), _server_user()
        self._settings = dict(_SETTINGS)
        if durable:
            self._settings |= {"fsync": "on", "full_page_writes": "on"}
        self._process: subprocess.Popen[bytes] | None = None
        self.password = secrets.token_hex(8)
        self.port = free_port()
        self._initialize()

    @property
    def pid(self) -> int:
        """Process id of the server."""
        assert self._process is not None, "the server is stopped"
        return self._process.pid

    def url(self, database: str = "postgres", *, port: int | None = None) -> str:
        """The address of a database with its password, over TCP; `port` may be a proxy's."""
        return f"postgresql://{USER}:{self.password}@{HOST}:{port or self.port}/{database}"

    def start(self) -> None:
        """Start the server and wait until it takes connections."""
        settings = {**self._settings, "port": self.port, "unix_socket_directories": self._folder}
        options = [part for name, value in settings.items() for part in ("-c", f"{name}={value}")]
        with (self._folder / "log").open("ab") as log:
            self._process = subprocess.Popen(
                [self._bin / "postgres", "-D", self._folder / "data", *options],
                stdout=log,
                stderr=log,
                cwd=self._folder,
                start_new_session=True,
                **self._user,
            )
        self._wait_until_it_answers()

    def stop(self, how: signal.Signals = signal.SIGINT) -> None:
        """Stop the server: SIGINT ends its connections, SIGQUIT is as good as a crash."""
        if self._process is not None:
            self._process.send_signal(how)
            self._process.wait(_START_S)
            self._process = None

    def restart(self) -> None:
        """Stop and start the server."""
        self.stop()
        self.start()

    def execute(self, sql: str) -> list[tuple]:
        """Run one statement as the server's owner; returns its rows."""
        with psycopg.connect(self.url(), autocommit=True) as connection:
            cursor = connection.execute(sql)
            return cursor.fetchall() if cursor.description else []

    @contextlib.contextmanager
    def database(self, template: str = "template1") -> Iterator[str]:
        """The address of a new database, a copy of `template`; it is dropped afterwards."""
        name = f"test_{uuid.uuid4().hex}"
        self.execute(f"CREATE DATABASE {name} TEMPLATE {template}")
        yield self.url(name)
        self.execute(f"DROP DATABASE {name} WITH (FORCE)")

    def _initialize(self) -> None:
        password = self._folder / "password"
        password.write_text(self.password)
        if self._user:
            shutil.chown(self._folder, self._user["user"], self._user["group"])
            shutil.chown(password, self._user["user"], self._user["group"])
        command = [self._bin / "initdb", "-D", self._folder / "data", "-U", USER, "--no-sync"]
        command += ["--encoding=UTF8", "--locale=C", "--auth=scram-sha-256", f"--pwfile={password}"]
        subprocess.run(
            command, check=True, capture_output=True, cwd=self._folder, timeout=60, **self._user
        )

    def _wait_until_it_answers(self) -> None:
        deadline = time.monotonic() + _START_S
        while True:
            try:
                psycopg.connect(self.url(), connect_timeout=5).close()
                return
            except psycopg.OperationalError:
                ended = self._process is None or self._process.poll() is not None
                if ended or time.monotonic() > deadline:
                    raise RuntimeError((self._folder / "log").read_text()[-2000:]) from None
                time.sleep(0.02)


@contextlib.contextmanager
def running(*, durable: bool = False) -> Iterator[Postgres]:
    """A server that is stopped and removed at the end."""
    folder = Path(tempfile.mkdtemp(prefix="dllm-sweep-postgres-"))
    server = None
    try:
        server = Postgres(folder, durable=durable)
        server.start()
        yield server
    finally:
        if server is not None:
            server.stop(signal.SIGQUIT)
        shutil.rmtree(folder, ignore_errors=True)


def free_port() -> int:
    """A TCP port that nothing listens on."""
    with socket.socket() as probe:
        probe.bind((HOST, 0))
        port: int = probe.getsockname()[1]
        return port


def _server_user() -> dict[str, str | int | list[int]]:
    """How to start a process as another user if this one is root, whom Postgres refuses."""
    if os.geteuid() != 0:
        return {}
    for name in ("postgres", "nobody"):
        with contextlib.suppress(KeyError):
            entry = pwd.getpwnam(name)
            return {"user": entry.pw_uid, "group": entry.pw_gid, "extra_groups": []}
    raise PostgresMissing("Postgres refuses to run as root, and there is no user to run it as")


class Proxy:
    """A link to a server on this host that can be cut at the moment of a COMMIT.

    Args:
        port: The server's port.
    """

    def __init__(self, port: int) -> None:
        self._target = port
        self._listener = socket.create_server((HOST, 0))
        self._links: list[_Link] = []
        self.port: int = self._listener.getsockname()[1]
        self.armed = ""
        self.cuts = 0
        threading.Thread(target=self._accept, daemon=True).start()

    def cut_after_commit(self) -> None:
        """Let the next COMMIT reach the server, but never its answer the client."""
        self.armed = "after"

    def cut_before_commit(self) -> None:
        """Cut the link instead of passing the next COMMIT on."""
        self.armed = "before"

    def cut(self) -> None:
        """Cut all links now; new ones may be made."""
        for link in self._links:
            link.cut()

    def close(self) -> None:
        """Stop listening and cut all links."""
        _cut(self._listener)
        self.cut()

    def _accept(self) -> None:
        with contextlib.suppress(OSError):
            while True:
                client, _ = self._listener.accept()
                self._links.append(_Link(self, client, self._target))


class _Link:
    """One connection through a proxy."""

    def __init__(self, proxy: Proxy, client: socket.socket, port: int) -> None:
        self._proxy, self._client = proxy, client
        self._answered, self._deaf = threading.Event(), False
        try:
            self._server = socket.create_connection((HOST, port))
        except OSError:
            client.close()
            self._server = client
            return
        for work in (self._ask, self._answer):
            threading.Thread(target=work, daemon=True).start()

    def cut(self) -> None:
        """End both sides."""
        _cut(self._client)
        _cut(self._server)

    def _ask(self) -> None:
        with contextlib.suppress(OSError):
            while data := self._client.recv(65536):
                if self._proxy.armed and b"COMMIT" in data:
                    self._cut_at(data)
                    break
                self._server.sendall(data)
        self.cut()

    def _cut_at(self, data: bytes) -> None:
        how, self._proxy.armed = self._proxy.armed, ""
        if how == "after":
            self._deaf = True
            self._server.sendall(data)
            self._answered.wait(_START_S)
        self._proxy.cuts += 1

    def _answer(self) -> None:
        with contextlib.suppress(OSError):
            while (data := self._server.recv(65536)) and not self._deaf:
                self._client.sendall(data)
        self._answered.set()
        self.cut()


def _cut(end: socket.socket) -> None:
    with contextlib.suppress(OSError):
        end.shutdown(socket.SHUT_RDWR)
    end.close()
