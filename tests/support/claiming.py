"""Claims as a worker makes them, in one step: the rows, their messages and the contents."""

from typing import Any

from txmail.queue.sql import claim, settlements
from txmail.queue.sql.claimed import ClaimedMessage, load, read


def claim_and_load(
    connection: Any, *, token: int, now_ms: int, **options: Any
) -> list[ClaimedMessage]:
    """Claim deliveries that are due. A message that cannot be read fails, and no other does."""
    rows = claim.take(connection, token=token, now_ms=now_ms, **options)
    works, unreadable = read(connection, rows, token)
    settlements.settle(connection, unreadable + load(connection, works), now_ms)
    return [each for each in works if each.loaded]
