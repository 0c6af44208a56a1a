"""A controller process of a campaign: the product's own, with short limits and one way to die.

python controller_main.py SWEEP ADDRESS FILES-URL [--takeover] [--die-at CALL]

The store is the environment's.
"""

from __future__ import annotations

import argparse
import os

UNIT_BUDGET_S = 12.0
"""After this a unit is taken to hang; half an hour outside of campaigns."""


def main() -> int:
    """Run a sweep as `dllm-sweep resume` does; returns its exit code."""
    parser = argparse.ArgumentParser()
    parser.add_argument("sweep")
    parser.add_argument("address")
    parser.add_argument("files")
    parser.add_argument("--actors", type=int, default=3)
    parser.add_argument("--takeover", action="store_true")
    parser.add_argument("--die-at", type=int, help="die right after this claim")
    given = parser.parse_args()
    from dllm_sweep import dispatch
    from dllm_sweep.errors import SweepError
    from dllm_sweep.run import RunOptions, run_sweep

    dispatch._SHORTEST_BUDGET_S = UNIT_BUDGET_S
    if given.die_at is not None:
        _die_after_claim(given.die_at)
    options = RunOptions(
        address=given.address,
        actors=given.actors,
        takeover=given.takeover,
        files=given.files,
        bench="chaos_kit.bench:ChaosBench",
    )
    try:
        summary = run_sweep(os.environ["DLLM_SWEEP_STORE"], given.sweep, options)
    except SweepError as error:
        print(f"ended: {type(error).__name__}: {error}", flush=True)
        return error.exit_code
    return 130 if summary.interrupted else int(summary.failed > 0)


def _die_after_claim(number: int) -> None:
    """Die after the store has given a claim, before any worker hears of it."""
    from dllm_sweep import dispatch

    left = number
    claim = dispatch.Dispatcher._claim

    def claim_and_die(*arguments: object) -> bool:
        nonlocal left
        claimed = claim(*arguments)  # type: ignore[arg-type]
        left -= 1
        if left <= 0:
            print("ended: died after a claim", flush=True)
            os._exit(75)
        return claimed

    dispatch.Dispatcher._claim = claim_and_die  # type: ignore[method-assign,assignment]


if __name__ == "__main__":
    try:
        raise SystemExit(main())
    except KeyboardInterrupt:
        # As the command line does, before the sweep's own handler is in place.
        raise SystemExit(130) from None
