"""Counters and gauges in the text format that Prometheus reads (version 0.0.4)."""

from __future__ import annotations

import threading
from collections.abc import Sequence

CONTENT_TYPE = "text/plain; version=0.0.4; charset=utf-8"

Labels = tuple[tuple[str, str], ...]


class Family:
    """All samples of one metric.

    Args:
        name: Its name; counters end in `_total`, the unit is part of it.
        kind: `counter`, `gauge` or `histogram`.
        about: One line of help.
    """

    def __init__(self, name: str, kind: str, about: str) -> None:
        self.name, self.kind, self.about = name, kind, about
        self._samples: dict[tuple[str, Labels], float] = {}
        self._lock = threading.Lock()

    def add(self, amount: float = 1.0, **labels: object) -> None:
        """Add to one sample."""
        self._add("", labels, amount)

    def set(self, value: float, **labels: object) -> None:
        """Replace one sample."""
        with self._lock:
            self._samples["", _labels(labels)] = value

    def clear(self) -> None:
        """Forget all samples."""
        with self._lock:
            self._samples = {}

    def _add(self, suffix: str, labels: dict[str, object], amount: float = 1.0) -> None:
        place = suffix, _labels(labels)
        with self._lock:
            self._samples[place] = self._samples.get(place, 0.0) + amount

    def text(self) -> str:
        """Write the family with its help and all samples."""
        with self._lock:
            samples = list(self._samples.items())
        head = f"# HELP {self.name} {self.about}\n# TYPE {self.name} {self.kind}\n"
        lines = (
            f"{self.name}{suffix}{_braced(labels)} {value:.17g}\n"
            for (suffix, labels), value in samples
        )
        return head + "".join(lines)


class Histogram(Family):
    """A distribution in cumulative buckets, with its sum and count.

    Args:
        name: Its name.
        about: One line of help.
        bounds: Upper bounds of the buckets, ascending.
    """

    def __init__(self, name: str, about: str, bounds: Sequence[float]) -> None:
        super().__init__(name, "histogram", about)
        self._bounds = tuple(bounds)

    def observe(self, value: float, **labels: object) -> None:
        """Count one value."""
        for bound in self._bounds:
            self._add("_bucket", {**labels, "le": f"{bound:g}"}, float(value <= bound))
        self._add("_bucket", {**labels, "le": "+Inf"})
        self._add("_sum", labels, value)
        self._add("_count", labels)


def _labels(labels: dict[str, object]) -> Labels:
    return tuple((name, str(value)) for name, value in labels.items())


def _braced(labels: Labels) -> str:
    if not labels:
        return ""
    return "{" + ",".join(f'{name}="{_escaped(value)}"' for name, value in labels) + "}"


def _escaped(value: str) -> str:
    return value.replace("\\", "\\\\").replace('"', '\\"').replace("\n", "\\n")
