"""Sends to an SMTP server: `txmail.smtp` sessions behind `ITransport`."""

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

#: Seconds in which a connection beside the first has to be open. Mail for the first connection does
#: not wait for a server that takes no more connections and does not say so.
MORE_TIMEOUT = 5.0


@implementer(ITransport)
class SmtpTransport:
    """Sends to one SMTP server, and keeps its connections. See `ITransport`.

    A copy or a pickle has the options and nothing else: no sockets, locks, or password (see
    `txmail.secret`). It reads files and opens a connection on first use.
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
        """`pool` connections are kept, and used at once before a thread has to wait.

        `connections` are used by one `ISession.send` that is not all or nothing. `clock` is for the
        logins that failed. Raises `ConfigurationError` for a certificate that cannot be used.
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
        """The number of connections that one `ISession.send` uses at most."""
        return self._connections

    @property
    def window(self) -> int | None:
        """Messages on their way at once on one connection; None lets the caller choose."""
        return self.options.window

    @property
    def logins(self) -> tuple[Logins, ...]:
        """Its logins; none if it does not log in."""
        return () if self.options.password is None else (self._logins,)

    @property
    def is_barred(self) -> bool:
        """True if it cannot log in before the password changes."""
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

        Raises `ConfigurationError`, which names user and host, if the password has no source, and
        on a system without `select.poll`.
        """
        if problem := system.lacks("poll"):
            raise ConfigurationError(problem, field=self.name)
        seconds = self.options.timeout if timeout is None else timeout
        if self._connections == 1:
            return self._pool.take(seconds, wait=wait, fresh=fresh, verify=verify)
        session = self._pool.take(seconds, wait=wait, fresh=fresh, verify=verify)
        return SessionGroup(session, self._connections, self._more)

    def _more(self, count: int, timeout: float | None) -> list[Session]:
        """Open `count` sessions at the same time within `timeout` seconds.

        Returns fewer if the server takes no more.
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
            begun += self._start_threads(one, count)
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

    def _start_threads(self, run: Callable[[], None], count: int) -> Iterator[threading.Thread]:
        """Start `count` threads that `run`. A process that is ending starts none."""
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
            return self._open_session(timeout, None)
        asked: list[Secret] = []

        def ask() -> str:
            # Once for each connection: a token may differ the next time.
            asked.append(Secret(given.reveal(account)))
            return asked[0].reveal(account)

        with self._logins.one(timeout, ask):
            return self._open_session(deadline - time.monotonic(), asked[0])

    def _open_session(self, timeout: float, password: Secret | None) -> Session:
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
        """Seconds within which to try again after a failure; None lets the caller choose.

        A name that does not resolve may come back at any moment.
        """
        return RETRY_WITHIN if self._unresolved else None

    def _context(self) -> ssl.SSLContext | None:
        if self._tls is None:
            self._tls = _context(self.options)
        return self._tls

    def close_idle(self) -> None:
        """Close all idle connections. Failed logins still count."""
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
    # Reads no files. The transport may be a part of a persistent object, and on a host without the
    # certificate file it is better to load that object than to fail.
    transport = kind.__new__(kind)
    transport._setup(options, pool, time.monotonic, connections, None)
    return transport
