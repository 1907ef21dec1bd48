"""Connects to the first address of a host that answers (RFC 8305, "happy eyeballs").

After a quarter of a second without an answer, the connector tries the next address beside the first
one, and uses the first that answers. For a while it tries an address last that did not answer.

This is one of three files with sockets: it opens them and gives them to `stream`. It starts no
threads.
"""

from __future__ import annotations

import errno
import math
import os
import select
import socket
import time
from collections.abc import Callable, Sequence

from ..exceptions import TransportError
from .resolver import RESOLVER, Address, Resolver

#: Seconds after which the next address is tried beside an address that does not answer: the
#: "Connection Attempt Delay" of RFC 8305 section 5.
ATTEMPT_DELAY = 0.25
#: Seconds for which an address that did not answer is tried last.
DEAD_FOR = 600.0
#: Addresses remembered at once.
_MOST = 64


class Connector:
    """Opens sockets, and remembers which addresses did not answer. Threads share it."""

    def __init__(
        self, clock: Callable[[], float] = time.monotonic, resolver: Resolver = RESOLVER
    ) -> None:
        self._clock = clock
        self._resolver = resolver
        #: addresses that did not answer, and until when they come last
        self._dead: dict[Address, float] = {}

    def connect(self, host: str, port: int, timeout: float) -> socket.socket:
        """A connected socket, not blocking, within `timeout` seconds. Raises `TransportError`."""
        if timeout <= 0:
            raise TransportError(f"no connection to {host}:{port} in time")
        deadline = time.monotonic() + timeout
        found = self._resolver.resolve(host, port, timeout)
        attempts = _Attempts(self._ordered(found), deadline)
        try:
            connected = attempts.run()
        finally:
            attempts.close()
            self._note(attempts)
        if connected is not None:
            return connected
        problem = attempts.problem
        if problem is None or problem.errno == errno.ETIMEDOUT:
            raise TransportError(f"no connection to {host}:{port} in time") from problem
        reason = problem.strerror or problem
        raise TransportError(f"cannot connect to {host}:{port}: {reason}") from problem

    def _ordered(self, found: Sequence[Address]) -> list[Address]:
        """The addresses in the order to try them (RFC 8305 section 4); the silent ones last."""
        now = self._clock()
        ordered = interleaved(found)
        return sorted(ordered, key=lambda address: self._dead.get(address, now) > now)

    def _note(self, attempts: _Attempts) -> None:
        until = self._clock() + DEAD_FOR
        for address in attempts.silent:
            self._dead.pop(address, None)
            self._dead[address] = until
        if attempts.answered is not None:
            self._dead.pop(attempts.answered, None)
        for address in list(self._dead)[:-_MOST]:
            self._dead.pop(address, None)


def interleaved(found: Sequence[Address]) -> list[Address]:
    """`found`, each once, the families by turns. The system chooses the first family."""
    families: dict[int, list[Address]] = {}
    for address in dict.fromkeys(found):
        families.setdefault(address[0], []).append(address)
    turns = [(turn, place, address) for place, some in enumerate(families.values())
             for turn, address in enumerate(some)]  # fmt: skip
    return [address for _, _, address in sorted(turns, key=lambda one: one[:2])]


class _Attempts:
    """The attempts for one connection."""

    def __init__(self, addresses: Sequence[Address], deadline: float) -> None:
        self._waiting = list(addresses)
        self._deadline = deadline
        self._poll = select.poll()
        self._open: dict[int, tuple[socket.socket, Address, float]] = {}
        #: by the monotonic clock, when the next address is tried
        self._next = 0.0
        #: the error of the last attempt that failed
        self.problem: OSError | None = None
        #: addresses that did not answer in time
        self.silent: list[Address] = []
        self.answered: Address | None = None

    def run(self) -> socket.socket | None:
        """The first socket that is connected, None if none is in time."""
        while True:
            now = time.monotonic()
            if self._waiting and now >= self._next and (now < self._deadline or not self._open):
                self._begin(self._waiting.pop(0), now)
                continue
            if not self._open:
                return None
            end = min(self._deadline, self._next if self._waiting else math.inf)
            connected = self._answers(max(0.0, end - now))
            if connected is not None:
                return connected
            if self._open and time.monotonic() >= self._deadline:
                return None

    def _begin(self, address: Address, now: float) -> None:
        """Try `address`. The next one is due after a while, or at once if this one fails."""
        sock: socket.socket | None = None
        try:
            sock = socket.socket(address[0], socket.SOCK_STREAM)
            sock.setblocking(False)
            self._open[sock.fileno()] = sock, address, now
            code = sock.connect_ex(address[1])
        except OSError as error:  # the system does not have the address family
            code, self.problem = error.errno or errno.EIO, error
        if sock is not None and code in (0, errno.EINPROGRESS, errno.EINTR):
            self._poll.register(sock, select.POLLOUT)
            self._next = now + ATTEMPT_DELAY
            return
        self.problem = self.problem if sock is None else OSError(code, os.strerror(code))
        if sock is not None:
            self._open.pop(sock.fileno(), None)
            sock.close()

    def _answers(self, seconds: float) -> socket.socket | None:
        """Wait for an answer; the socket that is connected then, else None."""
        for fd, _ in self._poll.poll(math.ceil(seconds * 1000)):
            sock, address, _ = self._open[fd]
            code = sock.getsockopt(socket.SOL_SOCKET, socket.SO_ERROR)
            self._poll.unregister(fd)
            if code == 0:
                del self._open[fd]
                self.answered = address
                return sock
            del self._open[fd]
            sock.close()
            self.problem = OSError(code, os.strerror(code))
            if code == errno.ETIMEDOUT:
                self.silent.append(address)
            self._next = 0.0
        return None

    def close(self) -> None:
        """Close all sockets that are not connected."""
        now = time.monotonic()
        for sock, address, begun in self._open.values():
            sock.close()
            if now - begun >= ATTEMPT_DELAY:
                self.silent.append(address)
        self._open.clear()
