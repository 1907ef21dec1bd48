"""Run by Alembic, on the connection and in the transaction of `txmail.queue.database.upgrade`."""

from __future__ import annotations

from alembic import context

context.configure(
    connection=context.config.attributes["connection"],
    version_table="txmail_version",
    # In SQLite, too: its driver does not commit by itself before DDL here.
    transactional_ddl=True,
)
context.run_migrations()
