"""Alembic's entry: migrates over the connection that `vocbeam.sinks.catalog.migrate` hands in."""

from __future__ import annotations

from alembic import context

from vocbeam.sinks.tables import metadata

context.configure(
    connection=context.config.attributes["connection"],
    target_metadata=metadata,
    render_as_batch=True,
    version_table="schema_version",
)
with context.begin_transaction():
    context.run_migrations()
