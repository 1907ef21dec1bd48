"""What is done when a process ends by itself, however it was started."""

from __future__ import annotations

import atexit
import sys
from collections.abc import Callable
from typing import Any

#: What `multiprocessing` has in its list, by what it calls.
_finalizers: dict[Callable[[], object], Any] = {}
#: Before `multiprocessing` ends what it has itself.
_FIRST = 1000


def before(call: Callable[[], object]) -> None:
    """Have `call` called before the process ends, once, when no thread is waited for any more."""
    atexit.register(call)
    # A forked child of `multiprocessing` ends without the functions of atexit.
    util: Any = sys.modules.get("multiprocessing.util")
    process: Any = sys.modules.get("multiprocessing.process")
    if util is not None and process is not None and process.parent_process() is not None:
        _finalizers[call] = util.Finalize(None, call, exitpriority=_FIRST)


def forget(call: Callable[[], object]) -> None:
    """The end of `before`."""
    atexit.unregister(call)
    finalizer = _finalizers.pop(call, None)
    if finalizer is not None:
        finalizer.cancel()
