"""Limits how often a login may fail, and keeps a refused password from being tried again.

A worker does not try a password again that the server has refused, and neither does the next
process: for it, the queue keeps an *octet* of the refused password.

A reader of the queue must not be able to guess a password. A digest would let them, however slow
and salted: they would try words until one fits. A key in the process would be lost with it, and a
key beside the database would be in the same backup. So the queue keeps one octet of a slow digest,
and only of the password that was refused last. Of all wrong guesses one in 256 has the same octet,
so that the octet confirms no guess. The salt is the name of the account and never changes, because
a second octet with another salt would tell more.

The price: to a process that has not seen the refusal, one of 256 new passwords looks like the
refused one. A process that has seen it compares whole digests with a secret key, and takes every
other password for another one.
"""

from __future__ import annotations

import contextlib
import hashlib
import hmac
import math
import secrets
import threading
from collections.abc import Callable, Iterator
from typing import Any

from ..common.per_process import this_process
from ..exceptions import TransportError, TxmailError
from ..secret import Secret
from ..smtp.auth import AuthenticationFailed

#: Logins that may fail in `PERIOD` with one password. Providers lock an account, or block the
#: client's address, after five to ten failures. A person, or another process, needs a share of
#: them.
TRIES = 3
#: Logins that may fail in `PERIOD` where a program makes the passwords, such as tokens: each login
#: may have another one, which no person has checked.
TRIES_OF_A_PROGRAM = 10
#: Seconds for which a failure counts. Providers use the same period.
PERIOD = 3600.0
#: Iterations of the digest of which the queue keeps an octet (PBKDF2, RFC 8018 section 5.2).
ITERATIONS = 600_000


