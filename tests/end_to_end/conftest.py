"""Runs the command line as a user does: in a process group of its own, in an empty folder."""

import os
import signal
import sqlite3
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]


@dataclass
class Folder:
    """A working folder with a sweep file and a store in it."""

    path: Path

    def write(self, name, text):
        (self.path / name).write_text(text)
        return name

    def start(self, *arguments):
        return subprocess.Popen(
            [sys.executable, "-m", "dllm_sweep", *arguments],
            cwd=self.path,
            env=os.environ | {"PYTHONPATH": str(ROOT), "COLUMNS": "200"},
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            start_new_session=True,
        )

    def run(self, *arguments, code=0):
        process = self.start(*arguments)
        output = process.communicate()[0]
        assert process.returncode == code, output
        return output

    def kill_at(self, line_number, *arguments):
        """Kill the whole process group when the `line_number`-th unit is reported as done."""
        process = self.start(*arguments)
        seen = 0
        for line in process.stdout:
            seen += "done in" in line
            if seen == line_number:
                break
        os.killpg(process.pid, signal.SIGKILL)
        process.communicate()
        assert seen == line_number, "the sweep ended before it could be killed"

    def query(self, sql, *values):
        with sqlite3.connect(self.path / "dllm-sweep.db") as connection:
            return connection.execute(sql, values).fetchall()


@pytest.fixture
def folder(tmp_path):
    return Folder(tmp_path)
