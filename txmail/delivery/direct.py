"""Direct delivery: a commit hands its envelopes to the next hop itself, over one connection.

A mailer has a `DirectDelivery`; a `DirectRun` is its part in one transaction. Both know
`ITransport`, `ISession` and `IQueue` only. With a queue, what cannot be sent goes on from there.
"""

from __future__ import annotations

import copy
import threading
import weakref
from collections.abc import Generator, Iterator, Sequence
from dataclasses import dataclass
from typing import Any, Self, SupportsIndex

from zope.interface import implementer

from ..address import plain_text
from ..budget import COMMIT_TIMEOUT, Budget
from ..common.process_wide import is_of_a_database, the_one_like
from ..common.transaction_internals import in_two_phase_commit
from ..envelope import Envelope
from ..events import Connected, ConnectionLost, Events
from ..exceptions import ConfigurationError, TransportError
from ..interfaces import IDeliveryMethod, IDeliveryRun, IQueue, ISession, ITransport
from ..outcome import Action, Outcome, Status
from ..smtp.shared_evidence import JudgedOutcomes, SharedEvidence
from ..submission import StagedSubmission, Submission
from .implied_outcomes import all_or_nothing, left_to_queue, unreachable
from .queued import QueuedDelivery, check_timeout, placed, waiting
from .report import by_submission

#: ``auto`` asks the server about as much as it allows; ``always`` refuses to send what the server
#: was not asked about; ``never`` asks nothing before it sends.
PREFLIGHT = ("auto", "always", "never")
#: What a commit does with mail that it could not send itself: it aborts, or leaves it to the queue.
ABORT, QUEUE = "abort", "queue"
#: The part of `commit_timeout` that a silent mail server leaves to the queue.
QUEUE_SHARE = 0.2
#: How many messages may wait for an answer in a vote that does not stop at the first failure.
QUEUE_WINDOW = 64


class _Holding(threading.local):
    """The runs of one thread that may have a connection."""

    def __init__(self) -> None:
        self.runs: weakref.WeakSet[DirectRun] = weakref.WeakSet()

    def any_but(self, run: DirectRun) -> bool:
        """True if one of them has, other than `run`."""
        return any(other is not run and other.connected for other in self.runs)


_holding = _Holding()


