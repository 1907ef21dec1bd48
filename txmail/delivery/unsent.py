"""A warning for mail that an application hands in and never commits.

A script that forgets its commit would end without an error, and a request without a transaction
manager as well: nobody would notice until the mail is missed. Code that aborts knows that its mail
is not sent, and gets no warning.
"""

from __future__ import annotations

import atexit
import threading
import warnings
import weakref
from typing import Protocol

from transaction import ThreadTransactionManager

from ..exceptions import UnsentMailWarning

#: Message-IDs that a warning shows.
_SHOWN = 20


class Holder(Protocol):
    """What holds mail until the commit."""

    transaction_manager: object

    def uncommitted(self) -> tuple[str, ...]:
        """The Message-IDs of mail that nobody has tried to commit; empty the next time."""


class _Thread(threading.local):
    """Python throws this away when the thread ends."""

    def __init__(self) -> None:
        self.end = _End()


class _End:
    """Warns of what its thread has left in its transaction."""

    def __init__(self) -> None:
        self.holders: weakref.WeakSet[Holder] = weakref.WeakSet()

    def __del__(self) -> None:
        for holder in list(self.holders):
            # Another thread may commit the transaction of any other kind of manager.
            if isinstance(holder.transaction_manager, ThreadTransactionManager):
                warn(holder, "its thread has ended")


_all: weakref.WeakSet[Holder] = weakref.WeakSet()
_thread = _Thread()


def watch(holder: Holder) -> None:
    """Warn if this process, or this thread, ends while `holder` has mail."""
    _all.add(holder)
    _thread.end.holders.add(holder)


def warn(holder: Holder, why: str, stacklevel: int = 1) -> None:
    """Warn once if `holder` has mail that nobody has committed, and say `why` now."""
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


def _at_exit() -> None:
    for holder in list(_all):
        warn(holder, "the process ends")


atexit.register(_at_exit)
