"""Sends over several connections at once, from one thread.

The connections take envelopes from one source, each when it has room, so that a small message never
waits behind a large one while another connection is free. When a connection ends, the others take
what it has not begun.

All or nothing needs one connection: a `strict` call, and the preflight, use the first one only.
"""

from __future__ import annotations

import math
import time
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Sequence, Sized
from contextlib import ExitStack

from zope.interface import implementer

from ..envelope import Envelope
from ..interfaces import ISession
from ..outcome import Outcome
from .progress import Progress
from .session import Session
from .session_poll import SessionPoll
from .session_run import SessionRun
from .shared_evidence import SharedEvidence
from .shared_source import SharedSource


@implementer(ISession)
class SessionGroup:
    """Several sessions as one. See `ISession`."""

    def __init__(
        self, first: Session, size: int, more: Callable[[int, float | None], Sequence[Session]]
    ) -> None:
        """`more` opens the sessions beside the `first`, up to `size` in all.

        It gets their number and a time limit in seconds, and returns fewer if the server takes no
        more.
        """
        self._first = first
        self._sessions = [first]
        self._size = size
        self._more = more
        #: True if the first session did the last `send` alone
        self._alone = True
        self._keep_untaken = False
        self._runs: list[SessionRun] = []
        self._source = SharedSource(())
        self._known: deque[Outcome] = deque()

    @property
    def evidence(self) -> SharedEvidence:
        """See `Session.evidence`."""
        return self._first.evidence

    @property
    def host(self) -> str:
        """See `ISession`."""
        return self._first.host

    @property
    def fresh(self) -> bool:
        """See `ISession`."""
        return self._first.fresh

    @property
    def restartable(self) -> bool:
        """See `ISession`."""
        return self._alone and self._first.restartable

    def preflight(
        self,
        envelopes: Sequence[Envelope],
        *,
        always: bool = False,
        keep_open: bool = True,
        timeout: float | None = None,
    ) -> list[Outcome]:
        """See `ISession`: on the first connection."""
        return self._first.preflight(envelopes, always=always, keep_open=keep_open, timeout=timeout)

    def send(
        self,
        envelopes: Iterable[Envelope],
        *,
        strict: bool = False,
        timeout: float | None = None,
        window: int | None = None,
        keep_untaken: bool = False,
        guard: Callable[[], object] | None = None,
    ) -> Iterator[Outcome]:
        """See `ISession`."""
        self._alone, self._keep_untaken = strict, keep_untaken
        self._runs, self._known = [], deque()
        if strict:
            return self._first.send(
                envelopes,
                strict=True,
                timeout=timeout,
                window=window,
                keep_untaken=keep_untaken,
                guard=guard,
            )
        count = len(envelopes) if isinstance(envelopes, Sized) else None
        self._source = SharedSource(envelopes)
        return self._send(count, window, timeout, guard)

    def _send(
        self,
        count: int | None,
        window: int | None,
        timeout: float | None,
        guard: Callable[[], object] | None,
    ) -> Iterator[Outcome]:
        deadline = None if timeout is None else time.monotonic() + timeout
        try:
            self._open(timeout)
            if count is not None:
                # The first connection must not take all while the others have nothing to do.
                share = max(1, math.ceil(count / len(self._sessions)))
                window = min(self._first.window(window), share)
            with ExitStack() as stack:
                left = None if deadline is None else deadline - time.monotonic()
                for session in self._sessions:
                    stack.enter_context(session.connection.bounded(left, guard))
                yield from self._work(window)
            for _ in self._settle_rest():
                yield from self._hand_out()
            yield from self._hand_out()
        except BaseException:
            self._interrupt()
            raise

    def _open(self, timeout: float | None) -> None:
        """Open as many sessions as there are envelopes for."""
        gone = [s for s in self._sessions if s.closed and s is not self._first]
        self._sessions = [s for s in self._sessions if s not in gone]
        for session in gone:
            session.close()
        missing = self._source.count(self._size) - len(self._sessions)
        if missing > 0:
            self._sessions += self._more(missing, timeout)

    def _work(self, window: int | None) -> Iterator[Outcome]:
        """Run all sessions until nothing is left to send, or no session is left."""
        poll = SessionPoll()
        self._runs = [self._new_run(session, window) for session in self._sessions]
        while working := self._runs_at_work(window):
            for run in working:
                if run.ready:
                    run.advance()
                    self._collect(run)
            # First: a caller who has seen enough must not find that more has left.
            yield from self._hand_out()
            for run in working:
                if run.over:
                    poll.forget(run)
                else:
                    run.driver.write()
            still = [run for run in self._runs if not run.over]
            if still and not any(run.ready for run in still):
                for run, events in poll.wait(still):
                    run.wake(events)
                    if run.over:
                        poll.forget(run)
                        self._collect(run)

    def _new_run(self, session: Session, window: int | None) -> SessionRun:
        return SessionRun(session, self._source, window, keep_untaken=self._keep_untaken)

    def _runs_at_work(self, window: int | None) -> list[SessionRun]:
        """The runs at work. Restart a finished one if an envelope was put back."""
        if self._source.returned:
            for index, run in enumerate(self._runs):
                if run.over and run.usable:
                    self._runs[index] = self._new_run(run.session, window)
        return [run for run in self._runs if not run.over]

    def _collect(self, run: SessionRun) -> None:
        """Note the outcomes of `run`."""
        again = any(other.usable for other in self._runs)
        ready = run.sending.ready
        while ready:
            self._source.settle(ready[0], self._known, again=again)
            ready.popleft()

    def _settle_rest(self) -> Iterator[None]:
        """Settle what no session is left for, one envelope at a time."""
        error = next((run.error for run in self._runs if run.error is not None), None)
        reason = str(error) if error is not None else "nothing of it was sent"
        for position, envelope, verdict in self._source.left(taken_only=self._keep_untaken):
            progress = Progress(position, envelope, preflighted=False)
            progress.settle_rest(verdict, error.reply if error else None, reason)
            self._known.extend([o for o in progress.outcomes if o is not None])
            self._source.forget(position)
            yield

    def _interrupt(self) -> None:
        for run in self._runs:
            run.interrupt()
            self._collect(run)
        for _ in self._settle_rest():
            pass

    def _hand_out(self) -> Iterator[Outcome]:
        while self._known:
            yield self._known[0]
            self._known.popleft()

    def unsettled(self) -> list[Outcome]:
        """See `ISession`."""
        return self._first.unsettled() if self._alone else list(self._known)

    def close(self, *, dirty: bool = False) -> None:
        """See `ISession`."""
        sessions, self._sessions = self._sessions, [self._first]
        for session in sessions:
            session.close(dirty=dirty)
