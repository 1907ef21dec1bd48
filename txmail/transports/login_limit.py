"""How often a login may fail before nobody tries again for a while, or not with that password.

A worker that was refused does not try the same password again, and neither does the next process:
the queue keeps an *octet* of the refused password for it. Whoever reads the queue must not be able
to guess a password by what is there. A digest of any kind would let them, however slow and salted:
they try words until one fits. A key that stays in the process would not outlive it, and one beside
the database would be in the same backup. So it is one octet of a slow digest, and of the password
that was refused last only.
Of all wrong guesses one in 256 has the same octet, so that it confirms none. The salt is the name
of the account and never changes, because a second octet of the same password by another salt would
tell more than the first. The price: of 256 new passwords, one looks like the refused one to a
process that has not seen the refusal. A process that has seen it compares digests whose key it
never gives away, and takes every other password for another.
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
#: address it is tried from, after five to ten; and a person, or another process, has to have a
#: share of those.
TRIES = 3
#: Logins that may fail in `PERIOD` where a program makes the passwords, such as tokens: each may be
#: another one, which nobody has looked at.
TRIES_OF_A_PROGRAM = 10
#: Seconds after which a failure counts no more: what providers use for the same purpose.
PERIOD = 3600.0
#: Iterations of the digest of which the queue keeps an octet (PBKDF2, RFC 8018 section 5.2).
ITERATIONS = 600_000


class Logins:
    """Counts the logins of one transport that fail for good: a wrong password stays wrong.

    Another password is another login: somebody has mended it.
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
        """`account` is the printable name of whose logins they are, `password` what they use.

        `of_a_program` says that passwords are made by a program.
        """
        self.account = account
        #: whose they are, and at which server
        self.key = f"{account}:{port}"
        self._clock = clock
        self.of_a_program = of_a_program
        self._password = password
        self._begin()

    def _begin(self) -> None:
        self._turn: Any = threading.RLock()  # which knows its owner
        self._proven = False
        #: when the last ones failed, and the mark of the password that they had
        self._failed: list[tuple[float, bytes]] = []
        self._why = ""
        #: makes marks that tell nothing of passwords to anybody else
        self._key = secrets.token_bytes(32)
        self._process = this_process()
        #: the mark of the password of the last login, if it was refused
        self._refused: bytes | None = None
        #: the mark of the password that is not tried any more, and the octet of it
        self._barred: bytes | None = None
        self._octet: int | None = None
        #: the mark of the password that was last found to be another, and the octet it has not
        self._seen: tuple[bytes, int | None] | None = None
        #: True if the password was another one than that when it was last looked at
        self._changed = False

    @property
    def octet(self) -> int | None:
        """That of the password that is not tried any more; None if there is none."""
        return self._octet if self._barred is not None else None

    @property
    def is_barred(self) -> bool:
        """True if no login is tried before there is another password, as far as that is known."""
        return self._barred is not None and not self._changed

    def bar(self) -> None:
        """Do not try the password again that was refused last. Takes a moment."""
        refused = self._refused
        if refused is None or refused == self._barred:
            return
        mark, octet = self._present()
        if mark == refused:
            self._barred, self._octet, self._changed = mark, octet, False

    def has_another(self, octet: int | None) -> bool:
        """True if a password was refused, and the present one is another: once for each.

        Takes a moment.

        `octet` is that of the password that was refused last, here or in another process, if that
        is known: the present one is not tried if it has the same.
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
        """The mark of the present password; None if there is none."""
        try:
            return hmac.digest(self._key, self._given().encode(), "sha256")
        except TxmailError:
            return None

    def _present(self) -> tuple[bytes | None, int]:
        """The mark of the present password and its octet."""
        try:
            # One `Secret`, so that both are of the same password.
            found = Secret(self._given())
            mark = hmac.digest(self._key, found.reveal(self.account).encode(), "sha256")
            return mark, octet_of(found, self.account)
        except TxmailError:
            return None, 0

    def _given(self) -> str:
        return "" if self._password is None else self._password.reveal(self.account)

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
        if self._process != this_process():
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
                self._refused = mark
                raise
            self._refused = self._barred = None
            self._failed.clear()
            self._proven = True
        finally:
            self._end()

    def _wait(self, timeout: float) -> None:
        self._end()  # of one that an exception has kept from its end
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
        """Raise a permanent `TransportError` if more would fail than are `allowed`."""
        if len(failed) >= allowed:
            minutes = math.ceil((failed[-allowed] + PERIOD - now) / 60)
            raise TransportError(
                f"{self._why}: not tried again for {minutes} min, or until the transport is "
                "closed or the password is another one",
                temporary=False,
            )


def octet_of(password: Secret, account: str) -> int:
    """What a queue may keep of a password that was refused: see above."""
    salt = f"txmail {account}".encode()
    return hashlib.pbkdf2_hmac(
        "sha256", password.reveal(account).encode(), salt, ITERATIONS, dklen=1
    )[0]


def logins_of(transport: object) -> tuple[Logins, ...]:
    """The logins of `transport`, those of all its servers; none if it logs in nowhere."""
    return tuple(getattr(transport, "logins", ()))


def close_idle(transport: Any) -> None:
    """End the idle connections of `transport`; logins that failed are not forgotten for that."""
    getattr(transport, "close_idle", transport.close)()
