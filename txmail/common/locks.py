"""Hold a lock so that no exception leaves it locked.

A signal handler raises wherever the main thread is. That may be after `threading.Condition` has
taken its lock and before the ``with`` statement notices. Then nothing would release the lock.
"""

from __future__ import annotations

import threading
from collections.abc import Callable
from typing import Any, TypeVar

_T = TypeVar("_T")


def hold(condition: threading.Condition, do: Callable[[], _T]) -> _T:
    """Call `do` while this thread holds the lock of `condition`. Do not nest calls.

    The lock has to be an RLock, which is what `threading.Condition` makes: it knows its owner.
    """
    lock: Any = condition._lock  # type: ignore[attr-defined]
    try:
        # Not the condition's own method: that is Python code, which a signal can interrupt.
        with lock:
            return do()
    finally:
        while lock._is_owned():
            lock.release()
