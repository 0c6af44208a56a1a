"""The command line. A command is one function: it parses, calls the library, prints.

Commands live in the other files of this folder and are imported when they are called, so that
`dllm-sweep --help` costs next to nothing.
"""

from __future__ import annotations

import click

from dllm_sweep import __version__
from dllm_sweep.cli.lazy import LazyGroup

COMMANDS = {
    "cancel": ("control", "Cancel trials that wait or run."),
    "cluster": ("cluster", "Look at cluster files before money is spent."),
    "compare": ("compare", "Set scores beside published ones."),
    "db": ("db", "Look after the store's tables."),
    "doctor": ("doctor", "Say what works on this machine, and what to do about the rest."),
    "failures": ("failures", "Group what went wrong by fault, each with what to do."),
    "fsck": ("upkeep", "Check the store against itself and against its files."),
    "gc": ("upkeep", "Delete files and logs that nobody needs any more."),
    "init": ("init", "Write a commented sweep file to start from."),
    "launch": ("launch", "Plan a sweep, run it, and print the leaderboard."),
    "leaderboard": ("results", "Print scores, losses and degradation classes."),
    "list": ("listing", "Say what a sweep file can name."),
    "logs": ("trials", "Print the log of a trial's attempt."),
    "pause": ("control", "Stop handing out trials, or go on with --off."),
    "plan": ("plan", "Say what a sweep would run, and why; nothing is written."),
    "quantize": ("quantize", "Quantize one model into a folder, without a sweep."),
    "rescore": ("rescore", "Score stored answers anew, without a GPU."),
    "resume": ("launch", "Run whatever is not finished of a sweep."),
    "retry": ("launch", "Run trials that failed or were cancelled again."),
    "samples": ("samples", "Print a trial's answers beside those of full precision."),
    "show": ("trials", "Print everything about one trial."),
    "sql": ("results", "Run one SELECT on the store, read-only."),
    "status": ("status", "Say who runs a sweep, how far it is, and when it will be done."),
    "sweeps": ("status", "List the sweeps of a store."),
}
"""Commands, the file of this folder that each is in, and its one line of help."""


@click.group(
    cls=LazyGroup,
    commands_by_file=COMMANDS,
    context_settings={"help_option_names": ["-h", "--help"], "max_content_width": 100},
)
@click.version_option(__version__, prog_name="dllm-sweep")
@click.option("--debug", is_flag=True, help="Show a traceback when something goes wrong.")
def main(debug: bool) -> None:
    """Sweep post-training quantization methods over diffusion language models.

    Write a sweep file with `dllm-sweep init`, look at it with `dllm-sweep plan sweep.yaml`, run
    it with `dllm-sweep launch sweep.yaml`.

    Exit codes: 0 done, 1 some trials failed or a check found a problem, 2 bad input, 3 the store
    cannot be used or another controller runs the sweep, 4 Ray, 130 interrupted.
    """
