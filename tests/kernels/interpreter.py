"""Running a kernel's own test file in Triton's interpreter, without a GPU."""

import os
import subprocess
import sys

import pytest


def what_it_prints(file):
    """What a file prints as a script; Triton reads the variable when it is first imported, so it
    takes a fresh process."""
    pytest.importorskip("triton")
    done = subprocess.run(
        [sys.executable, file],
        env={**os.environ, "TRITON_INTERPRET": "1", "PYTHONPATH": os.pathsep.join(sys.path)},
        capture_output=True,
        text=True,
        timeout=120,
    )
    assert done.returncode == 0, done.stderr
    return done.stdout.strip()
