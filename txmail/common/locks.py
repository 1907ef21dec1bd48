"""Locks that no exception leaves behind, however untimely it is.

The handler of a signal raises wherever the main thread happens to be: also between the moment in
which `threading.Condition` has its lock and the one in which a ``with`` statement knows, and then
nobody ever gives it back.
"""

from __future__ import annotations

import threading
from collections.abc import Callable
from typing import Any, TypeVar

_T = TypeVar("_T")


def hold(condition: threading.Condition, do: Callable[[], _T]) -> _T:
    """Call `do` while this thread has the lock of `condition`. Not within itself.

    The lock has to be an RLock, which `threading.Condition` makes by itself: it knows its owner.
    """
    lock: Any = condition._lock  # type: ignore[attr-defined]
    try:
        # The lock itself: the method of the condition is Python, and can be interrupted.
        with lock:
            return do()
    finally:
        while lock._is_owned():
            lock.release()
