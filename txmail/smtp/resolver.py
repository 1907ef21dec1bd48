"""Looks up the names of hosts, within the time that the caller has.

The resolver of the system takes as long as it likes, and cannot be stopped: so it runs in a thread
that is left behind when the time is over. All who ask for one name wait for the same thread, and no
more than `THREADS_LIMIT` are left behind at once.
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

#: Lookups that may hang at once, of all names: each is a thread of this process.
THREADS_LIMIT = 16
#: Seconds after which a lookup that hangs is given up for another of the same name: the resolver
#: may have been told of another server meanwhile.
HOPELESS_AFTER = 30.0
#: Seconds within which a route is tried again whose name does not resolve: a container that is
#: started again has its name back soon.
RETRY_WITHIN = 30.0

#: What `socket.connect` takes.
SocketAddress = tuple[Any, ...]
Address = tuple[socket.AddressFamily, SocketAddress]


class NameNotResolved(TransportError):
    """A host has no address now: always temporary, for names come back."""


class _Lookup:
    """One question to the resolver, in a thread of its own."""

    def __init__(self, host: str, port: int) -> None:
        self._host = host
        self._port = port
        self.begun = time.monotonic()
        self.done = threading.Event()
        self.found: list[Address] = []
        self.problem: Exception | None = None

    def run(self) -> None:
        """Ask; what comes out is in `found` or `problem`."""
        try:
            self.found = look_up(self._host, self._port)
        except Exception as error:
            self.problem = error
        finally:
            self.done.set()

    @property
    def hangs(self) -> bool:
        """True if it is not done."""
        return not self.done.is_set()


def look_up(host: str, port: int) -> list[Address]:
    """Addresses of `host`, in the order of the system; blocks. Raises what `socket` does."""
    found = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)
    return [(family, address) for family, _, _, _, address in found]


class Resolver:
    """The lookups of a process. Shared by threads; a forked child has none of its parent's."""

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
            found = self._found(host, port, timeout)
        except UnicodeError as error:
            raise TransportError(
                f"cannot resolve {host}: not a host name", temporary=False
            ) from error
        except OSError as error:
            problem = f"cannot resolve {host}: {error.strerror or error}"
            self._tell(host, problem)
            raise NameNotResolved(problem) from error
        if len(self._resolved) < 1000:
            self._resolved.add(host)
        return found

    def _found(self, host: str, port: int, timeout: float) -> list[Address]:
        if is_address(host):
            return look_up(host, port)
        lookup = self._lookup(host, port)
        if lookup is None:
            return look_up(host, port)
        if not lookup.done.wait(max(0.0, timeout)):
            problem = f"cannot resolve {host}: DNS did not answer within {timeout:.1f} s"
            self._tell(host, problem)
            raise NameNotResolved(problem)
        if lookup.problem is not None:
            raise lookup.problem
        return lookup.found

    def _lookup(self, host: str, port: int) -> _Lookup | None:
        """The lookup to wait for; None if this process, which is ending, starts no thread."""
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

    def _tell(self, host: str, problem: str) -> None:
        """A name that never was there may be a typing error: somebody should look."""
        if host not in self._resolved:
            log.error("%s; it has not resolved since this process began", problem)


def is_address(host: str) -> bool:
    """True if `host` is an IP address, with or without a zone: nobody has to be asked."""
    for family in (socket.AF_INET, socket.AF_INET6):
        try:
            socket.inet_pton(family, host.partition("%")[0])
        except (OSError, ValueError):
            continue
        return True
    return False


#: The lookups of this process: the bound on threads is for all transports.
RESOLVER = Resolver()
