"""The SQL views: the stable interface for people who query the store. Tables may change.

Every view is plain SQL that SQLite and Postgres both read, but for STRING_AGG, which SQLite calls
GROUP_CONCAT. Order matters: a view may use those
above it.
"""

from __future__ import annotations

from sqlalchemy.engine import Connection

from dllm_sweep.db.group_view import GROUP_SCORES
from dllm_sweep.db.history_views import EVENTS, FAILURES
from dllm_sweep.db.view import TRIAL as _TRIAL
from dllm_sweep.db.view import TRIAL_SQL as _TRIAL_SQL
from dllm_sweep.db.view import View

TOP_OUTLIERS = 20
"""How many rows `outliers_top` keeps for each trial and statistic."""

_UNITS_SQL = """SELECT u.trial_id, COUNT(*) AS units,
        SUM(CASE WHEN u.state = 'DONE' THEN 1 ELSE 0 END) AS units_done,
        SUM(COALESCE(u.wall_s, 0)) AS wall_s,
        COUNT(DISTINCT CASE WHEN u.kind = 'evaluate' THEN u.task END) AS tasks
    FROM unit u JOIN trial t ON t.id = u.trial_id AND t.generation = u.generation
    GROUP BY u.trial_id"""

TRIALS = View(
    about="One row for each trial of each sweep.",
    columns=_TRIAL
    | {
        "protocol_key": "SHA-256 of the evaluation protocol: scores compare only within one.",
        "label": "The trial's name for people.",
        "is_baseline": "Whether this is a full-precision baseline.",
        "w_bits": "Bits of a weight; 16 is not quantized.",
        "a_bits": "Bits of an activation; 16 is not quantized.",
        "kv_bits": "Bits of keys and values; 16 is not quantized.",
        "group_size": "Inputs that share a weight scale; NULL is one scale per output channel.",
        "symmetric": "Whether the weight grid is symmetric; NULL is the method's default.",
        "state": "PENDING, RUNNING, SUCCEEDED, FAILED, PRUNED, CANCELLED or SKIPPED.",
        "reason": "Why it was skipped, failed or was requeued; empty otherwise.",
        "attempt": "Number of its latest attempt; 0 if it never ran.",
        "units": "Number of its units of work.",
        "units_done": "How many of them are committed.",
        "wall_s": "Seconds spent in committed units.",
        "estimated_s": "Seconds that planning expected.",
        "created_s": "When it was planned, in epoch seconds.",
        "started_s": "When its latest attempt began, in epoch seconds.",
        "finished_s": "When it came to its end, in epoch seconds.",
    },
    sql=f"""SELECT {_TRIAL_SQL}, t.protocol_key, t.label, t.is_baseline, t.w_bits, t.a_bits,
    t.kv_bits, t.group_size, t.symmetric, t.state, t.reason, t.attempt,
    COALESCE(c.units, 0) AS units, COALESCE(c.units_done, 0) AS units_done,
    COALESCE(c.wall_s, 0) AS wall_s, t.estimated_s, t.created_s, t.started_s, t.finished_s
FROM trial t JOIN sweep s ON s.id = t.sweep_id
LEFT JOIN ({_UNITS_SQL}) c ON c.trial_id = t.id""",
)

RESULTS = View(
    about=(
        "One row for each metric of each committed task, of trials that succeeded or may still"
        " do so (look at `state`)."
    ),
    columns=_TRIAL
    | {
        "protocol_key": "SHA-256 of the evaluation protocol: scores compare only within one.",
        "state": "The trial's state.",
        "task": "Evaluation task.",
        "metric": "Name of the score.",
        "value": "The score; NULL if it is not a finite number.",
        "value_flag": "`nan`, `inf` or `-inf` if the score is not a finite number, else NULL.",
        "stderr": "Standard error of the score.",
        "n": "Number of items it was taken over.",
        "higher_is_better": "Whether a greater score is a better one.",
        "is_primary": "Whether the leaderboard shows this metric for the task.",
    },
    sql=f"""SELECT {_TRIAL_SQL}, t.protocol_key, t.state, m.task, m.name AS metric, m.value,
    m.value_flag, m.stderr, m.n, m.higher_is_better, m.is_primary
FROM metric m
JOIN trial t ON t.id = m.trial_id AND t.generation = m.generation
JOIN sweep s ON s.id = t.sweep_id
WHERE t.state IN ('SUCCEEDED', 'RUNNING', 'PENDING')""",
)

_SCORES_SQL = """SELECT m.trial_id, COUNT(DISTINCT m.task) AS tasks_done,
        COUNT(DISTINCT CASE WHEN m.value IS NOT NULL THEN m.task END) AS tasks_finite,
        AVG(m.value) AS score, MIN(CASE WHEN m.higher_is_better THEN 1 ELSE 0 END) AS upward
    FROM metric m JOIN trial t ON t.id = m.trial_id AND t.generation = m.generation
    WHERE m.is_primary GROUP BY m.trial_id"""

