"""The kinds of faults, how often each is drawn, and the crash points that they exercise."""

from __future__ import annotations

import random
from dataclasses import dataclass

BOTH = ("sqlite", "postgres")


@dataclass(frozen=True)
class Kind:
    """One kind of fault.

    Attributes:
        name: As the report prints it.
        weight: Share of a campaign, in thousandths.
        inside: Whether it happens in a unit of work, at the unit's own moment; else from outside.
        stores: Databases with which it means something.
        points: The crash points (docs/crash-points.md) that it exercises.
    """

    name: str
    weight: int
    inside: bool = False
    stores: tuple[str, ...] = BOTH
    points: tuple[int, ...] = ()


KINDS = (
    Kind("unit raises: passing", 90, inside=True, points=(4,)),
    Kind("unit raises: for good", 50, inside=True, points=(4,)),
    Kind("unit raises: host memory", 30, inside=True, points=(4,)),
    Kind("unit raises: GPU memory", 35, inside=True, points=(15,)),
    Kind("unit raises: disk full", 6, inside=True, points=(12,)),
    Kind("unit kills its process", 50, inside=True, points=(3, 14)),
    Kind("unit leaves by os._exit", 25, inside=True, points=(5,)),
    Kind("unit leaves by sys.exit", 25, inside=True, points=(5,)),
    Kind("unit ends before its commit", 40, inside=True, points=(22,)),
    Kind("unit ends in its commit", 40, inside=True, stores=("postgres",), points=(22,)),
    Kind("unit is told to end (SIGTERM)", 25, inside=True, points=(8,)),
    Kind("unit hangs", 8, inside=True),
    Kind("unit is slow", 60, inside=True),
    Kind("poison trial", 3, inside=True, points=(21,)),
    Kind("worker killed", 60, points=(3, 14)),
    Kind("worker stopped for a while", 45, points=(20,)),
    Kind("controller killed", 20, points=(2,)),
    Kind("controller dies after a claim", 10, points=(1,)),
    Kind("controller interrupted once", 8, points=(9,)),
    Kind("controller interrupted twice", 6, points=(9,)),
    Kind("controller stopped and overtaken", 8, points=(16,)),
    Kind("second controller", 10, points=(16,)),
    Kind("second controller with --takeover", 8, points=(16,)),
    Kind("node removed, another added", 10, points=(6,)),
    Kind("raylet stopped for a while", 6, points=(7,)),
    Kind("link cut after COMMIT", 70, stores=("postgres",), points=(11,)),
    Kind("link cut before COMMIT", 40, stores=("postgres",), points=(11,)),
    Kind("all links cut", 40, stores=("postgres",), points=(10,)),
    Kind("database restarted", 15, stores=("postgres",), points=(10,)),
    Kind("database crashed and recovered", 8, stores=("postgres",), points=(10,)),
    Kind("database stopped for seconds", 8, stores=("postgres",), points=(10,)),
    Kind("database stopped for a minute", 2, stores=("postgres",), points=(10,)),
    Kind("database locked by another", 50, stores=("sqlite",), points=(10,)),
    Kind("writer process killed", 40, stores=("sqlite",), points=(10,)),
    Kind("writer process stopped for a while", 30, stores=("sqlite",), points=(10,)),
    Kind("weights truncated", 45, points=(23,)),
    Kind("weights deleted", 30, points=(23,)),
    Kind("database clock an hour on", 12, points=(19,)),
    Kind("database clock an hour back", 12, points=(19,)),
)
BY_NAME = {kind.name: kind for kind in KINDS}


def deck(faults: int, store: str, dice: random.Random) -> list[Kind]:
    """That many faults in random order: every kind at least once if there is room, then by weight.

    Args:
        faults: How many.
        store: The database they are for.
        dice: What makes the choice.
    """
    kinds = [kind for kind in KINDS if store in kind.stores]
    whole = sum(kind.weight for kind in kinds)
    shares = {kind.name: faults * kind.weight / whole for kind in kinds}
    counts = {name: max(1, int(share)) for name, share in shares.items()}
    by_rest = sorted(kinds, key=lambda kind: shares[kind.name] % 1, reverse=True)
    while sum(counts.values()) < faults:
        counts[by_rest[sum(counts.values()) % len(by_rest)].name] += 1
    drawn = [kind for kind in kinds for _ in range(counts[kind.name])]
    dice.shuffle(drawn)
    return drawn[:faults]
