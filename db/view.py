"""What a view is, and the columns that name a trial in most of them."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True, kw_only=True)
class View:
    """One view.

    Attributes:
        about: What one row is.
        columns: Every column in order, with its meaning.
        sql: The SELECT.
    """

    about: str
    columns: dict[str, str]
    sql: str


TRIAL = {
    "sweep": "Name of the sweep.",
    "trial_key": "SHA-256 of the trial's specification: equal work has an equal key.",
    "model": "Model as named in the sweep file, with its revision.",
    "method": "Quantization method; `fp` is the full-precision baseline.",
    "parameters": "The method's parameters as a JSON object.",
    "scheme": "Bit-widths and grids, such as `w4a16-g128`.",
    "calibration": "Calibration set, samples x length and masking; NULL if the method sees none.",
    "seed": "Seed of everything random in the trial.",
}
TRIAL_SQL = """s.name AS sweep, t.trial_key, t.model, t.method, t.parameters, t.scheme,
    t.calibration, t.seed"""
