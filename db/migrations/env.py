"""Runs migrations on the connection that `connect.upgrade` hands over, in its transaction."""

from __future__ import annotations

from alembic import context

from dllm_sweep.db.schema import Base
from dllm_sweep.db.views import create_views, drop_views

connection = context.config.attributes["connection"]
context.configure(
    connection=connection,
    target_metadata=Base.metadata,
    render_as_batch=True,
)
# A table cannot be rebuilt under a view that reads it.
drop_views(connection)
context.run_migrations()
create_views(connection)
