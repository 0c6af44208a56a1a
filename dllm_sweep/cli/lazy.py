"""A Click group that imports a command when it is called, and the one place that ends errors."""

from __future__ import annotations

import importlib
import sys
import traceback
from collections.abc import Mapping, Sequence
from typing import Any, NoReturn

import click

from dllm_sweep.errors import SweepError, SweepFileError, suggestion

INTERRUPTED = 130


class LazyGroup(click.Group):
    """A group of commands of which only the names and one line of help are known at first.

    Args:
        commands_by_file: Command -> (file of this folder, one line of help).
    """

    def __init__(
        self, *args: Any, commands_by_file: Mapping[str, tuple[str, str]], **kwargs: Any
    ) -> None:
        super().__init__(*args, **kwargs)
        self._by_file = commands_by_file

    def list_commands(self, ctx: click.Context) -> list[str]:
        """All commands, sorted."""
        return sorted(self._by_file)

    def get_command(self, ctx: click.Context, cmd_name: str) -> click.Command | None:
        """Import the command's file and find it there."""
        if cmd_name not in self._by_file:
            return None
        file, _ = self._by_file[cmd_name]
        module = importlib.import_module(f"dllm_sweep.cli.{file}")
        command: click.Command = getattr(module, f"{cmd_name}_command")
        return command

    def resolve_command(
        self, ctx: click.Context, args: list[str]
    ) -> tuple[str | None, click.Command | None, list[str]]:
        """Find the command, or say which one is nearest to what was typed."""
        name = args[0]
        if name not in self._by_file and not name.startswith("-"):
            ctx.fail(f"unknown command {name!r}{suggestion(name, self.list_commands(ctx))}")
        return super().resolve_command(ctx, args)

    def format_commands(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:
        """List the commands without importing them."""
        with formatter.section("Commands"):
            formatter.write_dl([(name, self._by_file[name][1]) for name in sorted(self._by_file)])

    def main(  # type: ignore[override]
        self, args: Sequence[str] | None = None, prog_name: str | None = None, **extra: Any
    ) -> NoReturn:
        """Run the command line; every way out of it passes here."""
        written = list(sys.argv[1:] if args is None else args)
        extra["standalone_mode"] = False
        try:
            result = super().main(written, prog_name, **extra)
        except click.ClickException as error:
            error.show()
            sys.exit(error.exit_code)
        except SweepError as error:
            # Each line about a sweep file begins with the file, as editors like it.
            start = "" if isinstance(error, SweepFileError) else "dllm-sweep: "
            _say(f"{start}{error}", debug="--debug" in written)
            sys.exit(error.exit_code)
        except (click.Abort, KeyboardInterrupt):
            _say("dllm-sweep: interrupted", debug=False)
            sys.exit(INTERRUPTED)
        except Exception as error:
            debug = "--debug" in written
            text = " ".join(f"{type(error).__name__}: {error}".split())
            hint = "" if debug else " (run `dllm-sweep --debug ...` to see where)"
            _say(f"dllm-sweep: unexpected error: {text}{hint}", debug=debug)
            sys.exit(SweepError.exit_code)
        sys.exit(result if isinstance(result, int) else 0)


def _say(message: str, *, debug: bool) -> None:
    if debug:
        traceback.print_exc()
    click.echo(message, err=True)
