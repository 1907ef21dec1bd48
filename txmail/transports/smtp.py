"""The SMTP transport: `txmail.smtp` sessions behind `ITransport`."""

from __future__ import annotations

import ssl
import threading
import time
from collections.abc import Callable, Iterator
from typing import Any

from zope.interface import implementer

from ..common import system
from ..common.logs import quiet_logger
from ..exceptions import ConfigurationError, TransportError
from ..interfaces import ITransport
from ..secret import Secret
from ..smtp.happy_eyeballs import Connector
from ..smtp.options import Options
from ..smtp.pool import POOL_SIZE, Pool
from ..smtp.resolver import RETRY_WITHIN, NameNotResolved
from ..smtp.server_memory import ServerMemory
from ..smtp.session import Session
from ..smtp.session_group import SessionGroup
from ..smtp.stream import Stream
from ..smtp.tls import client_context
from .login_limit import Logins

log = quiet_logger("txmail")

#: Seconds in which a connection beside the first has to be open: what can be sent over the first
#: does not wait for a server that takes no more and does not say so.
MORE_TIMEOUT = 5.0


@implementer(ITransport)
class SmtpTransport:
    """Sends to one SMTP server over connections that are kept. See `ITransport`.

    A copy, or a pickle, has the options and nothing else: sockets, locks and the password stay
    behind (see `txmail.secret`), and a connection is opened, and files are read, on first use.
    """

    #: a preflight asks the server
    asks_server = True

    def __init__(
        self,
        options: Options,
        pool: int = POOL_SIZE,
        clock: Callable[[], float] = time.monotonic,
        connections: int = 1,
    ) -> None:
        """`pool` is how many connections are kept, and used at once before somebody waits.

        `connections` are used by one `ISession.send` that is not all or nothing. `clock` is what
        logins that failed are counted by. Raises `ConfigurationError` for a certificate that
        cannot be used.
        """
        self._setup(options, pool, clock, connections, _context(options))

    def _setup(
        self,
        options: Options,
        pool: int,
        clock: Callable[[], float],
        connections: int,
        tls: ssl.SSLContext | None,
    ) -> None:
        self.options = options
        self._size = pool
        self._connections = connections
        self._tls = tls
        self._pool = Pool(self._connect, pool)
        self._memory = ServerMemory()
        self._connector = Connector()
        #: True if the last attempt to connect found no address
        self._unresolved = False
        of_a_program = options.password is not None and options.password.of_a_program
        self._logins = Logins(
            options.account,
            clock,
            of_a_program=of_a_program,
            password=options.password,
            port=options.port,
        )

    @property
    def connections(self) -> int:
        """How many one `ISession.send` uses at most."""
        return self._connections

    @property
    def window(self) -> int | None:
        """Messages on their way at once on one connection; None if whoever sends may say it."""
        return self.options.window

    @property
    def logins(self) -> tuple[Logins, ...]:
        """Its logins; none if it does not log in."""
        return () if self.options.password is None else (self._logins,)

    @property
    def is_barred(self) -> bool:
        """True if it can do nothing before there is another password."""
        return any(login.is_barred for login in self.logins)

    @property
    def name(self) -> str:
        """Such as ``smtp://mx.example.com:25``."""
        return self.options.name

    def open(
        self,
        *,
        timeout: float | None = None,
        wait: bool = True,
        fresh: bool = False,
        verify: bool = True,
    ) -> Session | SessionGroup:
        """See `ITransport`.

        Raises `ConfigurationError`, which names user and host, if there is no password, and on a
        system on which it does not work.
        """
        if problem := system.lacks("poll"):
            raise ConfigurationError(problem, field=self.name)
        seconds = self.options.timeout if timeout is None else timeout
        if self._connections == 1:
            return self._pool.take(seconds, wait=wait, fresh=fresh, verify=verify)
        session = self._pool.take(seconds, wait=wait, fresh=fresh, verify=verify)
        return SessionGroup(session, self._connections, self._more)

    def _more(self, count: int, timeout: float | None) -> list[Session]:
        """Up to so many sessions, opened at the same time; fewer if the server takes no more.

        `timeout` is in seconds.
        """
        patience = min(MORE_TIMEOUT, self.options.timeout if timeout is None else timeout)
        opened: list[Session] = []

        problems: list[BaseException] = []

        def one() -> None:
            try:
                opened.append(self._pool.take(patience, wait=False))
            except TransportError as error:
                log.info("%s: one connection less: %s", self.name, error)
            except BaseException as error:
                problems.append(error)

        begun: list[threading.Thread] = []
        try:
            begun += self._started(one, count)
            for thread in begun:
                thread.join()
            if problems:
                raise problems[0]
        except BaseException:
            for thread in begun:
                thread.join()
            for session in opened:
                session.close()
            raise
        return opened

    def _started(self, run: Callable[[], None], count: int) -> Iterator[threading.Thread]:
        """So many threads that `run`; none in a process that is ending, which starts no more."""
        for _ in range(count):
            thread = threading.Thread(target=run, name="txmail-connect", daemon=True)
            try:
                thread.start()
            except RuntimeError as error:
                log.info("%s: no more connections: %s", self.name, error)
                return
            yield thread

    def _connect(self, timeout: float) -> Session:
        deadline = time.monotonic() + timeout
        given, account = self.options.password, self.options.account
        if given is None:
            return self._opened(timeout, None)
        asked: list[Secret] = []

        def ask() -> str:
            # Once for a connection: a token may be another one the next time.
            asked.append(Secret(given.reveal(account)))
            return asked[0].reveal(account)

        with self._logins.one(timeout, ask):
            return self._opened(deadline - time.monotonic(), asked[0])

    def _opened(self, timeout: float, password: Secret | None) -> Session:
        deadline = time.monotonic() + timeout
        tls = self._context()
        bound = min(timeout, self.options.timeout)
        try:
            stream = Stream.connect(self.options.host, self.options.port, bound, self._connector)
        except TransportError as error:
            self._unresolved = isinstance(error, NameNotResolved)
            raise
        self._unresolved = False
        session = Session(stream, self.options, memory=self._memory, connect=self._connect)
        session.greet(deadline - time.monotonic(), tls, password)
        return session

    @property
    def retry_within(self) -> float | None:
        """Seconds within which to try again after a failure; None if that is the caller's choice.

        A name that does not resolve may be back at any moment.
        """
        return RETRY_WITHIN if self._unresolved else None

    def _context(self) -> ssl.SSLContext | None:
        if self._tls is None:
            self._tls = _context(self.options)
        return self._tls

    def close_idle(self) -> None:
        """End all idle connections, and forget nothing."""
        self._pool.close()

    def close(self) -> None:
        """See `ITransport`. Logins that failed are forgotten."""
        self._logins.forget()
        self._pool.close()

    def __reduce__(self) -> tuple[Any, ...]:
        return _restored, (type(self), self.options, self._size, self._connections)

    def __repr__(self) -> str:
        return f"<{type(self).__name__} {self.name}>"


def _context(options: Options) -> ssl.SSLContext | None:
    return client_context(options.tls, options.files, x509_strict=options.x509_strict)


def _restored(
    kind: type[SmtpTransport], options: Options, pool: int, connections: int = 1
) -> SmtpTransport:
    # It may be a part of a persistent object: one that could not be loaded where a certificate is
    # not would be worse than a transport that cannot connect there.
    transport = kind.__new__(kind)
    transport._setup(options, pool, time.monotonic, connections, None)
    return transport
