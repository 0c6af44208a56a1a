"""The first tables."""

from __future__ import annotations

from typing import Any

import sqlalchemy as sa
from alembic import op

revision = "0001"
down_revision = None
branch_labels = None
depends_on = None

_ID = sa.BigInteger().with_variant(sa.Integer(), "sqlite")


def upgrade() -> None:
    """Create every table and the classes of degradation."""
    _create_degradation_class()
    _create_protocol()
    _create_sweep()
    _create_trial()
    _create_attempt()
    _create_event()
    _create_unit()
    _create_artifact()
    _create_cost()
    _create_failure()
    _create_metric()
    _create_module()
    _create_outlier()
    _fill_degradation_class()


def _create_degradation_class() -> None:
    op.create_table(
        "degradation_class",
        sa.Column("name", sa.String(length=64), nullable=False),
        sa.Column("min_rel", sa.Double(), nullable=True),
        sa.Column("min_included", sa.Boolean(), nullable=False),
        sa.Column("max_rel", sa.Double(), nullable=True),
        sa.Column("max_included", sa.Boolean(), nullable=False),
        sa.PrimaryKeyConstraint("name", name="pk_degradation_class"),
    )


def _create_protocol() -> None:
    op.create_table(
        "protocol",
        sa.Column("key", sa.String(length=64), nullable=False),
        sa.Column("spec", sa.JSON(), nullable=False),
        sa.PrimaryKeyConstraint("key", name="pk_protocol"),
    )


def _create_sweep() -> None:
    op.create_table(
        "sweep",
        sa.Column("id", _ID, nullable=False),
        *_columns(sa.Text(), "name", "source"),
        *_columns(sa.Double(), "created_s", "launched_s"),
        sa.Column("paused", sa.Boolean(), nullable=False),
        sa.Column("epoch", sa.Integer(), nullable=False),
        sa.Column("controller_host", sa.Text(), nullable=True),
        sa.Column("controller_pid", sa.Integer(), nullable=True),
        *_columns(sa.Double(), "process_started_s", "lease_until_s", nullable=True),
        sa.PrimaryKeyConstraint("id", name="pk_sweep"),
        sa.UniqueConstraint("name", name="uq_sweep_name"),
    )


def _create_trial() -> None:
    op.create_table(
        "trial",
        sa.Column("id", _ID, nullable=False),
        sa.Column("sweep_id", _ID, nullable=False),
        sa.Column("trial_key", sa.String(length=64), nullable=False),
        sa.Column("label", sa.Text(), nullable=False),
        sa.Column("spec", sa.JSON(), nullable=False),
        sa.Column("model", sa.Text(), nullable=False),
        sa.Column("model_digest", sa.Text(), nullable=True),
        sa.Column("method", sa.Text(), nullable=False),
        sa.Column("method_version", sa.Integer(), nullable=False),
        sa.Column("parameters", sa.Text(), nullable=False),
        sa.Column("scheme", sa.String(length=64), nullable=False),
        *_columns(sa.Integer(), "w_bits", "a_bits", "kv_bits"),
        sa.Column("group_size", sa.Integer(), nullable=True),
        sa.Column("symmetric", sa.Boolean(), nullable=True),
        sa.Column("calibration", sa.Text(), nullable=True),
        sa.Column("protocol_key", sa.String(length=64), nullable=False),
        sa.Column("seed", sa.BigInteger(), nullable=False),
        sa.Column("is_baseline", sa.Boolean(), nullable=False),
        sa.Column("state", sa.String(length=16), nullable=False),
        sa.Column("reason", sa.Text(), nullable=False),
        sa.Column("priority", sa.Integer(), nullable=False),
        sa.Column("estimated_s", sa.Double(), nullable=False),
        *_columns(sa.Integer(), "generation", "attempt", "epoch"),
        sa.Column("claim_id", sa.String(length=64), nullable=True),
        *_columns(sa.Integer(), "failures", "losses"),
        sa.Column("batch_scale", sa.Double(), nullable=False),
        sa.Column("weights_sha256", sa.String(length=64), nullable=True),
        *_columns(sa.Double(), "not_before_s", "created_s"),
        *_columns(sa.Double(), "started_s", "beat_s", "finished_s", nullable=True),
        sa.CheckConstraint(
            "(state = 'RUNNING') = (claim_id IS NOT NULL)", name=op.f("ck_trial_claim")
        ),
        sa.CheckConstraint(
            "state IN ('PENDING', 'RUNNING', 'SUCCEEDED', 'FAILED', 'PRUNED', 'CANCELLED',"
            " 'SKIPPED')",
            name=op.f("ck_trial_state"),
        ),
        sa.CheckConstraint("attempt >= 0", name=op.f("ck_trial_attempt")),
        _to("trial", "protocol_key", "protocol.key"),
        _to("trial", "sweep_id", "sweep.id"),
        sa.PrimaryKeyConstraint("id", name="pk_trial"),
        sa.UniqueConstraint("sweep_id", "trial_key", name="uq_trial_sweep_id_trial_key"),
    )
    op.create_index("ix_trial_model_protocol_key", "trial", ["model", "protocol_key"], unique=False)
    op.create_index("ix_trial_sweep_id_state", "trial", ["sweep_id", "state"], unique=False)


