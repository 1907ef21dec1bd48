"""The tables of the first version."""

from __future__ import annotations

import sqlalchemy as sa
from alembic import op

revision = "0001"
down_revision = None

# In SQLite only INTEGER counts up by itself.
_ID = sa.BigInteger().with_variant(sa.Integer(), "sqlite")


def _partial(name: str, table: str, columns: list[str], where: str) -> None:
    condition = sa.text(where)
    op.create_index(name, table, columns, sqlite_where=condition, postgresql_where=condition)


def upgrade() -> None:
    """Make the tables."""
    op.create_table(
        "txmail_attempt",
        sa.Column("id", _ID, nullable=False),
        sa.Column("delivery", sa.BigInteger(), nullable=False),
        sa.Column("at", sa.BigInteger(), nullable=False),
        sa.Column("state", sa.String(10), nullable=False),
        sa.Column("code", sa.SmallInteger()),
        sa.Column("reply", sa.Text()),
        sa.Column("route", sa.Text()),
        sa.Column("process", sa.String(32)),
        sa.PrimaryKeyConstraint("id", name="pk_txmail_attempt"),
        sqlite_autoincrement=True,
    )
    op.create_index("ix_txmail_attempt_delivery", "txmail_attempt", ["delivery"])
    op.create_table(
        "txmail_audit",
        sa.Column("id", _ID, nullable=False),
        sa.Column("at", sa.BigInteger(), nullable=False),
        sa.Column("actor", sa.Text(), nullable=False),
        sa.Column("action", sa.Text(), nullable=False),
        sa.Column("subject", sa.Text(), nullable=False),
        sa.Column("detail", sa.Text(), nullable=False),
        sa.PrimaryKeyConstraint("id", name="pk_txmail_audit"),
        sqlite_autoincrement=True,
    )
    op.create_table(
        "txmail_batch",
        sa.Column("id", sa.BigInteger(), autoincrement=False, nullable=False),
        sa.Column("state", sa.String(12), nullable=False),
        sa.Column("process", sa.String(32)),
        sa.Column("created", sa.BigInteger(), nullable=False),
        sa.Column("changed", sa.BigInteger(), nullable=False),
        sa.Column("witnesses", sa.Text(), nullable=False),
        sa.Column("reason", sa.Text()),
        sa.PrimaryKeyConstraint("id", name="pk_txmail_batch"),
    )
    _partial(
        "ix_txmail_batch_open",
        "txmail_batch",
        ["state", "id"],
        "state IN ('staged', 'sending', 'publishing', 'unknown')",
    )
    op.create_table(
        "txmail_control",
        sa.Column("name", sa.Text(), nullable=False),
        sa.Column("value", sa.Text(), nullable=False),
        sa.Column("actor", sa.Text(), nullable=False),
        sa.Column("changed", sa.BigInteger(), nullable=False),
        sa.PrimaryKeyConstraint("name", name="pk_txmail_control"),
    )
    op.create_table(
        "txmail_delivery",
        sa.Column("id", _ID, nullable=False),
        sa.Column("message", sa.BigInteger(), nullable=False),
        sa.Column("recipient", sa.Text(), nullable=False),
        sa.Column("state", sa.String(10), nullable=False),
        sa.Column("priority", sa.SmallInteger(), nullable=False),
        sa.Column("due", sa.BigInteger()),
        sa.Column("expires", sa.BigInteger()),
        sa.Column("attempts", sa.SmallInteger(), nullable=False),
        sa.Column("begun", sa.SmallInteger(), nullable=False),
        sa.Column("duplicate", sa.SmallInteger(), nullable=False),
        sa.Column("process", sa.String(32)),
        sa.Column("token", sa.BigInteger()),
        sa.Column("lease", sa.BigInteger()),
        sa.Column("changed", sa.BigInteger(), nullable=False),
        sa.Column("code", sa.SmallInteger()),
        sa.Column("reply", sa.Text()),
        sa.Column("fields", sa.Text()),
        sa.PrimaryKeyConstraint("id", name="pk_txmail_delivery"),
        sqlite_autoincrement=True,
    )
    _partial(
        "ix_txmail_delivery_attention",
        "txmail_delivery",
        ["state", "id"],
        "state IN ('failed', 'in_doubt', 'held')",
    )
    _partial(
        "ix_txmail_delivery_later",
        "txmail_delivery",
        ["due", "id"],
        "state IN ('deferred', 'in_doubt') AND due IS NOT NULL",
    )
    _partial("ix_txmail_delivery_lease", "txmail_delivery", ["lease"], "state = 'sending'")
    op.create_index("ix_txmail_delivery_message", "txmail_delivery", ["message"])
    _partial(
        "ix_txmail_delivery_ready", "txmail_delivery", ["priority", "due", "id"], "state = 'ready'"
    )
    op.create_table(
        "txmail_idempotency",
        sa.Column("key", sa.Text(), nullable=False),
        sa.Column("message", sa.BigInteger(), nullable=False),
        sa.Column("created", sa.BigInteger(), nullable=False),
        sa.PrimaryKeyConstraint("key", name="pk_txmail_idempotency"),
    )
    op.create_table(
        "txmail_message",
        sa.Column("id", _ID, nullable=False),
        sa.Column("batch", sa.BigInteger(), nullable=False),
        sa.Column("kind", sa.String(5), nullable=False),
        sa.Column("message_id", sa.Text(), nullable=False),
        sa.Column("sender", sa.Text(), nullable=False),
        sa.Column("created", sa.BigInteger(), nullable=False),
        sa.Column("idempotency_key", sa.Text()),
        sa.Column("size", sa.BigInteger(), nullable=False),
        sa.Column("content", sa.LargeBinary(), nullable=False),
        sa.PrimaryKeyConstraint("id", name="pk_txmail_message"),
        sqlite_autoincrement=True,
    )
    op.create_index("ix_txmail_message_batch", "txmail_message", ["batch"])
    op.create_table(
        "txmail_operation",
        sa.Column("id", _ID, nullable=False),
        sa.Column("kind", sa.String(32), nullable=False),
        sa.Column("state", sa.String(16), nullable=False),
        sa.Column("filter", sa.Text(), nullable=False),
        sa.Column("boundary", sa.BigInteger(), nullable=False),
        sa.Column("cursor", sa.BigInteger(), nullable=False),
        sa.Column("counts", sa.Text(), nullable=False),
        sa.Column("actor", sa.Text(), nullable=False),
        sa.Column("created", sa.BigInteger(), nullable=False),
        sa.Column("changed", sa.BigInteger(), nullable=False),
        sa.PrimaryKeyConstraint("id", name="pk_txmail_operation"),
        sqlite_autoincrement=True,
    )
    op.create_table(
        "txmail_process",
        sa.Column("id", sa.String(32), nullable=False),
        sa.Column("kind", sa.String(16), nullable=False),
        sa.Column("host", sa.Text(), nullable=False),
        sa.Column("boot", sa.Text(), nullable=False),
        sa.Column("pid_namespace", sa.Text(), nullable=False),
        sa.Column("pid", sa.Integer(), nullable=False),
        sa.Column("started", sa.BigInteger(), nullable=False),
        sa.Column("heartbeat", sa.BigInteger(), nullable=False),
        sa.PrimaryKeyConstraint("id", name="pk_txmail_process"),
    )
    op.create_table(
        "txmail_route",
        sa.Column("name", sa.Text(), nullable=False),
        sa.Column("state", sa.String(8), nullable=False),
        sa.Column("until", sa.BigInteger()),
        sa.Column("failures", sa.Integer(), nullable=False),
        sa.Column("reason", sa.Text()),
        sa.Column("changed", sa.BigInteger(), nullable=False),
        sa.PrimaryKeyConstraint("name", name="pk_txmail_route"),
    )
    op.create_table(
        "txmail_suppression",
        sa.Column("address", sa.Text(), nullable=False),
        sa.Column("reason", sa.Text(), nullable=False),
        sa.Column("actor", sa.Text(), nullable=False),
        sa.Column("created", sa.BigInteger(), nullable=False),
        sa.PrimaryKeyConstraint("address", name="pk_txmail_suppression"),
    )
