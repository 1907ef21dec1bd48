"""Several connections that send together, driven from one thread.

They take envelopes from one source, each when it has room, so that a small message never waits
behind a large one while another connection is free. What a connection has not begun when it ends
goes back, and the others take it.

All or nothing needs one connection: with `strict` only the first is used, and so it is in the
preflight.
"""

from __future__ import annotations

import itertools
import math
import select
import time
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Sequence, Sized
from contextlib import ExitStack

from zope.interface import implementer

from ..envelope import Envelope
from ..exceptions import TransportError
from ..interfaces import ISession
from ..outcome import Action, Outcome, Status
from . import failure_policy
from .failure_policy import Verdict
from .progress import Progress, Source
from .session import Session
from .streaming import SHARED_OCTETS
from .transactions import ConnectionEnded


class _Shared(Source):
    """What is left to send, and what the connections have taken of it."""

    def __init__(self, envelopes: Iterable[Envelope]) -> None:
        super().__init__(envelopes)
        #: by position, envelopes that were taken and lack an outcome for some of their recipients,
        #: and the outcomes that they have
        self._open: dict[int, tuple[Envelope, dict[str, Outcome]]] = {}

    def take(self) -> tuple[int, Envelope] | None:
        """See `Source`."""
        found = self._next()
        if found is not None:
            # In this order an interrupt can have it twice, but not lose it.
            self._open[found[0]] = found[1], {}
            self._back.popleft()
        return found

    def put_back(self, position: int, envelope: Envelope) -> None:
        """See `Source`."""
        super().put_back(position, envelope)
        self._open.pop(position, None)

    def count(self, most: int) -> int:
        """How many are left, `most` if it is more. None of them is taken."""
        found = list(itertools.islice(iter(self.take, None), most))
        for position, envelope in found:
            self.put_back(position, envelope)
        return len(found)

    @property
    def returned(self) -> bool:
        """True if something was put back."""
        return bool(self._back)

    def settle(self, outcome: Outcome, known: deque[Outcome], *, again: bool) -> None:
        """Note `outcome`; if its envelope has all of them now, they go to `known`.

        If nothing was sent of the envelope and it may go `again`, it is put back instead. An
        interrupt can have the same outcome come twice, and be in `known` twice, but not be lost.
        """
        found = self._open.get(outcome.position)
        if found is None:
            return
        envelope, outcomes = found
        outcomes[outcome.recipient] = outcome
        if len(outcomes) < len(envelope.recipients):
            return
        if again and all(map(_goes_on, outcomes.values())):
            self.put_back(outcome.position, envelope)
        else:
            known.extend(outcomes.values())
            del self._open[outcome.position]

    def left(self, *, taken_only: bool) -> Iterator[tuple[int, Envelope, Verdict]]:
        """What nobody is going to send any more, and what is to be said of it: see `forget`.

        That is `rest` and, before that, what an interrupt has cut off from its connection: nobody
        knows how far that was.
        """
        for position, _ in self._back:
            self.forget(position)
        while self._open:
            position, (envelope, _) = next(iter(self._open.items()))
            yield position, envelope, failure_policy.IN_DOUBT
        for position, envelope in self.rest(taken_only=taken_only):
            yield position, envelope, failure_policy.UNSENT

    def forget(self, position: int) -> None:
        """All is said about this one."""
        self._open.pop(position, None)


def _goes_on(outcome: Outcome) -> bool:
    """True if another connection may do better, by what is known of this one."""
    return outcome.status is Status.UNSENT and outcome.action is not Action.STOP_ROUTE


class _Lane:
    """One session at work, as far as the source goes."""

    def __init__(
        self, session: Session, source: _Shared, window: int | None, *, keep_untaken: bool
    ) -> None:
        self.session = session
        self.driver = session.driver
        self.sending = session.begin(
            source, window=window, keep_untaken=keep_untaken, octets=SHARED_OCTETS
        )
        self._conversation = self.sending.conversation()
        self._begun = False
        self.over = False
        #: why the connection has ended, if it has
        self.error: TransportError | None = None

    @property
    def ready(self) -> bool:
        """True if it can go on."""
        return not self.over and (not self._begun or self.driver.ready)

    @property
    def usable(self) -> bool:
        """True if more can be sent on its connection."""
        return not self.session.closed and not self.sending.tired

    def go_on(self) -> None:
        """Go on until something has to come, or to the end. Nothing is written here."""
        try:
            if not self._begun:
                self._begun = True
                self.session.check()
            next(self._conversation)
        except StopIteration:
            self.session.ended(self.sending)
            self.over = True
        except TransportError as error:
            self._failed(error)
        else:
            self.driver.expect()

    def wake(self, events: int) -> None:
        """There is something to read or, without `events`, time is up."""
        try:
            if events & ~select.POLLOUT:
                self.driver.receive()
            elif not events:
                self.driver.give_up()
        except ConnectionEnded as ended:
            try:
                self._conversation.throw(ended)
            except TransportError as error:
                self._failed(error)

    def _failed(self, error: TransportError) -> None:
        # In this order: an interrupt in between must find it at work, and end it.
        self.session.failed(self.sending, error)
        self.over, self.error = True, error

    def interrupt(self) -> None:
        """Let nothing more leave."""
        if not self.over:
            self.session.interrupted(self.sending)
            self.over = True


