"""Keeps sessions open between transactions, for any number of threads."""

from __future__ import annotations

import threading
import time
import weakref
from collections.abc import Callable

from ..common.locks import hold
from ..common.per_process import this_process
from .session import Session

#: Sessions that are kept, and that are in use at once before another thread has to wait.
POOL_SIZE = 4
#: Seconds to wait for a session before the pool opens one beyond the limit. A transaction that
#: waits may hold row locks which the user of the session needs to finish: to wait for ever would be
#: a deadlock that no database sees.
WAIT_LIMIT = 5.0
#: Seconds after which a session is retired: names change their addresses, certificates expire, and
#: a load balancer may want to move the client to another server.
MAX_AGE = 3600.0
#: Messages after which a session is retired: some servers hang up after so many.
MAX_MESSAGES = 1000
#: Seconds of idleness after which a session is retired: servers hang up after five minutes
#: (RFC 5321 section 4.5.3.2.7), and a firewall in between may forget the connection sooner.
MAX_IDLE = 240.0
#: Seconds of idleness after which the server has to answer a NOOP before a session is used.
VERIFY_AFTER = 15.0
#: Seconds to wait for the answer to that NOOP.
VERIFY_TIMEOUT = 5.0
#: Seconds to wait for the answer to QUIT when the pool is closed.
QUIT_TIMEOUT = 1.0


class _Request:
    """One call of `Pool.take`: it opens a connection, or has its `session` already."""

    session: Session | None = None


class Pool:
    """Keeps open sessions. The one given back last is taken first, so that it stays warm."""

    def __init__(
        self,
        connect: Callable[[float], Session],
        size: int = POOL_SIZE,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        """`connect` opens a session within so many seconds, or raises `TransportError`."""
        self._connect = connect
        self._size = size
        self._clock = clock
        self._begin()

    def _begin(self) -> None:
        self._changed = threading.Condition()
        self._idle: list[Session] = []
        self._in_use: set[Session] = set()
        # Weak, so that a call which an exception has ended does not count for ever.
        self._requests: weakref.WeakSet[_Request] = weakref.WeakSet()
        self._process = this_process()

    def _lock(self) -> threading.Condition:
        """The lock of this process.

        Sessions opened before a fork belong to the parent: two processes must not talk on one
        connection. The lock belongs to the parent, too: a thread of it may have held it at the
        fork.
        """
        if self._process != this_process():
            self._begin()
        return self._changed

    def take(
        self, timeout: float, *, wait: bool = True, fresh: bool = False, verify: bool = True
    ) -> Session:
        """A kept session that seems alive, else a new one.

        `timeout` is in seconds, for waiting and connecting together. Without `wait` the pool opens
        a session beyond the limit at once. With `fresh` it uses no kept session: the caller has
        just seen one fail. With `verify` the server has to answer NOOP on a session that was idle
        for long.

        Raises `TransportError`.
        """
        deadline = self._clock() + timeout
        request = _Request()
        try:
            stale = hold(
                self._lock(), lambda: self._take_kept(deadline if wait else None, fresh, request)
            )
            for worn in stale:
                worn.quit()
            if request.session is None:
                return self._open_new(request, deadline)
            if not verify or self._verify(request.session, deadline):
                return request.session
        except BaseException:
            if request.session is not None:
                self.give(request.session, dirty=True)
            raise
        self.give(request.session)
        return self.take(deadline - self._clock(), wait=False, fresh=True)

    def _open_new(self, request: _Request, deadline: float) -> Session:
        try:
            session = self._connect(deadline - self._clock())
        except BaseException:
            self._end_request(request, None)
            raise
        request.session = session
        session.pool = self
        session.opened_at = session.used_at = self._clock()
        self._end_request(request, session)
        return session

    def _take_kept(self, deadline: float | None, fresh: bool, request: _Request) -> list[Session]:
        """Give `request` a kept session, if there is one. Returns the sessions to close."""
        if deadline is not None:
            patience = min(WAIT_LIMIT, deadline - self._clock())
            self._changed.wait_for(self._has_room, patience)
        stale = [s for s in self._idle if self._is_worn(s) or not s.reusable]
        for session in stale:
            self._idle.remove(session)
        if self._idle and not fresh:
            request.session = self._idle.pop()
            self._in_use.add(request.session)
        else:
            self._requests.add(request)
        return stale

    def _verify(self, session: Session, deadline: float) -> bool:
        now = self._clock()
        if now - session.used_at < VERIFY_AFTER:
            return True
        # Half of the time is left for a fresh session.
        return session.connection.verify(min(VERIFY_TIMEOUT, (deadline - now) / 2))

    def _is_worn(self, session: Session) -> bool:
        now = self._clock()
        return (
            now - session.opened_at > MAX_AGE
            or now - session.used_at > MAX_IDLE
            or session.connection.messages >= (session.options.messages or MAX_MESSAGES)
        )

    def _has_room(self) -> bool:
        return len(self._in_use) + self._connecting < self._size

    @property
    def _connecting(self) -> int:
        return len(self._requests)

    def _end_request(self, request: _Request, session: Session | None) -> None:
        def note() -> None:
            self._requests.discard(request)
            if session is not None:
                self._in_use.add(session)
            else:
                self._changed.notify()

        hold(self._lock(), note)

    def give(self, session: Session, *, dirty: bool = False) -> None:
        """Take a session back, once. Never blocks on the network. See `Session.forget`."""
        if hold(self._lock(), lambda: self._take_back(session, dirty)):
            session.quit()

    def _take_back(self, session: Session, dirty: bool) -> bool:
        """Take `session` back; True if it is not kept, and has to be closed."""
        if session not in self._in_use:
            return False
        self._in_use.remove(session)
        session.forget(dirty=dirty)
        session.used_at = self._clock()
        keep = len(self._idle) < self._size and not self._is_worn(session) and session.reusable
        if keep:
            self._idle.append(session)
        self._changed.notify()
        return not keep

    def renewed(self, session: Session) -> None:
        """Note that `session`, which is in use, has a new connection."""
        session.opened_at = self._clock()

    def close(self) -> None:
        """Close all idle sessions. A session in use is kept again when it is given back."""
        hold(self._lock(), self._changed.notify_all)
        sessions, self._idle = self._idle, []
        for session in sessions:
            session.quit(QUIT_TIMEOUT)
