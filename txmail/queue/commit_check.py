"""Finds out whether a transaction has committed whose COMMIT got no answer.

A connection may end after COMMIT was sent and before the answer has come. The transaction may have
committed then, and a worker may be sending its mail. So we connect again and read the row of the
batch under its lock: the transaction that held the lock before is over by then, even if its COMMIT
was still on its way.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import TypeVar

import sqlalchemy as sa

from ..exceptions import QueueInDoubt, QueueUnavailable
from .sql.publish import Store
from .states import BatchState

#: The part of the time for the transaction itself; the rest is for reading the row.
_SHARE = 2 / 3
#: Seconds between two tries to read the row: the first pause doubles up to the last.
_FIRST_PAUSE, _LAST_PAUSE = 0.05, 1.0
#: The states of a batch whose transaction has committed.
_DECIDED = (BatchState.SENDING, BatchState.PUBLISHING, BatchState.PUBLISHED)

_T = TypeVar("_T")


def commit_surely(
    store: Store, number: int, write: Callable[[sa.Connection], _T], timeout: float
) -> _T:
    """Commit a transaction in which `write` decides about batch `number`; return its result.

    `timeout` is in seconds. Raises `QueueInDoubt` if it is not known by then whether the
    transaction has committed; what `Database.write` raises if it has not.
    """
    deadline = time.monotonic() + timeout
    database = store.database
    share = 1 if database.is_in_process else _SHARE
    written: list[_T] = []
    try:
        with database.write(timeout=timeout * share) as connection:
            written.append(write(connection))
    except QueueUnavailable as error:
        if not written:
            raise  # COMMIT was not sent
        lost = error
    else:
        return written[0]
    if _state(store, number, deadline, lost) not in _DECIDED:
        raise lost
    return written[0]


def _state(store: Store, number: int, deadline: float, lost: QueueUnavailable) -> BatchState | None:
    database = store.database
    begin = database.read if database.is_in_process else database.write
    pause = _FIRST_PAUSE
    while (left := deadline - time.monotonic()) > 0:
        try:
            with begin(timeout=left) as connection:
                return store.state(connection, number)
        except QueueUnavailable:
            time.sleep(max(min(pause, deadline - time.monotonic()), 0.0))
            pause = min(pause * 2, _LAST_PAUSE)
    raise QueueInDoubt(
        f"{lost}; the answer to COMMIT was lost, and the queue could not be asked: it may have the "
        "mail. Do not send it again before you have looked"
    )
