"""Asking the application's database whether a transaction of its own has committed.

`txmail.integrations.sqlalchemy` asks by writing a row, which has to wait where the transaction is
undecided. The database may be of a kind that no queue can be in: `Questions` suits any, and each
backend has its own.
"""

from __future__ import annotations

import sqlalchemy as sa


class Questions:
    """What a question to a database needs to know of its kind."""

    def connect(self, engine: sa.Engine) -> sa.Connection:
        """A connection that sees what others commit while it waits."""
        return engine.connect()

    def bound_waiting(self, connection: sa.Connection, timeout_ms: int) -> None:
        """Have the open transaction wait for others for at most `timeout_ms` milliseconds."""

    def is_missing(self, error: BaseException) -> bool:
        """Whether the driver's `error` says that there is no such table."""
        return False

    def undecided(self, error: BaseException) -> str:
        """Why the driver's `error` says that the transaction is undecided; empty if it does not."""
        return ""
