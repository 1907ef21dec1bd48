"""${message}."""

from __future__ import annotations

import sqlalchemy as sa
from alembic import op

revision = "${up_revision}"
down_revision = "${down_revision}"
#: The oldest version whose processes may go on after this upgrade: with None, only this one's.
min_version = None


def upgrade() -> None:
    """Say what changes, and change it."""
