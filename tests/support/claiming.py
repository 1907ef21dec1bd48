"""Claims as a worker makes them, in one step: the rows, their messages and the contents."""

from typing import Any

from txmail.queue.sql import claim, settlements
from txmail.queue.sql.claimed import Work, load, read


def claim_and_load(connection: Any, *, token: int, now: int, **options: Any) -> list[Work]:
    """Claim deliveries that are due. A message that cannot be read fails, and no other does."""
    rows = claim.take(connection, token=token, now=now, **options)
    works, unreadable = read(connection, rows, token)
    settlements.settle(connection, unreadable + load(connection, works), now)
    return [each for each in works if each.loaded]