class Logins:
    """Counts the logins of one transport that fail for good: a wrong password stays wrong.

    Each password has a count of its own: a person may have corrected it.
    """

    def __init__(
        self,
        account: str,
        clock: Callable[[], float],
        *,
        of_a_program: bool = False,
        password: Secret | None = None,
        port: int = 0,
    ) -> None:
        """`account` is the printable name of the account, `password` its password.

        `of_a_program` is True if a program makes the passwords.
        """
        self.account = account
        #: names account and server in the queue
        self.key = f"{account}:{port}"
        self._clock = clock
        self.of_a_program = of_a_program
        self._password = password
        self._begin()

    def _begin(self) -> None:
        self._turn: Any = threading.RLock()  # an RLock, because it knows its owner
        self._proven = False
        #: the last failures: when, and the mark of the password
        self._failed: list[tuple[float, bytes]] = []
        self._why = ""
        #: the key of marks: no other process can compare a password with a mark
        self._key = secrets.token_bytes(32)
        self._process = this_process()
        #: the mark of the password that the server has refused last
        self._refused: bytes | None = None
        #: the mark of the password that is not tried any more, and its octet
        self._barred: bytes | None = None
        self._octet: int | None = None
        #: the mark of the password that was last found to differ, and the octet that it had not
        self._seen: tuple[bytes, int | None] | None = None
        #: True if the password differed from the refused one when it was last read
        self._changed = False

    @property
    def octet(self) -> int | None:
        """The octet of the password that is not tried any more, else None."""
        return self._octet if self._barred is not None else None

    @property
    def is_barred(self) -> bool:
        """True if no login is tried before the password changes."""
        return self._barred is not None and not self._changed

    def bar(self) -> None:
        """Do not try the password again that the server has refused last. Takes a moment."""
        refused = self._refused
        if refused is None or refused == self._barred:
            return
        mark, octet = self._present()
        if mark == refused:
            self._barred, self._octet, self._changed = mark, octet, False

    def has_another(self, octet: int | None) -> bool:
        """True if a password was refused, and the present one differs: once for each password.

        Takes a moment. `octet` is the octet of the password that was refused last, here or in
        another process, if it is known: a present password with the same octet is not tried.
        """
        if self._barred is None and octet is None:
            return False
        mark = self._digest()
        if mark is None or mark == self._barred:
            self._changed, self._seen = False, None
            return False
        if self._seen == (mark, octet):
            return False
        self._changed, self._seen = True, (mark, octet)
        if octet is None:
            return True
        mark, own = self._present()
        if mark is not None and own == octet:
            self._barred, self._octet, self._changed = mark, own, False
            self._why = self._why or f"the server has refused this password of {self.account}"
        return self._changed

    def _digest(self) -> bytes | None:
        """The mark of the present password; None if its source has none."""
        try:
            return hmac.digest(self._key, self._given().encode(), "sha256")
        except TxmailError:
            return None

    def _present(self) -> tuple[bytes | None, int]:
        """The mark of the present password and its octet."""
        try:
            # One `Secret`, so that mark and octet are of the same password.
            found = Secret(self._given())
            mark = hmac.digest(self._key, found.reveal(self.account).encode(), "sha256")
            return mark, octet_of(found, self.account)
        except TxmailError:
            return None, 0

    def _given(self) -> str:
        return "" if self._password is None else self._password.reveal(self.account)

    def forget(self) -> None:
        """Forget all failures: a person has done something about them."""
        self._begin()

    @contextlib.contextmanager
    def one(self, timeout: float, ask: Callable[[], str] = str) -> Iterator[None]:
        """A context for one login, which waits at most `timeout` seconds for its turn.

        `ask` gives the password of the login; it is called once, when the turn has come.

        Until a login has succeeded, there is one at a time: all threads together would fail more
        often than is allowed. Raises a permanent `TransportError` if too many have failed.
        """
        if self._process != this_process():
            self._begin()  # a thread of the parent may have had its turn at the fork
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
                self._refused = mark
                raise
            self._refused = self._barred = None
            self._failed.clear()
            self._proven = True
        finally:
            self._end()

    def _wait(self, timeout: float) -> None:
        self._end()  # of a login that an exception has interrupted
        if not self._turn.acquire(timeout=max(0.0, timeout)):
            raise TransportError(f"another login of {self.account} takes too long")
        if self._proven:
            self._end()

    def _end(self) -> None:
        """Give the turn back, if this thread has it."""
        while self._turn._is_owned():
            self._turn.release()

    def _check(self, mark: bytes) -> None:
        if mark == self._barred:
            self._changed = False
            raise AuthenticationFailed(
                f"{self._why}: not tried again until the password is another one or the transport "
                "is closed"
            )
        now = self._clock()
        recent = [failed for failed in self._failed if now - failed[0] < PERIOD]
        self._failed[:] = recent
        self._refuse([time for time, of in recent if of == mark], TRIES, now)
        if self.of_a_program:
            self._refuse([time for time, _ in recent], TRIES_OF_A_PROGRAM, now)

    def _refuse(self, failed: list[float], allowed: int, now: float) -> None:
        """Raise a permanent `TransportError` if so many logins as are `allowed` have failed."""
        if len(failed) >= allowed:
            minutes = math.ceil((failed[-allowed] + PERIOD - now) / 60)
            raise TransportError(
                f"{self._why}: not tried again for {minutes} min, or until the transport is "
                "closed or the password is another one",
                temporary=False,
            )


def octet_of(password: Secret, account: str) -> int:
    """The octet that a queue may keep of a refused password: see the head of this module."""
    salt = f"txmail {account}".encode()
    return hashlib.pbkdf2_hmac(
        "sha256", password.reveal(account).encode(), salt, ITERATIONS, dklen=1
    )[0]


def logins_of(transport: object) -> tuple[Logins, ...]:
    """The logins of `transport` at all its servers; none if it logs in nowhere."""
    return tuple(getattr(transport, "logins", ()))


def close_idle(transport: Any) -> None:
    """Close the idle connections of `transport`. Failed logins still count."""
    getattr(transport, "close_idle", transport.close)()
