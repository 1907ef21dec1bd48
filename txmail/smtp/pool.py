"""Sessions kept between transactions, for any number of threads."""

from __future__ import annotations

import threading
import time
import weakref
from collections.abc import Callable

from ..common.locks import hold
from ..common.per_process import this_process
from .session import Session

#: Sessions kept, and in use at once before somebody has to wait.
POOL_SIZE = 4
#: Seconds to wait for a session before one is opened beyond the limit. A transaction that waits
#: may hold row locks which the present owner of the session needs to finish: waiting for ever
#: would be a deadlock that no database sees.
WAIT_LIMIT = 5.0
#: Seconds after which a session is not given out again: names change their addresses,
#: certificates expire, and whoever balances load behind a name wants to move us.
MAX_AGE = 3600.0
#: Messages after which it is not: some servers hang up after so many.
MAX_MESSAGES = 1000
#: Seconds of idleness after which it is not: servers hang up after five minutes
#: (RFC 5321 section 4.5.3.2.7), and what is in between may forget about it sooner.
MAX_IDLE = 240.0
#: Seconds of idleness after which it has to answer a NOOP, unless something else verifies it.
VERIFY_AFTER = 15.0
#: Seconds to wait for that.
VERIFY_TIMEOUT = 5.0
#: Seconds to wait for the answer to QUIT when the pool is closed.
QUIT_TIMEOUT = 1.0


class _Connecting:
    """One who wants a connection: it makes one, as long as this is there, or has its `session`."""

    session: Session | None = None


class Pool:
    """Keeps open sessions; the one given back last is taken first, so that it stays warm."""

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
        # Not held here: one that an exception out of the blue has ended connects no more.
        self._connectors: weakref.WeakSet[_Connecting] = weakref.WeakSet()
        self._process = this_process()

    def _lock(self) -> threading.Condition:
        """The lock of this process.

        Sessions opened before a fork belong to the parent, because two would talk on one
        connection. So does the lock: a thread of the parent may have held it at that time.
        """
        if self._process != this_process():
            self._begin()
        return self._changed

    def take(
        self, timeout: float, *, wait: bool = True, fresh: bool = False, verify: bool = True
    ) -> Session:
        """A session that is open, idle and seems alive, else a new one.

        `timeout` in seconds is for waiting and connecting together. Without `wait` a session is
        opened beyond the limit where others would wait. `fresh` uses no kept session: the caller
        has just seen one fail. `verify` has one that was idle for long answer NOOP first.

        Raises `TransportError`.
        """
        deadline = self._clock() + timeout
        me = _Connecting()
        try:
            stale = hold(self._lock(), lambda: self._kept(deadline if wait else None, fresh, me))
            for worn in stale:
                worn.quit()
            if me.session is None:
                return self._made(me, deadline)
            if not verify or self._verified(me.session, deadline):
                return me.session
        except BaseException:
            if me.session is not None:
                self.give(me.session, dirty=True)
            raise
        self.give(me.session)
        return self.take(deadline - self._clock(), wait=False, fresh=True)

    def _made(self, me: _Connecting, deadline: float) -> Session:
        try:
            session = self._connect(deadline - self._clock())
        except BaseException:
            self._connected(me, None)
            raise
        me.session = session
        session.pool = self
        session.opened_at = session.used_at = self._clock()
        self._connected(me, session)
        return session

    def _kept(self, deadline: float | None, fresh: bool, me: _Connecting) -> list[Session]:
        """Give `me` a session that is kept, if there is one; those that are not to be kept."""
        if deadline is not None:
            patience = min(WAIT_LIMIT, deadline - self._clock())
            self._changed.wait_for(self._has_room, patience)
        stale = [s for s in self._idle if self._worn(s) or not s.reusable]
        for session in stale:
            self._idle.remove(session)
        if self._idle and not fresh:
            me.session = self._idle.pop()
            self._in_use.add(me.session)
        else:
            self._connectors.add(me)
        return stale

    def _verified(self, session: Session, deadline: float) -> bool:
        now = self._clock()
        if now - session.used_at < VERIFY_AFTER:
            return True
        # Half of the time is left for a fresh one.
        return session.connection.verify(min(VERIFY_TIMEOUT, (deadline - now) / 2))

    def _worn(self, session: Session) -> bool:
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
        return len(self._connectors)

    def _connected(self, me: _Connecting, session: Session | None) -> None:
        def note() -> None:
            self._connectors.discard(me)
            if session is not None:
                self._in_use.add(session)
            else:
                self._changed.notify()

        hold(self._lock(), note)

    def give(self, session: Session, *, dirty: bool = False) -> None:
        """Take a session back, once. Never blocks on the network. See `Session.forget`."""
        if hold(self._lock(), lambda: self._given(session, dirty)):
            session.quit()

    def _given(self, session: Session, dirty: bool) -> bool:
        """True if it is not kept."""
        if session not in self._in_use:
            return False
        self._in_use.remove(session)
        session.forget(dirty=dirty)
        session.used_at = self._clock()
        keep = len(self._idle) < self._size and not self._worn(session) and session.reusable
        if keep:
            self._idle.append(session)
        self._changed.notify()
        return not keep

    def renewed(self, session: Session) -> None:
        """`session`, which is in use, has a new connection."""
        session.opened_at = self._clock()

    def close(self) -> None:
        """End all idle sessions; one in use is kept again when it is given back."""
        hold(self._lock(), self._changed.notify_all)
        sessions, self._idle = self._idle, []
        for session in sessions:
            session.quit(QUIT_TIMEOUT)
