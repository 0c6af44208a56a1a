"""A store's password opens the store and is found nowhere else."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from urllib.parse import quote

import pytest
import sqlalchemy as sa
from click.testing import CliRunner

from dllm_sweep.cli import main
from dllm_sweep.db.connect import open_store
from dllm_sweep.db.engines import parse_url, safe_url
from dllm_sweep.db.schema import Base
from dllm_sweep.errors import StoreError, SweepFileError
from dllm_sweep.stored import preferred, resolve_store, without_passwords
from dllm_sweep.sweep_file import parse, read
from tests.db.old_stores import make_first

SECRET = "hunter2/p@ss"
WRITTEN = quote(SECRET, safe="")
ROOT = Path(__file__).parents[2]


@pytest.fixture
def address(postgres, monkeypatch):
    """A database whose owner has the secret as password."""
    postgres.execute(f"ALTER ROLE sweeper PASSWORD '{SECRET}'")
    monkeypatch.setattr(postgres, "password", WRITTEN)
    with postgres.database() as url:
        yield url
    monkeypatch.undo()
    with sa.create_engine(parse_url(url).set(database="postgres")).begin() as connection:
        connection.exec_driver_sql(f"ALTER ROLE sweeper PASSWORD '{postgres.password}'")


@pytest.fixture
def sweep_file(workplace, address):
    """A sweep file that names the store with its password, also in a comment."""
    data = {"models": ["toy"], "methods": ["rtn"], "schemes": ["w8a8"], "tasks": ["own.yaml"]}
    data |= {"calibration": "text.txt", "outliers": False}
    text = json.dumps(data, indent=1)[:-1] + f',\n "store": "{address}"\n}}\n# was {address}\n'
    (workplace / "sweep.yaml").write_text(text)
    return workplace / "sweep.yaml"


def run(*args):
    """All that a command prints, and that must not hold the password."""
    answer = CliRunner().invoke(main, list(args))
    assert_clean(answer.output)
    return answer


def assert_clean(text):
    assert SECRET not in text
    assert WRITTEN not in text


def everything_in(address):
    """All rows of all tables as text."""
    store = open_store(address)
    try:
        return "\n".join(
            repr(store.query(f"SELECT * FROM {table}").rows) for table in Base.metadata.tables
        )
    finally:
        store.close()


def test_what_a_sweep_file_names_is_used_and_the_password_is_not_kept(sweep_file, address):
    file = read(sweep_file)
    store = open_store(file.store_address)
    store.plan_sweep(file.name, file.text, ())
    source = store.sweep("sweep").source
    store.close()
    assert parse_url(file.store_address).password == SECRET
    assert_clean(everything_in(address))
    assert_clean(repr(file))
    again = parse(source, sweep_file)
    assert again.models == file.models
    assert again.store_address == file.store_address.replace(f":{WRITTEN}@", "@")


def test_no_command_prints_it(sweep_file, address):
    open_store(address).close()
    for command in (
        ["plan", str(sweep_file)],
        ["db", "current", "--store", address],
        ["db", "check", "--store", address],
        ["--debug", "status", "nothing", "--store", address],
        ["--debug", "status", "--store", f"{address}_of_nobody"],
        ["--debug", "sql", "SELECT nothing", "--store", address],
        ["db", "backup", "copy.dump", "--store", address],
        ["doctor", "--store", address],
    ):
        run(*command)
    assert SECRET.encode() not in Path("copy.dump").read_bytes()


def test_a_store_of_an_older_version_is_named_without_it(address, workplace):
    make_first(address)
    answer = run("--debug", "status", "--store", address)
    assert answer.exit_code == 3
    assert "db upgrade --store" in answer.output
    assert run("db", "upgrade", "--store", address).exit_code == 0


def test_wrong_passwords_are_not_printed_either(address, workplace):
    for wrong in (
        address.replace(WRITTEN, "hunter3"),
        address.replace("postgresql://", "mysql://"),
        address.replace("postgresql://", "postgresql:/"),
        address.replace("@127", "@:127"),
        f"postgresql://me@127.0.0.1:1/x?password={WRITTEN}",
        f"postgresql://me@127.0.0.1:1/x?sslpassword={WRITTEN}",
    ):
        answer = run("--debug", "status", "--store", wrong)
        assert answer.exit_code == 3, answer.output
        assert "hunter3" not in answer.output


def test_a_command_line_of_ours_never_holds_it(address, tmp_path, monkeypatch):
    """`pg_dump` is told by the environment: every user of the machine sees command lines."""
    from dllm_sweep.db import backup

    seen = []
    real = subprocess.run

    def watch(command, **options):
        seen.append(" ".join(map(str, command)))
        return real(command, **options)

    monkeypatch.setattr(backup.subprocess, "run", watch)
    open_store(address).close()
    backup.backup(address, tmp_path / "copy.dump")
    assert len(seen) == 1
    assert_clean(seen[0])


def test_the_environment_and_pgpass_may_hold_it_instead(address, tmp_path, monkeypatch):
    url = parse_url(address)
    bare = url._replace(password=None).render_as_string()
    with pytest.raises(StoreError, match=r"PGPASSWORD or in ~/.pgpass"):
        open_store(bare)
    monkeypatch.setenv("PGPASSWORD", SECRET)
    open_store(bare).close()
    monkeypatch.delenv("PGPASSWORD")
    pgpass = tmp_path / "pgpass"
    pgpass.write_text(f"127.0.0.1:{url.port}:*:{url.username}:{SECRET}\n")
    pgpass.chmod(0o600)
    monkeypatch.setenv("PGPASSFILE", str(pgpass))
    open_store(bare).close()


def test_the_command_line_goes_before_the_environment_and_that_before_the_file(monkeypatch):
    monkeypatch.delenv("DLLM_SWEEP_STORE", raising=False)
    assert preferred(None, None) is None
    assert preferred(None, "file.db") == "file.db"
    monkeypatch.setenv("DLLM_SWEEP_STORE", "environment.db")
    assert preferred(None, "file.db") == "environment.db"
    assert preferred("given.db", "file.db") == "given.db"


def test_a_file_that_a_sweep_file_names_lies_beside_it(workplace, tmp_path, monkeypatch):
    data = {"models": ["toy"], "methods": ["fp"], "tasks": ["own.yaml"], "outliers": False}
    file = parse(json.dumps(data | {"store": "results.db"}), tmp_path / "sweep.yaml")
    assert file.store_address == f"sqlite:///{tmp_path}/results.db"
    monkeypatch.chdir("/")
    assert resolve_store(file.store_address) == file.store_address


@pytest.mark.parametrize(
    "store",
    ["mysql://u:hunter2@h/db", "postgresql://u:hunter2@h:port/db", "postgres:u:hunter2@h/db"],
)
def test_a_store_that_is_none_is_a_problem_of_the_file(workplace, store):
    data = {"models": ["toy"], "methods": ["fp"], "tasks": ["own.yaml"], "outliers": False}
    with pytest.raises(SweepFileError, match=r"store: .*not a store's address") as error:
        parse(json.dumps(data | {"store": store}), workplace / "sweep.yaml")
    assert "hunter2" not in str(error.value)


def test_a_password_that_cannot_be_taken_out_is_refused(workplace):
    text = "models: [toy]\nmethods: [fp]\ntasks: [own.yaml]\noutliers: false\n"
    text += 'store: "postgresql://u:two words@h/db"\n'
    with pytest.raises(SweepFileError, match="line 5: store: write special characters") as error:
        parse(text, workplace / "sweep.yaml")
    assert "two words" not in str(error.value)


@pytest.mark.parametrize(
    ("text", "clean"),
    [
        ("store: postgresql://u:p@h/db", "store: postgresql://u@h/db"),
        ("# postgresql://u:p%40q@h/db # a@b", "# postgresql://u@h/db # a@b"),
        ("files: s3://key:secret@bucket/x", "files: s3://key@bucket/x"),
        ("s: postgresql://h/db?password=p&sslmode=on", "s: postgresql://h/db?sslmode=on"),
        ("s: postgresql://h/db?sslmode=on&sslpassword=p", "s: postgresql://h/db?sslmode=on&"),
        ("see https://host:8080/path and a:b", "see https://host:8080/path and a:b"),
    ],
)
def test_passwords_are_taken_out_of_addresses_and_nothing_else(text, clean):
    assert without_passwords(text) == clean


def test_an_address_with_the_password_among_its_options_is_shown_without(address):
    url = parse_url(f"postgresql://me@h/db?password={WRITTEN}&sslpassword=x&sslmode=require")
    assert url.password == SECRET
    assert safe_url(url) == "postgresql://me:***@h/db?sslmode=require"


def test_another_process_prints_it_neither(address, workplace):
    """The whole way: a real command, its log and its traceback."""
    for command in (["status"], ["--debug", "status", "nothing"]):
        done = subprocess.run(
            [sys.executable, "-m", "dllm_sweep", *command],
            env={**os.environ, "PYTHONPATH": str(ROOT), "DLLM_SWEEP_STORE": address},
            capture_output=True,
            text=True,
            check=False,
        )
        assert done.returncode in (2, 3)
        assert_clean(done.stdout + done.stderr)
