"""Many random runs with stalled, stopped and killed workers on one store.

python benchmarks/zombies.py --runs 200 --seed 1 --store sqlite
"""

from __future__ import annotations

import contextlib
import json
import signal
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path

import click

ROOT = Path(__file__).parents[1]


@contextlib.contextmanager
def store_of(kind: str) -> Iterator[str]:
    """The address of a new store that lasts as long as the campaign."""
    from tests.postgres import running

    if kind == "postgres":
        with running() as server, server.database() as url:
            yield url
        return
    with tempfile.TemporaryDirectory() as folder:
        yield f"sqlite:///{folder}/store.db"


@click.command()
@click.option("--runs", default=200, show_default=True, help="Number of runs.")
@click.option("--seed", default=1, show_default=True, help="Seed of the first run.")
@click.option("--store", type=click.Choice(["sqlite", "postgres"]), default="sqlite")
@click.option("--format", "form", type=click.Choice(["table", "json"]), default="table")
def main(runs: int, seed: int, store: str, form: str) -> None:
    """Run the campaign; exits with 1 if it was stopped, or if a trial has
    results of two quantizations, or results too many or too few."""
    from tests.db.zombies import Report, run

    total, began_s, done = Report(), time.monotonic(), 0
    signal.signal(signal.SIGTERM, signal.default_int_handler)
    # A campaign that is stopped tells what it has seen so far.
    with contextlib.suppress(KeyboardInterrupt), store_of(store) as url:
        for number in range(runs):
            total.add(run(url, seed + number))
            done += 1
    numbers = {"store": store, "runs": done, "wall_s": round(time.monotonic() - began_s, 1)}
    numbers |= vars(total)
    if form == "json":
        click.echo(json.dumps(numbers, indent=1))
    else:
        click.echo("".join(f"{name:<10} {value}\n" for name, value in numbers.items()), nl=False)
    sys.exit(1 if done < runs or total.mixed or total.doubled or total.missing else 0)


if __name__ == "__main__":
    sys.path.insert(0, str(ROOT))
    main()
