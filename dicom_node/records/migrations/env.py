"""What alembic runs for a migration: on the connection that `Database.migrate` hands over, inside its transaction."""

from __future__ import annotations

from alembic import context

from dicom_node.records.schema import metadata

context.configure(
    connection=context.config.attributes["connection"],
    target_metadata=metadata,
    render_as_batch=True,  # SQLite alters a table by copying it
    transactional_ddl=True,  # true of SQLite with its driver's own transaction handling off
)
with context.begin_transaction():
    context.run_migrations()
