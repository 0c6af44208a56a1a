"""The view of task groups: a mean says over which tasks it is, and is compared with no other."""

from __future__ import annotations

from dllm_sweep.db.view import TRIAL, TRIAL_SQL, View

_SAME = "sweep_id, protocol_key, model, model_digest, seed, task_group"
_NAMES = "sweep, trial_key, model, method, parameters, scheme, calibration, seed"

GROUP_SCORES = View(
    about="One row for each task group of each trial that has scores.",
    columns={
        "sweep": TRIAL["sweep"],
        "protocol_key": "SHA-256 of the evaluation protocol: scores compare only within one.",
        **{name: text for name, text in TRIAL.items() if name != "sweep"},
        "label": "The trial's name for people.",
        "state": "The trial's state.",
        "task_group": "The group, by the table `task_group`: general, math or code.",
        "tasks": "The tasks that the mean is over, by name, joined with `, `.",
        "tasks_done": "How many these are.",
        "tasks_planned": "How many tasks of the group the trial has.",
        "score_mean": "Mean of the primary scores of `tasks`.",
        "baseline_mean": (
            "`score_mean` of the full-precision trial of the same sweep, model, protocol and seed,"
            " if it is over the very same tasks; else NULL."
        ),
        "delta": "`score_mean` - `baseline_mean`.",
        "relative_drop_percent": (
            "100 * (`baseline_mean` - `score_mean`) / `baseline_mean`; negative is better than"
            " full precision."
        ),
        "degradation": (
            "Class of the relative drop by the table `degradation_class`; NULL for baselines, and"
            " where `note` says why."
        ),
        "note": "Why there is no comparison; empty if there is.",
    },
    sql=f"""WITH scored AS (
    SELECT t.id, t.sweep_id, t.protocol_key, {TRIAL_SQL}, t.label, t.state, t.is_baseline,
        COALESCE(t.model_digest, '') AS model_digest, g.name AS task_group, m.task, m.value,
        CASE WHEN m.higher_is_better THEN 1 ELSE 0 END AS upward
    FROM metric m
    JOIN trial t ON t.id = m.trial_id AND t.generation = m.generation
    JOIN sweep s ON s.id = t.sweep_id
    JOIN task_group g ON g.task = m.task
    WHERE m.is_primary AND m.value IS NOT NULL
        AND t.state IN ('SUCCEEDED', 'RUNNING', 'PENDING')
), listed AS (
    SELECT q.*, STRING_AGG(q.task, ', ') OVER (
        PARTITION BY q.id, q.task_group ORDER BY q.task
        ROWS BETWEEN UNBOUNDED PRECEDING AND UNBOUNDED FOLLOWING) AS tasks
    FROM scored q
), meant AS (
    SELECT id, sweep_id, protocol_key, {_NAMES}, label, state, is_baseline, model_digest,
        task_group, tasks, COUNT(*) AS tasks_done, AVG(value) AS score_mean,
        MIN(upward) AS upward
    FROM listed
    GROUP BY id, sweep_id, protocol_key, {_NAMES}, label, state, is_baseline, model_digest,
        task_group, tasks
), planned AS (
    SELECT u.trial_id, g.name AS task_group, COUNT(DISTINCT u.task) AS tasks_planned
    FROM unit u
    JOIN trial t ON t.id = u.trial_id AND t.generation = u.generation
    JOIN task_group g ON g.task = u.task
    GROUP BY u.trial_id, g.name
), compared AS (
    SELECT q.*, p.tasks_planned, f.tasks AS baseline_tasks,
        CASE WHEN f.tasks = q.tasks THEN f.score_mean END AS baseline_mean,
        CASE WHEN f.tasks = q.tasks AND f.score_mean > 0 AND q.upward = 1
            THEN 100.0 * (f.score_mean - q.score_mean) / f.score_mean
        END AS relative_drop_percent
    FROM meant q
    JOIN planned p ON p.trial_id = q.id AND p.task_group = q.task_group
    LEFT JOIN meant f ON f.is_baseline
        AND {" AND ".join(f"f.{name} = q.{name}" for name in _SAME.split(", "))}
)
SELECT c.sweep, c.protocol_key, c.trial_key, c.model, c.method, c.parameters, c.scheme,
    c.calibration, c.seed, c.label, c.state, c.task_group, c.tasks, c.tasks_done, c.tasks_planned,
    c.score_mean, c.baseline_mean, c.score_mean - c.baseline_mean AS delta,
    c.relative_drop_percent, CASE WHEN c.is_baseline THEN NULL ELSE d.name END AS degradation,
    CASE
        WHEN c.is_baseline THEN ''
        WHEN c.baseline_tasks IS NULL THEN 'full precision has no score of this group'
        WHEN c.baseline_tasks <> c.tasks THEN 'full precision is over ' || c.baseline_tasks
        WHEN c.upward = 0 THEN 'a primary score is better when lower'
        WHEN c.baseline_mean <= 0 THEN 'the full-precision score is not above 0'
        ELSE ''
    END AS note
FROM compared c LEFT JOIN degradation_class d
    ON (d.min_rel IS NULL OR ROUND(CAST(c.relative_drop_percent AS NUMERIC), 9) > d.min_rel
        OR (d.min_included AND ROUND(CAST(c.relative_drop_percent AS NUMERIC), 9) = d.min_rel))
    AND (d.max_rel IS NULL OR ROUND(CAST(c.relative_drop_percent AS NUMERIC), 9) < d.max_rel
        OR (d.max_included AND ROUND(CAST(c.relative_drop_percent AS NUMERIC), 9) = d.max_rel))
    AND c.relative_drop_percent IS NOT NULL""",
)
