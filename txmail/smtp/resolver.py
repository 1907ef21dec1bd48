"""Looks up the addresses of hosts, within a time limit.

The resolver of the system has no time limit and cannot be stopped. So a thread calls it, and the
caller leaves the thread behind when the time is over. All callers that ask for one name wait for
the same thread, and `THREADS_LIMIT` bounds the threads that hang at once.

This is one of three files that use the `socket` module: it opens no socket.
"""

from __future__ import annotations

import socket
import threading
import time
from typing import Any

from ..common.logs import quiet_logger
from ..common.per_process import this_process
from ..exceptions import TransportError

log = quiet_logger("txmail")

#: Lookups that may hang at once, of all names. Each is a thread of this process.
THREADS_LIMIT = 16
#: Seconds after which another lookup of the same name is started beside one that hangs: the system
#: may use another name server meanwhile.
HOPELESS_AFTER = 30.0
#: Seconds within which to try a route again whose name does not resolve: a container that restarts
#: has its name back soon.
RETRY_WITHIN = 30.0

#: What `socket.connect` takes.
SocketAddress = tuple[Any, ...]
Address = tuple[socket.AddressFamily, SocketAddress]


class NameNotResolved(TransportError):
    """A host has no address now. Always temporary, because names come back."""


class _Lookup:
    """One call of the system's resolver, in a thread of its own."""

    def __init__(self, host: str, port: int) -> None:
        self._host = host
        self._port = port
        self.begun = time.monotonic()
        self.done = threading.Event()
        self.found: list[Address] = []
        self.problem: Exception | None = None

    def run(self) -> None:
        """Ask, and put the answer into `found` or `problem`."""
        try:
            self.found = look_up(self._host, self._port)
        except Exception as error:
            self.problem = error
        finally:
            self.done.set()

    @property
    def hangs(self) -> bool:
        """True while it has no answer."""
        return not self.done.is_set()


def look_up(host: str, port: int) -> list[Address]:
    """Addresses of `host`, in the order of the system; blocks. Raises what `socket` does."""
    found = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)
    return [(family, address) for family, _, _, _, address in found]


class Resolver:
    """The lookups of a process. Threads share it; a forked child begins with none."""

    def __init__(self) -> None:
        self._begin()

    def _begin(self) -> None:
        self._process = this_process()
        self._lock = threading.Lock()
        self._lookups: list[tuple[tuple[str, int], _Lookup]] = []
        self._resolved: set[str] = set()

    def resolve(self, host: str, port: int, timeout: float) -> list[Address]:
        """The addresses of `host`, within `timeout` seconds. Raises `TransportError`."""
        if self._process != this_process():
            self._begin()
        try:
            found = self._look_up(host, port, timeout)
        except UnicodeError as error:
            raise TransportError(
                f"cannot resolve {host}: not a host name", temporary=False
            ) from error
        except OSError as error:
            problem = f"cannot resolve {host}: {error.strerror or error}"
            self._log_problem(host, problem)
            raise NameNotResolved(problem) from error
        if len(self._resolved) < 1000:
            self._resolved.add(host)
        return found

    def _look_up(self, host: str, port: int, timeout: float) -> list[Address]:
        if is_address(host):
            return look_up(host, port)
        lookup = self._lookup_for(host, port)
        if lookup is None:
            return look_up(host, port)
        if not lookup.done.wait(max(0.0, timeout)):
            problem = f"cannot resolve {host}: DNS did not answer within {timeout:.1f} s"
            self._log_problem(host, problem)
            raise NameNotResolved(problem)
        if lookup.problem is not None:
            raise lookup.problem
        return lookup.found

    def _lookup_for(self, host: str, port: int) -> _Lookup | None:
        """The lookup to wait for; None if this process is ending and starts no thread."""
        key, now = (host, port), time.monotonic()
        with self._lock:
            self._lookups = [known for known in self._lookups if known[1].hangs]
            for asked, lookup in self._lookups:
                if asked == key and now - lookup.begun < HOPELESS_AFTER:
                    return lookup
            if len(self._lookups) >= THREADS_LIMIT:
                raise NameNotResolved(
                    f"cannot resolve {host}: DNS does not answer, and {THREADS_LIMIT} lookups hang"
                )
            lookup = _Lookup(host, port)
            thread = threading.Thread(target=lookup.run, name="txmail-resolver", daemon=True)
            try:
                thread.start()
            except RuntimeError:
                return None
            self._lookups.append((key, lookup))
            return lookup

    def _log_problem(self, host: str, problem: str) -> None:
        """Log a name that never resolved as an error: it may be a typing error."""
        if host not in self._resolved:
            log.error("%s; it has not resolved since this process began", problem)


def is_address(host: str) -> bool:
    """True if `host` is an IP address, with or without a zone: it needs no lookup."""
    for family in (socket.AF_INET, socket.AF_INET6):
        try:
            socket.inet_pton(family, host.partition("%")[0])
        except (OSError, ValueError):
            continue
        return True
    return False


#: The lookups of this process. All transports share the limit on threads.
RESOLVER = Resolver()
