"""Digests of contents, the oldest version that may go on with the tables, who has a slot, what is
not to be sent before a moment, whatever the clock said, and which logins a route was refused.
"""

from __future__ import annotations

import sqlalchemy as sa
from alembic import op

revision = "0003"
down_revision = "0002"
#: The oldest version whose processes may go on after this upgrade: with None, only this one's.
min_version = None


def upgrade() -> None:
    """Add the columns. Contents that are there have no digest, and go out without one."""
    op.add_column("txmail_message", sa.Column("digest", sa.LargeBinary()))
    op.add_column("txmail_message", sa.Column("not_before", sa.BigInteger()))
    op.add_column("txmail_delivery", sa.Column("since", sa.BigInteger()))
    _partial("delayed", ["since"], "state = 'ready' AND since IS NOT NULL")
    _index_the_impossible()
    op.add_column("txmail_route", sa.Column("logins", sa.Text()))
    op.add_column("txmail_route", sa.Column("trying", sa.BigInteger()))
    op.add_column("txmail_slot", sa.Column("process", sa.String(32)))
    if op.get_bind().dialect.name != "sqlite":
        op.add_column("txmail_version", sa.Column("min_version", sa.String(32)))
        return
    # SQLite would put the column behind the constraint.
    op.drop_table("txmail_version")
    op.create_table(
        "txmail_version",
        sa.Column("version_num", sa.String(32), nullable=False),
        sa.Column("min_version", sa.String(32)),
        sa.PrimaryKeyConstraint("version_num", name="txmail_version_pkc"),
    )
    op.execute("INSERT INTO txmail_version (version_num) VALUES ('0002')")


def _index_the_impossible() -> None:
    waiting = "state IN ('ready', 'sending', 'deferred', 'in_doubt')"
    moments = " OR ".join(f"{c} < 0 OR {c} > 253402300799999" for c in ("due", "changed"))
    states = "'staged', 'ready', 'sending', 'sent', 'deferred', 'failed', 'in_doubt', 'held', "
    states += "'cancelled', 'expired'"
    condition = (
        f"(state NOT IN ({states}))"
        f" OR {waiting} AND ((priority NOT IN (0, 1, 2)) OR {moments})"
        " OR state IN ('ready', 'deferred') AND due IS NULL"
        " OR state = 'sending' AND (lease IS NULL OR token IS NULL)"
    )
    _partial("impossible", ["id"], condition)


def _partial(name: str, columns: list[str], where: str) -> None:
    condition = sa.text(where)
    op.create_index(
        f"ix_txmail_delivery_{name}",
        "txmail_delivery",
        columns,
        sqlite_where=condition,
        postgresql_where=condition,
    )
