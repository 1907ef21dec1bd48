"""Mail that was handed in and never committed: said aloud, for it would be missed too late.

A script that forgets its commit ends well otherwise, and so does a request without a transaction
manager. Who aborts knows what becomes of the mail and is told nothing.
"""

from __future__ import annotations

import atexit
import sys
import threading
import warnings
import weakref
from typing import Protocol

from transaction import ThreadTransactionManager, TransactionManager
from transaction._transaction import Transaction

from ..exceptions import UnsentMailWarning

#: Message-IDs that a warning shows.
_SHOWN = 20


class Holder(Protocol):
    """What holds mail until the commit."""

    transaction_manager: object

    def uncommitted(self) -> tuple[str, ...]:
        """The Message-IDs of what nobody has tried to commit; empty the next time."""


class _Thread(threading.local):
    """What is thrown away when the thread ends."""

    def __init__(self) -> None:
        self.end = _End()


class _End:
    """Finds out what its thread has left in its transaction."""

    def __init__(self) -> None:
        self.holders: weakref.WeakSet[Holder] = weakref.WeakSet()

    def __del__(self) -> None:
        for holder in list(self.holders):
            # Any other manager may be committed by another thread.
            if isinstance(holder.transaction_manager, ThreadTransactionManager):
                warn(holder, "its thread has ended")


_all: weakref.WeakSet[Holder] = weakref.WeakSet()
_thread = _Thread()


def watch(holder: Holder) -> None:
    """Warn if this process, or this thread, ends while `holder` has mail."""
    _all.add(holder)
    _thread.end.holders.add(holder)


def warn(holder: Holder, why: str, stacklevel: int = 1) -> None:
    """Warn, once, if `holder` has mail that nobody has committed."""
    message_ids = holder.uncommitted()
    if not message_ids:
        return
    shown = ", ".join(message_ids[:_SHOWN])
    more = f" and {len(message_ids) - _SHOWN} more" if message_ids[_SHOWN:] else ""
    warnings.warn(
        UnsentMailWarning(
            f"{len(message_ids)} message(s) were handed in and never committed, and {why}: "
            f"they are not sent. Call transaction.commit(), or transaction.abort() if that is "
            f"what you want: {shown}{more}",
            message_ids,
        ),
        stacklevel=stacklevel + 1,
    )


def begins_anew() -> int:
    """If the present abort is that of a `begin()`: the stack level of who called it; 0 if not.

    Level 1 is the caller of this function.
    """
    frame, level = sys._getframe(1), 1
    while frame.f_back is not None and frame.f_code is not Transaction.abort.__code__:
        frame, level = frame.f_back, level + 1
    above = frame.f_back
    if above is None or above.f_code is not TransactionManager.begin.__code__:
        return 0
    # Over a thread's manager, and a `with` statement, too.
    level += 2
    while above.f_back is not None and above.f_back.f_globals.get("__name__") == _MANAGER:
        above, level = above.f_back, level + 1
    return level


_MANAGER = TransactionManager.__module__


def _at_exit() -> None:
    for holder in list(_all):
        warn(holder, "the process ends")


atexit.register(_at_exit)
