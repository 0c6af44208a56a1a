"""Giving up trials whose scores have collapsed, on evidence, after a fixed number of looks.

A trial is looked at when a few cheap tasks are measured. It is given up when on enough of them
even the optimistic end of the interval of its score, relative to full precision, is below what
is worth going on with. The chance to give a trial up wrongly on a task is shared out over all
looks (Bonferroni), so looking more than once does not inflate it.
"""

from __future__ import annotations

import math
from collections import defaultdict
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from statistics import NormalDist
from typing import TYPE_CHECKING

from dllm_sweep.records import Score, TrialRow, TrialState
from dllm_sweep.spec import FULL_PRECISION_METHOD

if TYPE_CHECKING:
    from dllm_sweep.pieces import Job

_BASELINE = FULL_PRECISION_METHOD


@dataclass(frozen=True, kw_only=True)
class Race:
    """When a trial is given up.

    Attributes:
        tasks: How many of the cheapest tasks are looked at.
        needed: On how many of them a trial must have collapsed; at least 2.
        retains: Below this share of the full-precision score a task has collapsed.
        error: Probability to see a collapse on a task that is none, over all looks.
    """

    tasks: int = 3
    needed: int = 2
    retains: float = 0.5
    error: float = 0.05

    @property
    def looks(self) -> int:
        """How often a trial is looked at: whenever enough and one more task is measured."""
        return self.tasks - self.needed + 1

    @property
    def z(self) -> float:
        """Standard errors from the score to the end of its one-sided interval."""
        return NormalDist().inv_cdf(1 - self.error / self.looks)

    def cheapest(self, jobs: Iterable[Job]) -> frozenset[str]:
        """The tasks that are looked at: those with the smallest estimates over all trials."""
        total: dict[str, float] = defaultdict(float)
        for job in jobs:
            for key, cost_s in job.estimates.items():
                task = key.partition(":")[2].rpartition(":")[0] or key.partition(":")[2]
                total[task] += cost_s
        total.pop("", None)
        return frozenset(sorted(total, key=lambda task: (total[task], task))[: self.tasks])


@dataclass(frozen=True, kw_only=True)
class Verdict:
    """A trial to give up, and what was seen of it."""

    trial_id: int
    evidence: str


def verdicts(
    trials: Sequence[TrialRow], scores: Sequence[Score], tasks: frozenset[str], race: Race
) -> list[Verdict]:
    """Say which unfinished trials have collapsed; baselines never do.

    Args:
        trials: All trials of the sweep.
        scores: What is measured of them.
        tasks: The tasks to look at.
        race: The rule.
    """
    measured: dict[int, dict[str, Score]] = defaultdict(dict)
    for score in scores:
        if score.task in tasks:
            measured[score.trial_id][score.task] = score
    bases: dict[str, list[dict[str, Score]]] = defaultdict(list)
    for row in trials:
        if row.method == _BASELINE and row.id in measured:
            bases[row.model].append(measured[row.id])
    alive = (TrialState.PENDING, TrialState.RUNNING)
    runners = [row for row in trials if row.method != _BASELINE and row.state in alive]
    found = [
        (row.id, _collapsed(measured[row.id], bases[row.model], race))
        for row in runners
        if len(measured.get(row.id, ())) >= race.needed
    ]
    return [
        Verdict(trial_id=trial_id, evidence=_evidence(seen, race))
        for trial_id, seen in found
        if len(seen) >= max(race.needed, 2)
    ]


def _collapsed(
    mine: Mapping[str, Score], bases: Sequence[Mapping[str, Score]], race: Race
) -> dict[str, str]:
    """The tasks on which a trial has collapsed, with what was seen."""
    seen = {}
    for task, score in sorted(mine.items()):
        full = [base[task] for base in bases if task in base]
        if full and has_collapsed(score, full, race):
            seen[task] = f"{task} {_shown(score)} of {_shown(full[0])}"
    return seen


def has_collapsed(score: Score, full: Sequence[Score], race: Race) -> bool:
    """Whether even the optimistic end of a score retains less than `race.retains` of the full one.

    With the trial's score s and the full-precision score b, the share s / b is below r with
    confidence when s - r b + z se(s - r b) < 0; where lower scores are better, b / s takes its
    place. A score that is no number has collapsed.

    Args:
        score: The trial's.
        full: Those of its baselines, one a seed.
        race: The rule.
    """
    values = [base.value for base in full if base.value is not None]
    if len(values) < len(full) or not values:
        return False
    if score.value is None:
        return True
    b = math.fsum(values) / len(values)
    se_b = math.sqrt(math.fsum(_stderr(base) ** 2 for base in full)) / len(full)
    s, se_s = score.value, _stderr(score)
    r = race.retains
    if score.higher_is_better:
        margin, se = s - r * b, math.hypot(se_s, r * se_b)
    else:
        margin, se = b - r * s, math.hypot(se_b, r * se_s)
    return margin + race.z * se < 0


def _stderr(score: Score) -> float:
    """The standard error, or the Agresti-Coull one where that is larger: no item right, or all,
    does not mean that there is no doubt."""
    given = score.stderr or 0.0
    if score.value is None or not 0 <= score.value <= 1 or score.n < 1:
        return given
    n = score.n + 4
    share = (score.value * score.n + 2) / n
    return max(given, math.sqrt(share * (1 - share) / n))


def _shown(score: Score) -> str:
    return "NaN" if score.value is None else f"{score.value:.3g} (n = {score.n})"


def _evidence(seen: Mapping[str, str], race: Race) -> str:
    listed = "; ".join(seen.values())
    return (
        f"retains less than {race.retains:.0%} of full precision on {len(seen)} tasks,"
        f" {1 - race.error:.0%} confident over {race.looks} looks: {listed}"
    )
