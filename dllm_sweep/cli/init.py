"""`init`: a sweep file to start from."""

from __future__ import annotations

from pathlib import Path

import click

TEMPLATE = Path(__file__).parent / "sweep-template.yaml"


@click.command("init")
@click.argument("file", type=click.Path(path_type=Path), default="sweep.yaml")
@click.option("--force", is_flag=True, help="Overwrite the file if it exists.")
def init_command(file: Path, force: bool) -> None:
    """Write a commented sweep file to FILE (sweep.yaml)."""
    from dllm_sweep.errors import InputError

    try:
        with file.open("w" if force else "x", encoding="utf-8") as out:
            out.write(TEMPLATE.read_text(encoding="utf-8"))
    except FileExistsError:
        raise InputError(f"{file} exists already; --force overwrites it") from None
    except OSError as error:
        raise InputError(f"{file} cannot be written: {error.strerror}") from error
    click.echo(f"wrote {file}; look at it with `dllm-sweep plan {file}`")
