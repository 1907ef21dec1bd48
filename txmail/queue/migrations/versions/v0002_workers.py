"""What workers need that the first version had not: limits of routes over all hosts."""

from __future__ import annotations

import sqlalchemy as sa
from alembic import op

revision = "0002"
down_revision = "0001"


def upgrade() -> None:
    """Make the table of routes anew: before there were workers, nothing was in it."""
    op.drop_table("txmail_route")
    op.create_table(
        "txmail_route",
        sa.Column("name", sa.Text(), nullable=False),
        sa.Column("state", sa.String(8), nullable=False),
        sa.Column("until", sa.BigInteger()),
        sa.Column("failures", sa.Integer(), nullable=False),
        sa.Column("reason", sa.Text()),
        sa.Column("changed", sa.BigInteger(), nullable=False),
        sa.Column("allowance", sa.Float()),
        sa.Column("refilled", sa.BigInteger()),
        sa.Column("rate", sa.Float()),
        sa.Column("slowed", sa.BigInteger()),
        sa.PrimaryKeyConstraint("name", name="pk_txmail_route"),
    )
    op.create_table(
        "txmail_slot",
        sa.Column("route", sa.Text(), nullable=False),
        sa.Column("number", sa.Integer(), nullable=False),
        sa.Column("holder", sa.BigInteger(), nullable=False),
        sa.Column("until", sa.BigInteger(), nullable=False),
        sa.PrimaryKeyConstraint("route", "number", name="pk_txmail_slot"),
    )
    op.create_table(
        "txmail_boot",
        sa.Column("id", sa.String(36), nullable=False),
        sa.Column("started", sa.BigInteger(), nullable=False),
        sa.PrimaryKeyConstraint("id", name="pk_txmail_boot"),
    )
    op.add_column("txmail_delivery", sa.Column("route", sa.Text()))
    op.drop_index("ix_txmail_delivery_ready", "txmail_delivery")
    _partial("ready", ["priority", "due", "id"], "state = 'ready' AND route IS NULL")
    bulk = "state = 'ready' AND route IS NULL AND priority = 2"
    _partial("bulk", ["priority", "message", "due", "id"], bulk)
    _partial("parked", ["route", "priority", "due", "id"], "state = 'ready' AND route IS NOT NULL")


def _partial(name: str, columns: list[str], condition: str) -> None:
    where = sa.text(condition)
    op.create_index(
        f"ix_txmail_delivery_{name}",
        "txmail_delivery",
        columns,
        sqlite_where=where,
        postgresql_where=where,
    )
