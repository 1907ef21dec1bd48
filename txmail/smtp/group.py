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
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Sequence, Sized
from contextlib import ExitStack

from zope.interface import implementer

from ..envelope import Envelope, Outcome, Status
from ..exceptions import TransportError
from ..interfaces import ISession
from . import trouble
from .progress import Progress, Source
from .session import Session
from .streaming import SHARED_OCTETS
from .transactions import ConnectionEnded


class _Shared(Source):
    """What is left to send, and what the connections have taken of it."""

    def __init__(self, envelopes: Iterable[Envelope]) -> None:
        super().__init__(envelopes)
        #: envelopes that were taken and have no outcome for each recipient, by position
        self.open: dict[int, tuple[Envelope, list[Outcome]]] = {}

    def take(self) -> tuple[int, Envelope] | None:
        """See `Source`."""
        found = super().take()
        if found is not None:
            self.open[found[0]] = found[1], []
        return found

    def put_back(self, position: int, envelope: Envelope) -> None:
        """See `Source`."""
        super().put_back(position, envelope)
        self.open.pop(position, None)

    @property
    def returned(self) -> bool:
        """True if something was put back."""
        return bool(self._back)

    def settle(self, outcome: Outcome, *, again: bool) -> list[Outcome]:
        """Note `outcome`; the outcomes of its envelope if it was the last of them.

        If nothing was sent of the envelope and it may go `again`, it is put back instead.
        """
        known = self.open.get(outcome.position)
        if known is None:
            return []  # said twice, around an interrupt
        envelope, outcomes = known
        outcomes.append(outcome)
        if len(outcomes) < len(envelope.recipients):
            return []
        del self.open[outcome.position]
        if again and all(o.status is Status.UNSENT for o in outcomes):
            self.put_back(outcome.position, envelope)
            return []
        return outcomes


class _Lane:
    """One session at work, as far as the source goes."""

    def __init__(self, session: Session, source: _Shared, window: int | None) -> None:
        self.session = session
        self.driver = session.driver
        self.sending = session.begin(source, window=window, octets=SHARED_OCTETS)
        self._conversation = self.sending.conversation()
        self._begun = False
        self.over = False
        #: why the connection has ended, if it has
        self.error: TransportError | None = None

    @property
    def ready(self) -> bool:
        """True if it can go on."""
        return not self.over and (not self._begun or self.driver.ready)

    def go_on(self) -> None:
        """Go on until something has to come, or to the end. Nothing is written here."""
        try:
            if not self._begun:
                self._begun = True
                self.session.check()
            next(self._conversation)
        except StopIteration:
            self.over = True
            self.session.ended(self.sending)
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
        self.over, self.error = True, error
        self.session.failed(self.sending, error)

    def interrupt(self) -> None:
        """Let nothing more leave."""
        if not self.over:
            self.over = True
            self.session.interrupted(self.sending)