class _Waiting:
    """Waits for several lanes at once."""

    def __init__(self) -> None:
        self._poll = select.poll()
        self._known: dict[int, tuple[_Lane, int]] = {}

    def wait(self, lanes: Sequence[_Lane]) -> list[tuple[_Lane, int]]:
        """The lanes that something has happened to, and what; nothing to those whose time is up."""
        left = tick = math.inf
        happened: dict[_Lane, int] = {}
        for lane in lanes:
            lane.driver.stream.acknowledge()
            writing, seconds = lane.driver.interest()
            left = min(left, seconds)
            tick = min(tick, lane.driver.tick)
            self._register(lane, select.POLLIN | (select.POLLOUT if writing else 0))
            if lane.driver.stream.buffered:
                happened[lane] = select.POLLIN
        for fd, events in self._poll.poll(0 if happened else min(left, tick) * 1000):
            lane = self._known[fd][0]
            happened[lane] = happened.get(lane, 0) | events
        if left == 0 or not happened:
            late = [lane for lane in lanes if lane not in happened and not lane.driver.left]
            happened.update(dict.fromkeys(late, 0))
        if not happened and not any(lane.driver.carries_content for lane in lanes):
            lanes[0].driver.rest()
        return list(happened.items())

    def _register(self, lane: _Lane, interest: int) -> None:
        fd = lane.driver.stream.fileno()
        if self._known.get(fd) != (lane, interest):
            self._poll.register(fd, interest)
            self._known[fd] = lane, interest

    def forget(self, lane: _Lane) -> None:
        """Do not wait for `lane` any more, whose socket may be closed."""
        for fd in [fd for fd, (known, _) in self._known.items() if known is lane]:
            del self._known[fd]
            self._poll.unregister(fd)


@implementer(ISession)
class SessionGroup:
    """Several sessions as one. See `ISession`."""

    def __init__(
        self, first: Session, size: int, more: Callable[[int, float | None], Sequence[Session]]
    ) -> None:
        """Of `size` sessions, `more` opens those that are needed beside the `first`.

        It gets their number and seconds, and returns fewer if that is all there can be.
        """
        self._first = first
        self._sessions = [first]
        self._size = size
        self._more = more
        #: of the last `send`: whether the first did it alone
        self._alone = True
        self._keep_untaken = False
        self._lanes: list[_Lane] = []
        self._source = _Shared(())
        self._known: deque[Outcome] = deque()

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
        self._lanes, self._known = [], deque()
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
        self._source = _Shared(envelopes)
        return self._sent(count, window, timeout, guard)

    def _sent(
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
                # Not all on the first connection while the others have nothing to do.
                share = max(1, math.ceil(count / len(self._sessions)))
                window = min(self._first.window(window), share)
            with ExitStack() as stack:
                left = None if deadline is None else deadline - time.monotonic()
                for session in self._sessions:
                    stack.enter_context(session.bounded(left, guard))
                yield from self._work(window)
            for _ in self._settle_rest():
                yield from self._handed_out()
            yield from self._handed_out()
        except BaseException:
            self._interrupt()
            raise

    def _open(self, timeout: float | None) -> None:
        """Have as many sessions as there is work for."""
        gone = [s for s in self._sessions if s.closed and s is not self._first]
        self._sessions = [s for s in self._sessions if s not in gone]
        for session in gone:
            session.close()
        missing = self._source.count(self._size) - len(self._sessions)
        if missing > 0:
            self._sessions += self._more(missing, timeout)

    def _work(self, window: int | None) -> Iterator[Outcome]:
        """Have all sessions work until nothing is left to do, or none is left to do it."""
        waiting = _Waiting()
        self._lanes = [self._lane(session, window) for session in self._sessions]
        while working := self._working(window):
            for lane in working:
                if lane.ready:
                    lane.go_on()
                    self._collect(lane)
            # First: a caller who has seen enough must not find that more has left.
            yield from self._handed_out()
            for lane in working:
                if lane.over:
                    waiting.forget(lane)
                else:
                    lane.driver.write()
            still = [lane for lane in self._lanes if not lane.over]
            if still and not any(lane.ready for lane in still):
                for lane, events in waiting.wait(still):
                    lane.wake(events)
                    if lane.over:
                        waiting.forget(lane)
                        self._collect(lane)

    def _lane(self, session: Session, window: int | None) -> _Lane:
        return _Lane(session, self._source, window, keep_untaken=self._keep_untaken)

    def _working(self, window: int | None) -> list[_Lane]:
        """Those that are at work; those too that had no more to do, if something was put back."""
        if self._source.returned:
            for index, lane in enumerate(self._lanes):
                if lane.over and lane.usable:
                    self._lanes[index] = self._lane(lane.session, window)
        return [lane for lane in self._lanes if not lane.over]

    def _collect(self, lane: _Lane) -> None:
        """Note the outcomes of `lane`."""
        again = any(other.usable for other in self._lanes)
        ready = lane.sending.ready
        while ready:
            self._source.settle(ready[0], self._known, again=again)
            ready.popleft()

    def _settle_rest(self) -> Iterator[None]:
        """What nobody is left for goes to `_known`, one envelope at a time."""
        error = next((lane.error for lane in self._lanes if lane.error is not None), None)
        reason = str(error) if error is not None else "nothing of it was sent"
        for position, envelope, verdict in self._source.left(taken_only=self._keep_untaken):
            progress = Progress(position, envelope, preflighted=False)
            progress.settle_rest(verdict, error.reply if error else None, reason)
            self._known.extend([o for o in progress.outcomes if o is not None])
            self._source.forget(position)
            yield

    def _interrupt(self) -> None:
        for lane in self._lanes:
            lane.interrupt()
            self._collect(lane)
        for _ in self._settle_rest():
            pass

    def _handed_out(self) -> Iterator[Outcome]:
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
