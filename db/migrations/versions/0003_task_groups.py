"""Groups of tasks whose scores are averaged, as data."""

from __future__ import annotations

import sqlalchemy as sa
from alembic import op

revision = "0003"
down_revision = "0002"
branch_labels = None
depends_on = None

_GROUPS = {
    "general": (
        *("winogrande", "piqa", "arc_challenge", "arc_easy", "hellaswag", "mmlu"),
        "tiny_facts",
    ),
    "math": ("gsm8k", "minerva_math", "tiny_math"),
    "code": ("humaneval", "mbpp", "tiny_code"),
}


def upgrade() -> None:
    """Add the table with the study's groups."""
    op.create_table(
        "task_group",
        sa.Column("task", sa.Text(), nullable=False),
        sa.Column("name", sa.String(length=64), nullable=False),
        sa.PrimaryKeyConstraint("task", name="pk_task_group"),
    )
    table = sa.table("task_group", sa.column("task"), sa.column("name"))
    rows = [{"task": task, "name": name} for name, tasks in _GROUPS.items() for task in tasks]
    op.bulk_insert(table, rows)
