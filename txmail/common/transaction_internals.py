"""Read private attributes of the `transaction` package. No other file does.

A test compares each of these with the installed version, and the project bounds the version from
above.
"""

from __future__ import annotations

import sys
from collections.abc import Sequence
from types import FrameType
from typing import Any

from transaction import TransactionManager
from transaction._transaction import Status as Status
from transaction._transaction import Transaction

_TWO_PHASE = Transaction._commitResources.__code__
_ABORT = Transaction.abort.__code__
_BEGIN = TransactionManager.begin.__code__
_MANAGER = TransactionManager.__module__


def resources(transaction: Any) -> Sequence[Any]:
    """The data managers that take part in `transaction`."""
    found: Sequence[Any] = transaction._resources
    return found


def has_voted(transaction: Any, manager: object) -> bool:
    """True if `transaction` has noted that `manager` voted yes.

    An exception between the end of the vote and the note leaves the note out.
    """
    return id(manager) in (transaction._voted or ())


def in_two_phase_commit() -> bool:
    """True if this thread is between the `tpc_begin` and the end of any transaction's commit.

    Then this thread must not wait for a connection that another thread has: this thread's databases
    hold locks, and the other thread may need them.
    """
    frame: FrameType | None = sys._getframe(1)
    while frame is not None:
        if frame.f_code is _TWO_PHASE:
            return True
        frame = frame.f_back
    return False


def begin_level() -> int:
    """The stack level of the caller of `begin()`, if that causes the present abort; 0 if not.

    Level 1 is the caller of this function.
    """
    frame, level = sys._getframe(1), 1
    while frame.f_back is not None and frame.f_code is not _ABORT:
        frame, level = frame.f_back, level + 1
    above = frame.f_back
    if above is None or above.f_code is not _BEGIN:
        return 0
    # A thread's manager and a `with` statement add levels.
    level += 2
    while above.f_back is not None and above.f_back.f_globals.get("__name__") == _MANAGER:
        above, level = above.f_back, level + 1
    return level