LEADERBOARD = View(
    about="One row for each trial that was planned to run and not cancelled.",
    columns={
        "sweep": _TRIAL["sweep"],
        "protocol_key": "SHA-256 of the evaluation protocol: scores compare only within one.",
        **{name: text for name, text in _TRIAL.items() if name != "sweep"},
        "label": "The trial's name for people.",
        "state": "The trial's state.",
        "average_bits": (
            "Bits per weight of the blocks' linears with scales and zero points, as measured, those"
            " left out at 16; the bits of the scheme for a baseline."
        ),
        "tasks_done": "Tasks with a committed primary score.",
        "tasks": "Tasks of the protocol.",
        "score_mean": (
            "Mean of the primary scores over the tasks; NULL until the trial has succeeded, or if"
            " a score is not a finite number."
        ),
        "baseline_mean": (
            "`score_mean` of the full-precision trial of the same sweep, model, protocol and seed."
        ),
        "delta": "`score_mean` - `baseline_mean`.",
        "relative_drop_percent": (
            "100 * (`baseline_mean` - `score_mean`) / `baseline_mean`; negative is better than"
            " full precision."
        ),
        "degradation": (
            "Class of the relative drop by the table `degradation_class`: negligible (below 1 %),"
            " moderate (1 to 4 %) or significant (above 4 %); NULL for baselines, and where"
            " `note` says why."
        ),
        "note": "Why there is no score, no comparison or no class; empty if there is.",
        "place": "Rank by `score_mean` within sweep, protocol and model; NULL without a score.",
    },
    sql=f"""WITH scored AS (
    SELECT t.id, t.sweep_id, t.protocol_key, {_TRIAL_SQL}, t.label, t.state, t.is_baseline,
        t.reason, t.model_digest, COALESCE(b.value, CASE WHEN t.is_baseline
        THEN CAST(t.w_bits AS DOUBLE PRECISION) END)
        AS average_bits, COALESCE(r.tasks_done, 0) AS tasks_done, COALESCE(u.tasks, 0) AS tasks,
        r.tasks_finite, r.upward,
        CASE WHEN t.state = 'SUCCEEDED' AND r.tasks_finite = u.tasks THEN r.score END
        AS score_mean
    FROM trial t JOIN sweep s ON s.id = t.sweep_id
    LEFT JOIN ({_UNITS_SQL}) u ON u.trial_id = t.id
    LEFT JOIN ({_SCORES_SQL}) r ON r.trial_id = t.id
    LEFT JOIN cost b ON b.trial_id = t.id AND b.generation = t.generation
        AND b.unit_key = 'quantize' AND b.name = 'average_bits'
    WHERE t.state NOT IN ('SKIPPED', 'CANCELLED')
), compared AS (
    SELECT q.*, f.id AS baseline_id, f.score_mean AS baseline_mean,
        q.score_mean - f.score_mean AS delta,
        CASE WHEN f.score_mean > 0 AND q.upward = 1
            THEN 100.0 * (f.score_mean - q.score_mean) / f.score_mean
        END AS relative_drop_percent
    FROM scored q LEFT JOIN scored f ON f.is_baseline AND f.sweep_id = q.sweep_id
        AND f.model = q.model AND COALESCE(f.model_digest, '') = COALESCE(q.model_digest, '')
        AND f.protocol_key = q.protocol_key AND f.seed = q.seed
)
SELECT c.sweep, c.protocol_key, c.trial_key, c.model, c.method, c.parameters, c.scheme,
    c.calibration, c.seed, c.label, c.state, c.average_bits, c.tasks_done, c.tasks, c.score_mean,
    c.baseline_mean, c.delta, c.relative_drop_percent,
    CASE WHEN c.is_baseline THEN NULL ELSE d.name END AS degradation,
    CASE
        WHEN c.state IN ('FAILED', 'PRUNED') THEN c.state || ': ' || c.reason
        WHEN c.state <> 'SUCCEEDED' THEN 'not finished'
        WHEN c.score_mean IS NULL AND c.tasks_done < c.tasks THEN 'a task has no primary score'
        WHEN c.score_mean IS NULL THEN 'a score is not a finite number'
        WHEN c.is_baseline THEN ''
        WHEN c.baseline_id IS NULL THEN 'no full-precision trial of this model and seed'
        WHEN c.baseline_mean IS NULL THEN 'the full-precision trial has no score'
        WHEN c.upward = 0 THEN 'a primary score is better when lower'
        WHEN c.baseline_mean <= 0 THEN 'the full-precision score is not above 0'
        ELSE ''
    END AS note,
    CASE WHEN c.score_mean IS NOT NULL THEN RANK() OVER (
        PARTITION BY c.sweep_id, c.protocol_key, c.model
        ORDER BY CASE WHEN c.score_mean IS NULL THEN 1 ELSE 0 END, c.score_mean DESC)
    END AS place
FROM compared c LEFT JOIN degradation_class d
    ON (d.min_rel IS NULL OR ROUND(CAST(c.relative_drop_percent AS NUMERIC), 9) > d.min_rel
        OR (d.min_included AND ROUND(CAST(c.relative_drop_percent AS NUMERIC), 9) = d.min_rel))
    AND (d.max_rel IS NULL OR ROUND(CAST(c.relative_drop_percent AS NUMERIC), 9) < d.max_rel
        OR (d.max_included AND ROUND(CAST(c.relative_drop_percent AS NUMERIC), 9) = d.max_rel))
    AND c.relative_drop_percent IS NOT NULL""",
)

