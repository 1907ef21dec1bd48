"""The SMTP transport: `txmail.smtp` sessions behind `ITransport`."""

from __future__ import annotations

import time
from typing import Any

from zope.interface import implementer

from ..interfaces import ITransport
from ..smtp.options import Options
from ..smtp.pool import POOL_SIZE, Pool
from ..smtp.session import Session
from ..smtp.stream import Stream
from ..smtp.tls import client_context


@implementer(ITransport)
class SmtpTransport:
    """Sends to one SMTP server over connections that are kept. See `ITransport`."""

    #: a preflight asks the server
    asks_server = True

    def __init__(self, options: Options, pool: int = POOL_SIZE) -> None:
        """`pool` is how many connections are kept, and used at once before somebody waits."""
        self.options = options
        self._size = pool
        self._tls = client_context(options.tls, options.files)
        self._pool = Pool(self._connect, pool)

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
    ) -> Session:
        """See `ITransport`."""
        seconds = self.options.timeout if timeout is None else timeout
        return self._pool.take(seconds, wait=wait, fresh=fresh, verify=verify)

    def _connect(self, timeout: float) -> Session:
        deadline = time.monotonic() + timeout
        bound = min(timeout, self.options.timeout)
        stream = Stream.connect(self.options.host, self.options.port, bound)
        session = Session(stream, self.options)
        session.greet(deadline - time.monotonic(), self._tls)
        return session

    def close(self) -> None:
        """See `ITransport`."""
        self._pool.close()

    def __reduce__(self) -> tuple[Any, ...]:
        # A copy, or one in another process, opens connections of its own.
        return type(self), (self.options, self._size)

    def __repr__(self) -> str:
        return f"<{type(self).__name__} {self.name}>"