class _Waiting:
    """Waits for several lanes at once."""

    def __init__(self) -> None:
        self._poll = select.poll()
        self._known: dict[int, tuple[_Lane, int]] = {}

    def wait(self, lanes: Sequence[_Lane]) -> list[tuple[_Lane, int]]:
        """The lanes that something has happened to, and what; nothing if time is up."""
        left = math.inf
        found = []
        for lane in lanes:
            writing, seconds = lane.driver.interest()
            left = min(left, seconds)
            self._register(lane, select.POLLIN | (select.POLLOUT if writing else 0))
            if lane.driver.stream.buffered:
                found.append((lane, select.POLLIN))
        happened = dict(self._poll.poll(0 if found else left * 1000))
        found += [(self._known[fd][0], events) for fd, events in happened.items()]
        return found or [(lane, 0) for lane in lanes if not lane.driver.left]

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

    def __init__(self, first: Session, size: int, more: Callable[[int], Sequence[Session]]) -> None:
        """Of `size` sessions, `more` opens those that are needed beside the `first`.

        It returns fewer if that is all there can be.
        """
        self._first = first
        self._sessions = [first]
        self._size = size
        self._more = more
        self._lanes: list[_Lane] = []
        self._source = _Shared(())
        self._known: deque[Outcome] = deque()
        self._leave = False

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
        return not self._lanes and self._first.restartable

    def preflight(
        self,
        envelopes: Sequence[Envelope],
        *,
        always: bool = False,
        stage: bool = True,
        timeout: float | None = None,
    ) -> list[Outcome]:
        """See `ISession`: on the first connection."""
        return self._first.preflight(envelopes, always=always, stage=stage, timeout=timeout)

    def send(
        self,
        envelopes: Iterable[Envelope],
        *,
        strict: bool = False,
        timeout: float | None = None,
        window: int | None = None,
        leave: bool = False,
    ) -> Iterator[Outcome]:
        """See `ISession`."""
        self._lanes = []
        if strict:
            return self._first.send(
                envelopes, strict=True, timeout=timeout, window=window, leave=leave
            )
        count = len(envelopes) if isinstance(envelopes, Sized) else None
        rest = iter(envelopes)
        head = list(itertools.islice(rest, self._size))
        self._source = _Shared(itertools.chain(head, rest))
        self._open(len(head))
        if count is not None:
            # Not all on the first connection while the others have nothing to do.
            window = self._first.window(window)
            window = max(1, min(window, math.ceil(count / len(self._sessions))))
        self._leave = leave
        return self._sent(window, timeout)

    def _open(self, wanted: int) -> None:
        self._sessions = [s for s in self._sessions if s is self._first or not s.closed]
        missing = wanted - len(self._sessions)
        if missing > 0:
            self._sessions += self._more(missing)

    def _sent(self, window: int | None, timeout: float | None) -> Iterator[Outcome]:
        with ExitStack() as stack:
            for session in self._sessions:
                stack.enter_context(session.bounded(timeout))
            try:
                yield from self._work(window)
            except BaseException:
                self._interrupt()
                raise
        self._settle_rest()
        yield from self._handed_out()

    def _work(self, window: int | None) -> Iterator[Outcome]:
        """Have all sessions work until nothing is left to do, or none is left to do it."""
        waiting = _Waiting()
        self._lanes = [_Lane(session, self._source, window) for session in self._sessions]
        while working := [lane for lane in self._lanes if not lane.over]:
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
            if self._source.returned:
                self._employ(window)
            still = [lane for lane in self._lanes if not lane.over]
            if still and not any(lane.ready for lane in still):
                for lane, events in waiting.wait(still):
                    lane.wake(events)
                    if lane.over:
                        waiting.forget(lane)
                        self._collect(lane)

    def _employ(self, window: int | None) -> None:
        """Have those work again that had nothing to do any more: something was put back."""
        for index, lane in enumerate(self._lanes):
            if lane.over and not lane.session.closed:
                self._lanes[index] = _Lane(lane.session, self._source, window)

    def _collect(self, lane: _Lane) -> None:
        """Note the outcomes of `lane`."""
        again = any(not other.session.closed for other in self._lanes)
        ready = lane.sending.ready
        while ready:
            self._known += self._source.settle(ready[0], again=again)
            ready.popleft()

    def _settle_rest(self) -> None:
        """What nobody is left for is unsent."""
        error = next((lane.error for lane in self._lanes if lane.error is not None), None)
        reason = str(error) if error is not None else "nothing of it was sent"
        for position, envelope in self._source.rest(taken_only=self._leave):
            progress = Progress(position, envelope, preflighted=False)
            progress.settle_rest(trouble.UNSENT, error.reply if error else None, reason)
            self._known += [o for o in progress.outcomes if o is not None]

    def _interrupt(self) -> None:
        for lane in self._lanes:
            lane.interrupt()
            self._collect(lane)
        self._settle_rest()

    def _handed_out(self) -> Iterator[Outcome]:
        while self._known:
            yield self._known[0]
            self._known.popleft()

    def unsettled(self) -> list[Outcome]:
        """See `ISession`."""
        return list(self._known) if self._lanes else self._first.unsettled()

    def close(self, *, dirty: bool = False) -> None:
        """See `ISession`."""
        for session in self._sessions:
            session.close(dirty=dirty)