@implementer(IDeliveryMethod)
class DirectDelivery:
    """Sends at commit: all, or nothing, or the queue has the rest. See `IDeliveryMethod`."""

    #: see `IDeliveryMethod`
    is_missed_unsent = True

    def __init__(
        self,
        transport: ITransport,
        *,
        events: Events | None = None,
        preflight: str = "auto",
        transient: bool = False,
        commit_timeout: float = COMMIT_TIMEOUT,
        queue: IQueue | None = None,
        on_unavailable: str | None = None,
        on_partial: str | None = None,
    ) -> None:
        """Raises `ConfigurationError` for an option that is wrong.

        `preflight` is one of `PREFLIGHT`; `commit_timeout` is in seconds of our own time, with the
        network and the queue, for one transaction; with `transient`, temporary errors are raised
        as `TransientError` too.

        `on_unavailable` says what becomes of a transaction whose mail cannot be sent now, when
        nothing is out; `on_partial`, of one of which something is out or may be. ``abort`` has it
        fail, with ``queue`` it commits and the queue has the rest. With a `queue` both are
        ``queue`` unless said otherwise, and every envelope is written to it before it is sent, so
        that it is not lost if the process dies.
        """
        if not ITransport.providedBy(transport):
            raise ConfigurationError("an ITransport is needed", field="transport", value=transport)
        preflight = plain_text(preflight)
        if preflight not in PREFLIGHT:
            raise ConfigurationError(
                f"one of {', '.join(PREFLIGHT)} is needed", field="preflight", value=preflight
            )
        check_timeout(commit_timeout)
        self.on_unavailable = _on("on_unavailable", on_unavailable, queue)
        self.on_partial = _on("on_partial", on_partial, queue)
        if self.on_unavailable == self.on_partial == ABORT:
            queue = None
        self.queue = queue
        self.transport = transport
        self.events = events if events is not None else Events()
        self.preflight = preflight
        self.transient = transient
        self.commit_timeout = commit_timeout

    def __reduce_ex__(self, protocol: SupportsIndex) -> Any:
        if not is_of_a_database(protocol):
            return super().__reduce_ex__(protocol)
        the_one_like(self.transport)  # a copy that this process loads uses it, too
        return _loaded, (type(self), self.__getstate__())

    def __getstate__(self) -> dict[str, Any]:
        # The subscribers of this process are not those of another.
        return {name: value for name, value in vars(self).items() if name != "events"}

    def __setstate__(self, state: dict[str, Any]) -> None:
        vars(self).update(state)
        self.events = Events()

    def __copy__(self) -> Self:
        made = type(self).__new__(type(self))
        vars(made).update(vars(self), transport=copy.copy(self.transport))
        return made

    @property
    def route(self) -> str:
        """See `IDeliveryMethod`."""
        return str(self.transport.name)

    @property
    def asks(self) -> bool:
        """True if the server is asked before anything is sent."""
        return self.preflight == "always" or (
            self.preflight == "auto" and self.transport.asks_server
        )

    def begin(self, budget: Budget, first: bool = True) -> IDeliveryRun:
        """See `IDeliveryMethod`."""
        return DirectRun(self, budget, first)

    def queued(self, queue: IQueue) -> QueuedDelivery:
        """A delivery method with the same options that leaves all to `queue`."""
        return QueuedDelivery(
            queue,
            events=self.events,
            transient=self.transient,
            commit_timeout=self.commit_timeout,
        )

    def in_session(self, queue: IQueue, session: Any) -> tuple[Self, QueuedDelivery]:
        """This delivery method and its `queued` one, with `queue` bound to `session`."""
        bound = queue.bind(session)
        made = type(self).__new__(type(self))
        vars(made).update(vars(self), queue=None if self.queue is None else bound)
        return made, self.queued(bound)


def _on(name: str, word: str | None, queue: IQueue | None) -> str:
    word = plain_text(word)
    if word is None:
        return ABORT if queue is None else QUEUE
    if word not in (ABORT, QUEUE):
        raise ConfigurationError(f"{ABORT} or {QUEUE} is needed", field=name, value=word)
    if word == QUEUE and queue is None:
        raise ConfigurationError("there is no queue: queue_url is needed", field=name)
    return word


@dataclass(slots=True)
class _Ending:
    """How the run gives its connection back."""

    dirty: bool = True
    #: True from the moment when others may have it
    given_back: bool = False


def _close(session: ISession, ending: _Ending) -> None:
    """Give the connection back, once: after that, others may have it."""
    if not ending.given_back:
        ending.given_back = True
        session.close(dirty=ending.dirty)


