"""Ends connections whose time is over, from another thread.

A server that hangs, or a network that drops everything, gives no answer, and libpq waits for ever:
only the server keeps the time-outs that we have set. When this thread shuts the socket down, the
waiting thread finds that its connection has ended.
"""

from __future__ import annotations

import os
import socket
import threading
import time
from collections.abc import Callable
from contextlib import suppress

from ...common.locks import hold

#: Seconds of the thread's idleness, after which it ends.
_IDLE = 10.0


class Watch:
    """One thread, started when there is something to watch, for any number of connections."""

    def __init__(self) -> None:
        self._changed = threading.Condition()
        #: by key: when its time is over, by `time.monotonic`, and its descriptor
        self._watched: dict[object, tuple[float, Callable[[], int]]] = {}
        #: when the thread looks next; None if there is none
        self._next: float | None = None

    def begin(self, key: object, descriptor: Callable[[], int], seconds: float) -> None:
        """Shut the socket `descriptor` returns down in `seconds`, unless `end` comes before."""
        deadline = time.monotonic() + min(seconds, threading.TIMEOUT_MAX / 2)
        hold(self._changed, lambda: self._begin(key, deadline, descriptor))

    def _begin(self, key: object, deadline: float, descriptor: Callable[[], int]) -> None:
        self._watched[key] = deadline, descriptor
        if self._next is None:
            # No thread can start while the interpreter shuts down; nobody waits for long then.
            with suppress(RuntimeError):
                threading.Thread(target=self._run, name="txmail-watch", daemon=True).start()
                self._next = deadline
        elif deadline < self._next:
            self._changed.notify()

    def end(self, key: object) -> None:
        """End `begin`: the connection may be given back."""
        hold(self._changed, lambda: self._watched.pop(key, None))

    def _run(self) -> None:
        with self._changed:
            while True:
                now = time.monotonic()
                for key in [k for k, (deadline, _) in self._watched.items() if deadline <= now]:
                    _shut(self._watched.pop(key)[1])
                moments = [deadline for deadline, _ in self._watched.values()]
                self._next = min(moments, default=now + _IDLE)
                woken = self._changed.wait(max(self._next - now, 0.0))
                if not woken and not self._watched and not moments:
                    self._next = None
                    return


def _shut(descriptor: Callable[[], int]) -> None:
    # Within the lock: the one who waits for it cannot have given the connection back. A copy,
    # because the descriptor itself is libpq's to close.
    with suppress(Exception), socket.socket(fileno=os.dup(descriptor())) as copy:
        copy.shutdown(socket.SHUT_RDWR)
