"""How often a login may fail before nobody tries again for a while."""

from __future__ import annotations

import contextlib
import hmac
import math
import os
import secrets
import threading
from collections.abc import Callable, Iterator
from typing import Any

from ..exceptions import TransportError
from ..smtp.auth import AuthenticationFailed

#: Logins that may fail in `PERIOD` with one password. Providers lock an account, or block the
#: address it is tried from, after five to ten; and a person, or another process, has to have a
#: share of those.
TRIES = 3
#: Logins that may fail in `PERIOD` where a program makes the passwords, such as tokens: each may be
#: another one, which nobody has looked at.
TRIES_OF_A_PROGRAM = 10
#: Seconds after which a failure counts no more: what providers use for the same purpose.
PERIOD = 3600.0


class Logins:
    """Counts the logins of one transport that fail for good: a wrong password stays wrong.

    Another password is another login: somebody has mended it.
    """

    def __init__(
        self, account: str, clock: Callable[[], float], *, of_a_program: bool = False
    ) -> None:
        """`account` is the printable name of whose logins they are.

        `of_a_program` says that passwords are made by a program.
        """
        self._account = account
        self._clock = clock
        self._of_a_program = of_a_program
        self._begin()

    def _begin(self) -> None:
        self._turn: Any = threading.RLock()  # which knows its owner
        self._proven = False
        #: when the last ones failed, and the mark of the password that they had
        self._failed: list[tuple[float, bytes]] = []
        self._why = ""
        #: makes marks that tell nothing of passwords to anybody else
        self._key = secrets.token_bytes(32)
        self._pid = os.getpid()

    def forget(self) -> None:
        """Somebody has done something about it."""
        self._begin()

    @contextlib.contextmanager
    def one(self, timeout: float, ask: Callable[[], str] = str) -> Iterator[None]:
        """Around a login; it gets its turn within `timeout` seconds.

        `ask` gives the password of the login; it is called once, when it is the turn of this one.

        Until one has succeeded there is one at a time: as many as there are threads would be more
        than are allowed. Raises a permanent `TransportError` if too many have failed.
        """
        if self._pid != os.getpid():
            self._begin()  # a thread of our parent may have had its turn at the fork
        try:
            if not self._proven:
                self._wait(timeout)
            mark = hmac.digest(self._key, ask().encode(), "sha256")
            self._check(mark)
            try:
                yield
            except AuthenticationFailed as error:
                self._failed.append((self._clock(), mark))
                self._why = str(error)
                self._proven = False
                raise
            self._failed.clear()
            self._proven = True
        finally:
            self._end()

    def _wait(self, timeout: float) -> None:
        self._end()  # of one that an exception has kept from its end
        if not self._turn.acquire(timeout=max(0.0, timeout)):
            raise TransportError(f"another login of {self._account} takes too long")
        if self._proven:
            self._end()

    def _end(self) -> None:
        """Give the turn back, if this thread has it."""
        while self._turn._is_owned():
            self._turn.release()

    def _check(self, mark: bytes) -> None:
        now = self._clock()
        recent = [failed for failed in self._failed if now - failed[0] < PERIOD]
        self._failed[:] = recent
        self._refuse([time for time, of in recent if of == mark], TRIES, now)
        if self._of_a_program:
            self._refuse([time for time, _ in recent], TRIES_OF_A_PROGRAM, now)

    def _refuse(self, failed: list[float], allowed: int, now: float) -> None:
        """Raise a permanent `TransportError` if more would fail than are `allowed`."""
        if len(failed) >= allowed:
            minutes = math.ceil((failed[-allowed] + PERIOD - now) / 60)
            raise TransportError(
                f"{self._why}: not tried again for {minutes} min, or until the transport is "
                "closed or the password is another one",
                temporary=False,
            )