OUTLIERS_TOP = View(
    about=f"The {TOP_OUTLIERS} greatest values of each outlier statistic of each trial.",
    columns=_TRIAL
    | {
        "statistic": "Which statistic, such as `channel_max` or `kurtosis`.",
        "place": "1 for the greatest value of this statistic in the trial.",
        "layer": "Number of the block, from 0.",
        "module": "Full name of the linear layer whose input this is.",
        "mask_ratio": "Share of masked positions in the sequences.",
        "positions": "`masked` or `visible`: which positions it was taken over.",
        "element": "Channel or token that the value belongs to; NULL if to none.",
        "value": "The statistic.",
    },
    sql=f"""SELECT * FROM (
    SELECT {_TRIAL_SQL}, o.statistic, ROW_NUMBER() OVER (
            PARTITION BY o.trial_id, o.statistic
            ORDER BY o.value DESC, o.module, o.mask_ratio, o.positions, o.rank
        ) AS place,
        o.layer, o.module, o.mask_ratio, o.positions, o.element, o.value
    FROM outlier o
    JOIN trial t ON t.id = o.trial_id AND t.generation = o.generation
    JOIN sweep s ON s.id = t.sweep_id
    WHERE o.value IS NOT NULL
) ranked WHERE place <= {TOP_OUTLIERS}""",
)

_STATES = ("pending", "running", "succeeded", "failed", "pruned", "cancelled", "skipped")
_COUNTS_SQL = ",\n    ".join(
    f"SUM(CASE WHEN t.state = '{name.upper()}' THEN 1 ELSE 0 END) AS {name}" for name in _STATES
)

PROGRESS = View(
    about="One row for each sweep that has trials.",
    columns={
        "sweep": _TRIAL["sweep"],
        "paused": "Whether the sweep hands out no new work.",
        "trials": "Number of its trials.",
        **{name: f"Trials that are {name.upper()}." for name in _STATES},
        "units": "Units of work of trials that run or succeeded or wait.",
        "units_done": "How many of those units are committed.",
        "estimated_left_s": "Seconds of work left on one actor, by the plan's estimates.",
    },
    sql=f"""SELECT s.name AS sweep, s.paused, COUNT(*) AS trials,
    {_COUNTS_SQL},
    CAST(SUM(CASE WHEN t.state IN ('PENDING', 'RUNNING', 'SUCCEEDED')
        THEN COALESCE(c.units, 0) ELSE 0 END) AS BIGINT) AS units,
    CAST(SUM(CASE WHEN t.state IN ('PENDING', 'RUNNING', 'SUCCEEDED')
        THEN COALESCE(c.units_done, 0) ELSE 0 END) AS BIGINT) AS units_done,
    SUM(CASE WHEN t.state IN ('PENDING', 'RUNNING') AND c.units > 0
        THEN t.estimated_s * (c.units - c.units_done) / c.units ELSE 0.0 END) AS estimated_left_s
FROM trial t JOIN sweep s ON s.id = t.sweep_id
LEFT JOIN ({_UNITS_SQL}) c ON c.trial_id = t.id
GROUP BY s.id, s.name, s.paused""",
)

VIEWS = {
    "trials": TRIALS,
    "results": RESULTS,
    "leaderboard": LEADERBOARD,
    "group_scores": GROUP_SCORES,
    "outliers_top": OUTLIERS_TOP,
    "failures": FAILURES,
    "events": EVENTS,
    "progress": PROGRESS,
}


def create_views(connection: Connection) -> None:
    """Create all views in the connection's transaction."""
    sqlite = connection.dialect.name == "sqlite"
    for name, view in VIEWS.items():
        sql = view.sql.replace("STRING_AGG(", "GROUP_CONCAT(") if sqlite else view.sql
        connection.exec_driver_sql(f"CREATE VIEW {name} AS {sql}")


def drop_views(connection: Connection) -> None:
    """Drop all views that exist, so that the tables under them can be rebuilt."""
    for name in reversed(VIEWS):
        connection.exec_driver_sql(f"DROP VIEW IF EXISTS {name}")
