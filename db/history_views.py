"""The views of what happened: failures and changes of state."""

from __future__ import annotations

from dllm_sweep.db.view import TRIAL, TRIAL_SQL, View

FAILURES = View(
    about=(
        "One row for each attempt that ended without success and said why, and for each worker"
        " that was lost while the others of its attempt went on."
    ),
    columns=TRIAL
    | {
        "label": "The trial's name for people.",
        "state": "The trial's state now.",
        "attempt": "Number of the attempt, from 1.",
        "worker": "The worker that was lost; empty for the failure that ended the attempt.",
        "end_reason": "ERROR, GPU_OOM, HOST_OOM, LOST, PREEMPTED, TIMEOUT, ABORTED or FENCED.",
        "error_type": "Class of the exception.",
        "message": "Its message.",
        "traceback": "Where it was raised; empty if the process told nothing.",
        "fingerprint": "Equal for the same fault at the same place of the code.",
        "unit": "The unit that was running.",
        "host": "The machine that the attempt began on.",
        "log_path": "The attempt's log.",
        "ended_s": "When it failed, in epoch seconds.",
    },
    sql=f"""SELECT {TRIAL_SQL}, t.label, t.state, a.attempt, f.worker, f.reason AS end_reason,
    f.error_type, f.message, f.traceback, f.fingerprint, f.unit, a.host, a.log_path,
    f.failed_s AS ended_s
FROM failure f
JOIN attempt a ON a.trial_id = f.trial_id AND a.attempt = f.attempt
JOIN trial t ON t.id = f.trial_id
JOIN sweep s ON s.id = t.sweep_id""",
)

EVENTS = View(
    about="One row for each change of a trial's state; rows are only ever added.",
    columns={
        "id": "Grows with time.",
        "sweep": TRIAL["sweep"],
        "trial_key": TRIAL["trial_key"],
        "label": "The trial's name for people.",
        "attempt": "Number of the attempt that it belongs to; 0 before the first.",
        "at_s": "When, in epoch seconds of the database's clock.",
        "from_state": "The state before; NULL for the trial's creation.",
        "to_state": "The state after.",
        "actor": "Who did it: `planner`, `controller`, `owner` (the worker) or `user`.",
        "reason": "Why; empty where it goes without saying.",
    },
    sql="""SELECT e.id, s.name AS sweep, t.trial_key, t.label, e.attempt, e.at_s, e.from_state,
    e.to_state, e.actor, e.reason
FROM event e JOIN trial t ON t.id = e.trial_id JOIN sweep s ON s.id = t.sweep_id""",
)