def _create_attempt() -> None:
    op.create_table(
        "attempt",
        sa.Column("trial_id", _ID, nullable=False),
        *_columns(sa.Integer(), "attempt", "epoch"),
        sa.Column("claim_id", sa.String(length=64), nullable=False),
        sa.Column("host", sa.Text(), nullable=False),
        sa.Column("pid", sa.Integer(), nullable=False),
        sa.Column("device", sa.Text(), nullable=False),
        sa.Column("versions", sa.JSON(), nullable=False),
        *_columns(sa.Double(), "batch_scale", "started_s"),
        sa.Column("ended_s", sa.Double(), nullable=True),
        sa.Column("end_reason", sa.String(length=16), nullable=True),
        sa.Column("log_path", sa.Text(), nullable=True),
        sa.CheckConstraint(
            "end_reason IN ('OK', 'ERROR', 'GPU_OOM', 'HOST_OOM', 'LOST', 'PREEMPTED', 'TIMEOUT',"
            " 'ABORTED', 'FENCED')",
            name=op.f("ck_attempt_end_reason"),
        ),
        _to("attempt", "trial_id", "trial.id"),
        sa.PrimaryKeyConstraint("trial_id", "attempt", name="pk_attempt"),
    )


def _create_event() -> None:
    op.create_table(
        "event",
        sa.Column("id", _ID, nullable=False),
        sa.Column("trial_id", _ID, nullable=False),
        sa.Column("attempt", sa.Integer(), nullable=False),
        sa.Column("at_s", sa.Double(), nullable=False),
        sa.Column("from_state", sa.String(length=16), nullable=True),
        sa.Column("to_state", sa.String(length=16), nullable=False),
        sa.Column("actor", sa.String(length=64), nullable=False),
        sa.Column("reason", sa.Text(), nullable=False),
        _to("event", "trial_id", "trial.id"),
        sa.PrimaryKeyConstraint("id", name="pk_event"),
    )
    op.create_index("ix_event_trial_id", "event", ["trial_id"], unique=False)


def _create_unit() -> None:
    op.create_table(
        "unit",
        sa.Column("trial_id", _ID, nullable=False),
        sa.Column("generation", sa.Integer(), nullable=False),
        sa.Column("unit_key", sa.Text(), nullable=False),
        sa.Column("position", sa.Integer(), nullable=False),
        sa.Column("kind", sa.String(length=64), nullable=False),
        sa.Column("task", sa.Text(), nullable=False),
        sa.Column("state", sa.String(length=16), nullable=False),
        sa.Column("attempt", sa.Integer(), nullable=True),
        *_columns(sa.Double(), "wall_s", "done_s", nullable=True),
        sa.Column("weights_sha256", sa.String(length=64), nullable=True),
        sa.Column("warnings", sa.JSON(), nullable=False),
        sa.CheckConstraint("state IN ('PENDING', 'DONE')", name=op.f("ck_unit_state")),
        _to("unit", "trial_id", "trial.id"),
        sa.PrimaryKeyConstraint("trial_id", "generation", "unit_key", name="pk_unit"),
    )


def _create_artifact() -> None:
    op.create_table(
        "artifact",
        *_unit_key(),
        sa.Column("kind", sa.String(length=64), nullable=False),
        sa.Column("path", sa.Text(), nullable=False),
        sa.Column("sha256", sa.String(length=64), nullable=False),
        sa.Column("bytes", sa.BigInteger(), nullable=False),
        _to_unit("artifact"),
        sa.PrimaryKeyConstraint(
            "trial_id", "generation", "unit_key", "kind", "path", name="pk_artifact"
        ),
    )


def _create_cost() -> None:
    op.create_table(
        "cost",
        *_unit_key(),
        sa.Column("name", sa.String(length=64), nullable=False),
        sa.Column("value", sa.Double(), nullable=True),
        sa.Column("unit", sa.String(length=64), nullable=False),
        _to_unit("cost"),
        sa.PrimaryKeyConstraint("trial_id", "generation", "unit_key", "name", name="pk_cost"),
    )


