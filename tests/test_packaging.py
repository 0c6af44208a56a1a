"""What is installed is what is in the repository: no file forgotten, none too many."""

import subprocess
import sys
import zipfile
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
MAPPED = ("workers/", "kernels/", "db/")


@pytest.mark.slow
def test_the_wheel_holds_exactly_the_files_of_the_four_folders(tmp_path):
    listed = subprocess.run(
        ["git", "ls-tree", "-r", "--name-only", "HEAD", "dllm_sweep", *MAPPED],
        cwd=ROOT,
        capture_output=True,
        text=True,
        check=True,
    )
    expected = {
        f"dllm_sweep/{name}" if name.startswith(MAPPED) else name
        for name in listed.stdout.splitlines()
    }
    source = tmp_path / "source"
    subprocess.run(["git", "clone", "--quiet", "--no-hardlinks", ROOT, source], check=True)
    subprocess.run(
        [sys.executable, "-m", "build", "--wheel", "--no-isolation", "--outdir", tmp_path, source],
        check=True,
        capture_output=True,
    )
    (wheel,) = tmp_path.glob("*.whl")
    packed = {
        name
        for name in zipfile.ZipFile(wheel).namelist()
        if not name.split("/")[0].endswith("-info")
    }
    assert packed == expected
