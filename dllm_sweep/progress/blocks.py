"""What a person sees while one model is quantized: a bar on a terminal, lines elsewhere."""

from __future__ import annotations

from types import TracebackType
from typing import IO, Any, Self

from dllm_sweep.progress.bar import counting_bar


class BlockLines:
    """A line for every step and every block.

    Args:
        stream: Where the lines go.
    """

    def __init__(self, stream: IO[str]) -> None:
        self._stream = stream

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        """There is nothing to take away."""

    def note(self, text: str) -> None:
        """Write it."""
        print(text, file=self._stream, flush=True)

    def block(self, done: int, total: int) -> None:
        """Write how many blocks are quantized."""
        self.note(f"quantized block {done} of {total}")


class BlockBar:
    """A bar that goes forward with every block, under the steps before."""

    def __init__(self) -> None:
        from rich.console import Console

        self._progress = counting_bar(Console(stderr=True, highlight=False, markup=False))
        self._task: Any = None

    def __enter__(self) -> Self:
        self._progress.start()
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self._progress.stop()

    def note(self, text: str) -> None:
        """Write it above the bar."""
        self._progress.console.print(text)

    def block(self, done: int, total: int) -> None:
        """Move the bar."""
        if self._task is None:
            self._task = self._progress.add_task("blocks", total=total)
        self._progress.update(self._task, completed=done)
