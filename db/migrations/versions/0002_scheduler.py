"""What the scheduler needs: units with estimates and shards, lost workers, logs, reuse."""

from __future__ import annotations

from typing import Any

import sqlalchemy as sa
from alembic import op

revision = "0002"
down_revision = "0001"
branch_labels = None
depends_on = None

_ID = sa.BigInteger().with_variant(sa.Integer(), "sqlite")


def upgrade() -> None:
    """Add columns and tables; every row stays."""
    _extend_trial()
    _extend_unit()
    _extend_failure()
    with op.batch_alter_table("artifact") as batch:
        batch.add_column(sa.Column("removed_s", sa.Double(), nullable=True))
    _create_shard_score()
    _create_log_chunk()


def _extend_trial() -> None:
    with op.batch_alter_table("trial") as batch:
        batch.add_column(sa.Column("reused_from", _ID, nullable=True))
        batch.create_foreign_key(
            "fk_trial_reused_from_trial", "trial", ["reused_from"], ["id"], ondelete="RESTRICT"
        )
    op.create_index("ix_trial_trial_key_state", "trial", ["trial_key", "state"])
    op.create_index("ix_trial_reused_from", "trial", ["reused_from"])


def _extend_unit() -> None:
    columns = {
        "shard": sa.Integer(),
        "shards": sa.Integer(),
        "estimated_s": sa.Double(),
        "host": sa.Text(),
        "device": sa.Text(),
    }
    _add("unit", columns)
    # Older plans estimated whole trials only: each unit gets an equal part.
    op.execute(
        "UPDATE unit SET shard = 0, shards = 1,"
        " estimated_s = (SELECT t.estimated_s FROM trial t WHERE t.id = unit.trial_id)"
        " / (SELECT COUNT(*) FROM unit u WHERE u.trial_id = unit.trial_id"
        "    AND u.generation = unit.generation),"
        f" host = {_of_attempt('host')}, device = {_of_attempt('device')}"
    )
    _require("unit", columns)


def _of_attempt(column: str) -> str:
    return (
        f"COALESCE((SELECT a.{column} FROM attempt a"
        " WHERE a.trial_id = unit.trial_id AND a.attempt = unit.attempt), '')"
    )


def _extend_failure() -> None:
    columns = {"worker": sa.Text(), "reason": sa.String(length=16), "failed_s": sa.Double()}
    _add("failure", columns)
    this = "FROM attempt a WHERE a.trial_id = failure.trial_id AND a.attempt = failure.attempt"
    op.execute(
        f"UPDATE failure SET worker = '', reason = (SELECT a.end_reason {this}),"
        f" failed_s = (SELECT COALESCE(a.ended_s, a.started_s) {this})"
    )
    with op.batch_alter_table("failure") as batch:
        for name, kind in columns.items():
            batch.alter_column(name, existing_type=kind, nullable=False)
        batch.drop_constraint("pk_failure", type_="primary")
        batch.create_primary_key("pk_failure", ["trial_id", "attempt", "worker"])
        batch.create_check_constraint(
            op.f("ck_failure_reason"),
            "reason IN ('OK', 'ERROR', 'GPU_OOM', 'HOST_OOM', 'LOST', 'PREEMPTED', 'TIMEOUT',"
            " 'ABORTED', 'FENCED')",
        )


def _create_shard_score() -> None:
    key = ["trial_id", "generation", "unit_key"]
    op.create_table(
        "shard_score",
        sa.Column("trial_id", _ID, nullable=False),
        sa.Column("generation", sa.Integer(), nullable=False),
        *_columns(sa.Text(), "unit_key", "task", "name"),
        sa.Column("n", sa.BigInteger(), nullable=False),
        *_columns(sa.Text(), "total", "squares", nullable=True),
        sa.Column("value_flag", sa.String(length=4), nullable=True),
        *_columns(sa.Boolean(), "higher_is_better", "is_primary"),
        sa.CheckConstraint(
            "value_flag IN ('nan', 'inf', '-inf')", name=op.f("ck_shard_score_value_flag")
        ),
        sa.ForeignKeyConstraint(
            key,
            [f"unit.{column}" for column in key],
            name="fk_shard_score_trial_id_generation_unit_key_unit",
            ondelete="RESTRICT",
        ),
        sa.PrimaryKeyConstraint(*key, "task", "name", name="pk_shard_score"),
    )


def _create_log_chunk() -> None:
    op.create_table(
        "log_chunk",
        sa.Column("id", _ID, nullable=False),
        sa.Column("trial_id", _ID, nullable=False),
        sa.Column("attempt", sa.Integer(), nullable=False),
        sa.Column("worker", sa.Text(), nullable=False),
        sa.Column("number", sa.Integer(), nullable=True),
        sa.Column("at_s", sa.Double(), nullable=False),
        sa.Column("text", sa.Text(), nullable=False),
        sa.Column("bytes", sa.Integer(), nullable=False),
        sa.Column("dropped_bytes", sa.BigInteger(), nullable=False),
        sa.ForeignKeyConstraint(
            ["trial_id", "attempt"],
            ["attempt.trial_id", "attempt.attempt"],
            name="fk_log_chunk_trial_id_attempt_attempt",
            ondelete="RESTRICT",
        ),
        sa.PrimaryKeyConstraint("id", name="pk_log_chunk"),
        sa.UniqueConstraint(
            "trial_id",
            "attempt",
            "worker",
            "number",
            name="uq_log_chunk_trial_id_attempt_worker_number",
        ),
        sqlite_autoincrement=True,
    )
    op.create_index("ix_log_chunk_trial_id_id", "log_chunk", ["trial_id", "id"])


def _add(table: str, columns: dict[str, Any]) -> None:
    for name, kind in columns.items():
        op.add_column(table, sa.Column(name, kind, nullable=True))


def _require(table: str, columns: dict[str, Any]) -> None:
    with op.batch_alter_table(table) as batch:
        for name, kind in columns.items():
            batch.alter_column(name, existing_type=kind, nullable=False)


def _columns(kind: Any, *names: str, nullable: bool = False) -> list[sa.Column[Any]]:
    return [sa.Column(name, kind, nullable=nullable) for name in names]
