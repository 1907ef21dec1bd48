"""How often a login may fail before nobody tries again for a while."""

from __future__ import annotations

import contextlib
import math
import os
import threading
from collections import deque
from collections.abc import Callable, Iterator

from ..exceptions import TransportError
from ..smtp.auth import AuthenticationFailed

#: Logins that may fail in `PERIOD`. Providers lock an account, or block the address it is tried
#: from, after five to ten; and a person, or another process, has to have a share of those.
TRIES = 3
#: Seconds after which a failure counts no more: what providers use for the same purpose.
PERIOD = 3600.0


class Logins:
    """Counts the logins of one transport that fail for good: a wrong password stays wrong."""

    def __init__(self, account: str, clock: Callable[[], float]) -> None:
        """`account` is the printable name of whose logins they are."""
        self._account = account
        self._clock = clock
        self._begin()

    def _begin(self) -> None:
        self._turn = threading.Lock()
        self._proven = False
        #: when the last ones failed, and why the last one did
        self._failed: deque[float] = deque(maxlen=TRIES)
        self._why = ""
        self._pid = os.getpid()

    def forget(self) -> None:
        """Somebody has done something about it."""
        self._begin()

    @contextlib.contextmanager
    def one(self, timeout: float) -> Iterator[None]:
        """Around a login; it gets its turn within `timeout` seconds.

        Until one has succeeded there is one at a time: as many as there are threads would be more
        than are allowed. Raises a permanent `TransportError` if too many have failed.
        """
        if self._pid != os.getpid():
            self._begin()  # a thread of our parent may have had its turn at the fork
        with contextlib.ExitStack() as turn:
            if not self._proven:
                self._wait(turn, timeout)
            self._check()
            try:
                yield
            except AuthenticationFailed as error:
                self._failed.append(self._clock())
                self._why = str(error)
                self._proven = False
                raise
            self._failed.clear()
            self._proven = True

    def _wait(self, turn: contextlib.ExitStack, timeout: float) -> None:
        lock = self._turn
        if not lock.acquire(timeout=max(0.0, timeout)):
            raise TransportError(f"another login of {self._account} takes too long")
        turn.callback(lock.release)
        if self._proven:
            turn.close()

    def _check(self) -> None:
        now = self._clock()
        recent = [time for time in self._failed if now - time < PERIOD]
        if len(recent) >= TRIES:
            minutes = math.ceil((recent[0] + PERIOD - now) / 60)
            raise TransportError(
                f"{self._why}: not tried again for {minutes} min, or until the transport is closed",
                temporary=False,
            )