@implementer(IDeliveryRun)
class DirectRun:
    """One transaction's use of one connection. See `IDeliveryRun`."""

    def __init__(self, method: DirectDelivery, budget: Budget, first: bool) -> None:
        self._method = method
        self._budget = budget
        self._may_wait = first
        self._session: ISession | None = None
        self._ending = _Ending()
        self._returned: weakref.finalize[..., DirectRun] | None = None
        #: how often a connection that ended before anything was sent may still be replaced
        self._reconnects = 1
        #: what `send` sends, and whether anything of it may have left
        self._envelopes: list[Envelope] = []
        self._begun = False
        self._judging: JudgedOutcomes | None = None
        #: the outcomes of each submission, if nothing is sent here and the queue has it all
        self._spilled: dict[Submission, list[Outcome]] = {}

    @property
    def sends(self) -> bool:
        """See `IDeliveryRun`."""
        return not self._spilled

    @property
    def connected(self) -> bool:
        """True while it has a connection."""
        return self._session is not None

    # -- before anything irrevocable

    def prepare(self, submissions: Sequence[Submission], wait: bool) -> list[Outcome]:
        """See `IDeliveryRun`."""
        envelopes = [submission.envelope for submission in submissions]
        with self._budget:
            try:
                refusals = [] if self._spilled else self._prepared(envelopes, wait)
            except TransportError as error:
                self._drop()
                refusals = unreachable(envelopes, error)
            except BaseException:
                self._drop()
                raise
        if self._spilled or (refusals and self._may_spill(refusals)):
            self._spill(submissions, envelopes, refusals)
            return []
        return refusals

    def _may_spill(self, outcomes: Sequence[Outcome]) -> bool:
        """True if nothing is out, nothing refused for good, and the queue can have it all."""
        return self._method.on_unavailable == QUEUE and not any(
            o.status in (Status.ACCEPTED, Status.IN_DOUBT, Status.FAILED) or o.action is Action.FAIL
            for o in outcomes
        )

    def _spill(
        self,
        submissions: Sequence[Submission],
        envelopes: Sequence[Envelope],
        refusals: list[Outcome],
    ) -> None:
        """Leave all to the queue, with what is known of each recipient."""
        self._drop()
        known = by_submission(submissions, all_or_nothing(envelopes, refusals)) if refusals else []
        self._spilled |= {submission: left_to_queue(outcomes) for submission, outcomes in known}
        for submission in submissions:
            self._spilled.setdefault(submission, waiting(submission))

    def to_stage(self, submissions: Sequence[Submission]) -> list[StagedSubmission]:
        """See `IDeliveryRun`."""
        if self._method.queue is None:
            return []
        if self._spilled:
            return [
                StagedSubmission(submission, outcomes=self._spilled[submission])
                for submission in submissions
            ]
        return [StagedSubmission(submission, begun=True) for submission in submissions]

    def _prepared(self, envelopes: Sequence[Envelope], wait: bool) -> list[Outcome]:
        """Connect and ask; replace a dead connection, once."""
        session = self._session or self._open(wait and self._may_wait)
        while True:
            try:
                if not self._method.asks:
                    return []
                refusals = session.preflight(
                    envelopes,
                    always=self._method.preflight == "always",
                    timeout=self._time_to_ask,
                )
                return self._judged(session, envelopes, refusals)
            except TransportError as error:
                if not error.lost or not self._reconnects:
                    raise
                self._method.events.emit(ConnectionLost(self._method.route, str(error)))
                session = self._reopen()

    @property
    def _time_to_ask(self) -> float:
        """Seconds left for the mail server before the vote: the queue needs some of the budget."""
        remaining = self._budget.remaining
        if self._method.queue is None:
            return remaining
        return max(0.0, remaining - self._method.commit_timeout * QUEUE_SHARE)

    def _open(self, wait: bool, fresh: bool = False) -> ISession:
        timeout = self._time_to_ask
        if timeout <= 0:
            raise TransportError("commit_timeout is used up")
        # The connection that we would wait for may be that of this thread, or of one that waits for
        # a lock of this transaction, or of one around it.
        wait = wait and not (_holding.any_but(self) or in_two_phase_commit())
        self._ending = _Ending()
        # Noted at once, so that an exception from here on does not lose it.
        self._session = session = self._method.transport.open(
            timeout=timeout,
            wait=wait,
            fresh=fresh,
            verify=not self._method.asks,  # the preflight does that
        )
        _holding.runs.add(self)
        # A transaction that is dropped without an end gives the connection back, too.
        self._returned = weakref.finalize(self, _close, session, self._ending)
        self._returned.atexit = False
        if session.fresh:
            self._method.events.emit(Connected(session.host))
        return session

    def _reopen(self) -> ISession:
        self._reconnects -= 1
        self._drop()
        return self._open(wait=False, fresh=True)

    # -- the point of no return

    def send(self, submissions: Sequence[Submission]) -> Generator[Outcome, None, None]:
        """See `IDeliveryRun`."""
        self._envelopes = [submission.envelope for submission in submissions]
        if self._spilled:
            yield from placed(self._spilled[submission] for submission in submissions)
            return
        with self._budget:
            yield from self._told(self._envelopes)

    def goes_on(self, outcomes: Sequence[Outcome]) -> bool:
        """See `IDeliveryRun`."""
        if self._method.queue is None:
            return False
        out = any(o.status in (Status.ACCEPTED, Status.IN_DOUBT) for o in outcomes)
        return self._method.on_partial == QUEUE if out else self._may_spill(outcomes)

    def _told(self, envelopes: Sequence[Envelope]) -> Iterator[Outcome]:
        outcomes = self._sent(envelopes)
        try:
            first = next(outcomes, None)
            if self._session is not None and self._session.restartable and self._reconnects:
                self._begun = False
                outcomes, first = self._sent_anew(envelopes), None
            if first is not None:
                yield first
            yield from outcomes
        finally:
            # At once: nothing more leaves, and `unsettled` knows what has left.
            outcomes.close()

    def _sent(self, envelopes: Sequence[Envelope]) -> Generator[Outcome, None, None]:
        try:
            session = self._session or self._open(wait=False)
        except TransportError as error:
            yield from unreachable(envelopes, error)
            return
        strict = self._method.on_partial == ABORT
        self._begun = True
        outcomes = session.send(
            envelopes,
            strict=strict,
            timeout=self._budget.remaining,
            window=None if strict else QUEUE_WINDOW,
        )
        evidence: SharedEvidence | None = getattr(session, "evidence", None)
        if evidence is None:
            yield from outcomes
            return
        senders = [envelope.sender for envelope in envelopes]
        self._judging = JudgedOutcomes(evidence, senders, holds=not strict)
        yield from self._judging.of(outcomes)

    def _judged(
        self, session: ISession, envelopes: Sequence[Envelope], refusals: Sequence[Outcome]
    ) -> list[Outcome]:
        """`refusals` in the preflight; each says so if the route is at fault.

        A transaction counts as one message: it goes out together or not at all.
        """
        evidence: SharedEvidence | None = getattr(session, "evidence", None)
        if evidence is None:
            return list(refusals)
        one = envelopes[0].message_id
        return [evidence.judge(envelopes[o.position].sender, o, one) for o in refusals]

    def _sent_anew(self, envelopes: Sequence[Envelope]) -> Generator[Outcome, None, None]:
        """The connection ended before any content was sent: ask and send on a new one."""
        self._method.events.emit(ConnectionLost(self._method.route, "before anything was sent"))
        try:
            self._reopen()
            refusals = self._prepared(envelopes, wait=False)
        except TransportError as error:
            self._drop()
            yield from unreachable(envelopes, error)
            return
        if refusals:
            yield from all_or_nothing(envelopes, refusals)
            return
        yield from self._sent(envelopes)

    def unsettled(self) -> list[Outcome]:
        """See `IDeliveryRun`."""
        if self._begun and self._session is not None:
            held = self._judging.held if self._judging is not None else []
            return [*held, *self._session.unsettled()]
        return [] if self._begun else list(all_or_nothing(self._envelopes, []))

    # -- the end

    def finish(self) -> None:
        """See `IDeliveryRun`."""
        self._give_back(dirty=False)

    def abort(self) -> None:
        """See `IDeliveryRun`."""
        self._give_back(dirty=True)

    def _drop(self) -> None:
        """The session has failed; give it back so that it is closed."""
        self._give_back(dirty=True)

    def _give_back(self, dirty: bool) -> None:
        # An exception may come anywhere here, and then this is called again.
        if self._session is not None:
            self._ending.dirty = dirty
            _close(self._session, self._ending)
        if self._returned is not None:
            self._returned.detach()
        self._session = self._returned = None


def _loaded(kind: type[DirectDelivery], state: dict[str, Any]) -> DirectDelivery:
    """The delivery method that a database has: all copies in a process have one transport."""
    made = kind.__new__(kind)
    made.__setstate__(state)
    made.transport = the_one_like(made.transport)
    return made
