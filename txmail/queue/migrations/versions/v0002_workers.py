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
        sa.PrimaryKeyConstraint("name", name="pk_txmail_route"),
    )