def _create_failure() -> None:
    op.create_table(
        "failure",
        sa.Column("trial_id", _ID, nullable=False),
        sa.Column("attempt", sa.Integer(), nullable=False),
        *_columns(sa.Text(), "error_type", "message", "traceback", "fingerprint", "unit"),
        sa.Column("retryable", sa.Boolean(), nullable=False),
        sa.Column("log_tail", sa.Text(), nullable=False),
        sa.ForeignKeyConstraint(
            ["trial_id", "attempt"],
            ["attempt.trial_id", "attempt.attempt"],
            name="fk_failure_trial_id_attempt_attempt",
            ondelete="RESTRICT",
        ),
        sa.PrimaryKeyConstraint("trial_id", "attempt", name="pk_failure"),
    )
    op.create_index("ix_failure_fingerprint", "failure", ["fingerprint"], unique=False)


def _create_metric() -> None:
    op.create_table(
        "metric",
        *_unit_key(),
        *_columns(sa.Text(), "task", "name"),
        sa.Column("value", sa.Double(), nullable=True),
        sa.Column("value_flag", sa.String(length=4), nullable=True),
        sa.Column("stderr", sa.Double(), nullable=True),
        sa.Column("n", sa.BigInteger(), nullable=False),
        *_columns(sa.Boolean(), "higher_is_better", "is_primary"),
        sa.CheckConstraint(
            "value_flag IN ('nan', 'inf', '-inf')", name=op.f("ck_metric_value_flag")
        ),
        _to_unit("metric"),
        sa.PrimaryKeyConstraint(
            "trial_id", "generation", "unit_key", "task", "name", name="pk_metric"
        ),
    )


def _create_module() -> None:
    op.create_table(
        "module",
        *_unit_key(),
        sa.Column("module", sa.Text(), nullable=False),
        *_columns(sa.Integer(), "w_bits", "a_bits"),
        sa.Column("group_size", sa.Integer(), nullable=True),
        sa.Column("symmetric", sa.Boolean(), nullable=False),
        sa.Column("weights", sa.BigInteger(), nullable=False),
        sa.Column("bits", sa.Double(), nullable=False),
        sa.Column("relative_error", sa.Double(), nullable=True),
        _to_unit("module"),
        sa.PrimaryKeyConstraint("trial_id", "generation", "unit_key", "module", name="pk_module"),
    )


def _create_outlier() -> None:
    op.create_table(
        "outlier",
        *_unit_key(),
        sa.Column("module", sa.Text(), nullable=False),
        sa.Column("mask_ratio", sa.Double(), nullable=False),
        *_columns(sa.String(length=64), "positions", "statistic"),
        *_columns(sa.Integer(), "rank", "layer"),
        sa.Column("element", sa.BigInteger(), nullable=True),
        sa.Column("value", sa.Double(), nullable=True),
        sa.Column("value_flag", sa.String(length=4), nullable=True),
        sa.CheckConstraint(
            "value_flag IN ('nan', 'inf', '-inf')", name=op.f("ck_outlier_value_flag")
        ),
        _to_unit("outlier"),
        sa.PrimaryKeyConstraint(
            "trial_id",
            "generation",
            "unit_key",
            "module",
            "mask_ratio",
            "positions",
            "statistic",
            "rank",
            name="pk_outlier",
        ),
    )


def _columns(kind: Any, *names: str, nullable: bool = False) -> list[sa.Column[Any]]:
    return [sa.Column(name, kind, nullable=nullable) for name in names]


def _unit_key() -> tuple[sa.Column[Any], ...]:
    return (
        sa.Column("trial_id", _ID, nullable=False),
        sa.Column("generation", sa.Integer(), nullable=False),
        sa.Column("unit_key", sa.Text(), nullable=False),
    )


def _to_unit(table: str) -> sa.ForeignKeyConstraint:
    key = ["trial_id", "generation", "unit_key"]
    name = f"fk_{table}_trial_id_generation_unit_key_unit"
    there = [f"unit.{column}" for column in key]
    return sa.ForeignKeyConstraint(key, there, name=name, ondelete="RESTRICT")


def _to(table: str, column: str, there: str) -> sa.ForeignKeyConstraint:
    name = f"fk_{table}_{column}_{there.split('.')[0]}"
    return sa.ForeignKeyConstraint([column], [there], name=name, ondelete="RESTRICT")


def _fill_degradation_class() -> None:
    names = ("name", "min_rel", "min_included", "max_rel", "max_included")
    classes = (
        ("negligible", None, False, 1.0, False),
        ("moderate", 1.0, True, 4.0, True),
        ("significant", 4.0, False, None, False),
    )
    table = sa.table("degradation_class", *(sa.column(name) for name in names))
    op.bulk_insert(table, [dict(zip(names, row, strict=True)) for row in classes])
