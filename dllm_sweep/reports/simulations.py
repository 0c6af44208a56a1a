"""What a simulated sweep costs, and what its trials share, as listings."""

from __future__ import annotations

import math
from collections.abc import Sequence

from dllm_sweep.outlook import Offer, Outlook
from dllm_sweep.reports.listing import Listing
from dllm_sweep.reports.plans import duration
from dllm_sweep.sharing import SharedStage

_HOUR_S = 3600.0


def forecast_listing(seen: Outlook, offer: Offer, *, full: bool) -> Listing:
    """Quantities with their medians and 90th percentiles over all runs.

    Args:
        seen: What was simulated.
        offer: On what.
        full: Plain numbers for programs; else durations as people read them.
    """
    runs = seen.runs
    times = {
        "makespan": [run.makespan_s for run in runs],
        "lower bound": [run.bound_s for run in runs],
        "baselines complete": [run.baselines_s for run in runs],
    }
    rows: list[tuple[object, ...]] = [
        ("gpus", offer.gpus, offer.gpus, ""),
        ("trials", len(seen.trials), len(seen.trials), ""),
        ("units", runs[0].units, runs[0].units, ""),
    ]
    rows += [
        (name, *(_time(value, full) for value in _spread(seconds)), "s" if full else "")
        for name, seconds in times.items()
    ]
    hours = [offer.gpus * run.makespan_s / _HOUR_S for run in runs]
    busy = [100 * run.busy_s / (offer.gpus * run.makespan_s or 1.0) for run in runs]
    rows.append(("gpu hours", *_rounded(hours), "h"))
    rows.append(("gpus busy", *_rounded(busy), "%"))
    if offer.mtbf_h is not None:
        rows.append(("units redone", *_rounded([float(run.redone) for run in runs]), ""))
    if offer.price is not None:
        rows.append(("cost", *_rounded([offer.price * h for h in hours]), ""))
    return _narrow(Listing(("quantity", "p50", "p90", "unit"), tuple(rows)), len(runs))


def shared_listing(stages: Sequence[SharedStage]) -> Listing:
    """What is done once for several trials."""
    rows = ((one.kind, one.what, one.trials, duration(one.saved_s)) for one in stages)
    return Listing(("shared", "what", "trials", "saves"), tuple(rows))


def _narrow(listing: Listing, runs: int) -> Listing:
    """Of a single run there are no percentiles."""
    if runs > 1:
        return listing
    columns = ("quantity", "value", "unit")
    return Listing(columns, tuple((row[0], row[1], row[3]) for row in listing.rows))


def _spread(values: Sequence[float]) -> tuple[float, float]:
    """The median and the 90th percentile, by nearest rank."""
    ordered = sorted(values)
    ranks = (math.ceil(share * len(ordered)) - 1 for share in (0.5, 0.9))
    half, most = (ordered[rank] for rank in ranks)
    return half, most


def _rounded(values: Sequence[float]) -> tuple[float, ...]:
    return tuple(round(value, 2) for value in _spread(values))


def _time(seconds: float, full: bool) -> object:
    return round(seconds, 1) if full else duration(seconds)
