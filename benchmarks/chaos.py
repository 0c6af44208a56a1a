"""A long campaign of random faults against the real product, and an account of what was lost.

    python benchmarks/chaos.py --faults 500 --seed 7 --store postgres

Real parts: a Ray cluster of two nodes on this machine, controllers as processes of their own,
the actors, pool and store of the product. Only the work inside of a unit is made up, so that it
needs no model and its numbers are known. Exits with 1 unless nothing was lost, doubled, mixed or
changed, and no unit was redone that was not in flight at a fault.
"""

from __future__ import annotations

import argparse
import dataclasses
import json
import random
import sys
import tempfile
import time
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from chaos_kit.campaign import Campaign, Report, Stuck
from chaos_kit.kinds import deck
from chaos_kit.site import RayCluster, database


def main() -> int:
    """Run a campaign and print what came of it."""
    given = _arguments()
    cards = deck(given.faults, given.store, random.Random(f"{given.seed}/deck"))
    folder = Path(tempfile.mkdtemp(prefix="dllm-sweep-chaos-"))
    with database(given.store, folder) as base:
        cluster = RayCluster()
        campaign = Campaign(base, cluster, folder, given.seed, _say)
        try:
            campaign.run(cards, time.monotonic() + 60 * given.minutes)
        except Stuck as stuck:
            campaign.report.totals.wrong.append(str(stuck))
        except KeyboardInterrupt:
            _say("stopped: this is the account of the rounds that were finished")
        finally:
            campaign.close()
            cluster.close()
    report = campaign.report
    report.totals.wrong += campaign.unexpected()
    print(_json(report) if given.format == "json" else _text(report, given))
    if not report.totals.holds:
        _say(f"logs and files: {folder}")
    return 0 if report.totals.holds else 1


def _arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--faults", type=int, default=100)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--store", choices=["sqlite", "postgres"], default="postgres")
    parser.add_argument("--minutes", type=float, default=60.0, help="begin no round after this")
    parser.add_argument("--format", choices=["text", "json"], default="text")
    return parser.parse_args()


def _say(line: str) -> None:
    print(line, file=sys.stderr, flush=True)


def _json(report: Report) -> str:
    data = dataclasses.asdict(report) | {"holds": report.totals.holds}
    return json.dumps(data, indent=1, sort_keys=True)


def _text(report: Report, given: argparse.Namespace) -> str:
    totals = report.totals
    kinds = "".join(f"  {count:5}  {name}\n" for name, count in sorted(report.injected.items()))
    exits = ", ".join(f"{code}: {count}" for code, count in sorted(report.exits.items()))
    wrong = "".join(f"  {line}\n" for line in totals.wrong)
    return (
        f"faults injected: {sum(report.injected.values())} (seed {given.seed}, {given.store})\n"
        f"{kinds}"
        f"sweeps: {report.rounds}, exit codes of their controllers: {exits}\n"
        f"units: {totals.units}, begun {totals.executed} times\n"
        f"units redone: {totals.redone}, of them in flight at a fault: {totals.in_flight}\n"
        f"weights made again since their file was harmed: {totals.remade}\n"
        f"units measured again on new weights: {totals.superseded}\n"
        f"results lost: {totals.lost}\n"
        f"results doubled: {totals.doubled}\n"
        f"trials mixed from two attempts: {totals.mixed}\n"
        f"results unlike the undisturbed run: {totals.different}\n"
        f"anything else wrong: {len(totals.wrong)}\n{wrong}"
        f"time: {report.wall_s / 60:.1f} min\n"
        f"{'holds' if totals.holds else 'DOES NOT HOLD'}"
    )


if __name__ == "__main__":
    raise SystemExit(main())
