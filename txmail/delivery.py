"""Direct delivery: a commit hands its envelopes to the next hop itself, over one connection.

`DirectDelivery` is what a mailer is set up with; `DirectRun` is its part in one transaction. Both
see `ITransport` and `ISession` only.
"""

from __future__ import annotations

import copy
import weakref
from collections.abc import Generator, Iterator, Sequence
from dataclasses import replace
from typing import Any, Self

from zope.interface import implementer

from .budget import COMMIT_TIMEOUT, Budget
from .envelope import Action, Envelope, Outcome, Scope, Status
from .events import Connected, ConnectionLost, Events
from .exceptions import (
    ConfigurationError,
    DeliveryError,
    DeliveryRefused,
    DeliveryUnavailable,
    PartialDelivery,
    TransientDeliveryUnavailable,
    TransportError,
)
from .interfaces import IDelivery, IDeliveryRun, ISession, ITransport

#: ``auto`` asks as far as a server lets itself be asked, ``always`` refuses to send what could
#: not be asked about, ``never`` finds everything out while sending.
PREFLIGHT = ("auto", "always", "never")


@implementer(IDelivery)
class DirectDelivery:
    """Sends at commit, all or nothing. See `IDelivery`."""

    def __init__(
        self,
        transport: ITransport,
        *,
        events: Events | None = None,
        preflight: str = "auto",
        transient: bool = False,
        commit_timeout: float = COMMIT_TIMEOUT,
    ) -> None:
        """Raises `ConfigurationError` for options that are none.

        `preflight` is one of `PREFLIGHT`; `commit_timeout` is in seconds of our own network time
        for one transaction; with `transient`, temporary errors are raised as `TransientError` too.
        """
        if not ITransport.providedBy(transport):
            raise ConfigurationError("an ITransport is needed", field="transport", value=transport)
        if preflight not in PREFLIGHT:
            raise ConfigurationError(
                f"one of {', '.join(PREFLIGHT)} is needed", field="preflight", value=preflight
            )
        if not isinstance(commit_timeout, (int, float)) or not commit_timeout > 0:
            raise ConfigurationError("seconds above 0 are needed", field="commit_timeout")
        self.transport = transport
        self.events = events if events is not None else Events()
        self.preflight = preflight
        self.transient = transient
        self.commit_timeout = commit_timeout

    def __getstate__(self) -> dict[str, Any]:
        # Who listens here is nobody in another process.
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
        """See `IDelivery`."""
        return str(self.transport.name)

    @property
    def asks(self) -> bool:
        """True if the server is asked before anything is sent."""
        return self.preflight == "always" or (
            self.preflight == "auto" and self.transport.asks_server
        )

    def begin(self, budget: Budget, first: bool = True) -> IDeliveryRun:
        """See `IDelivery`."""
        return DirectRun(self, budget, first)


@implementer(IDeliveryRun)
class DirectRun:
    """One transaction's use of one connection. See `IDeliveryRun`."""

    def __init__(self, delivery: DirectDelivery, budget: Budget, first: bool) -> None:
        self._delivery = delivery
        self._budget = budget
        self._may_wait = first
        self._session: ISession | None = None
        self._returned: weakref.finalize[..., DirectRun] | None = None
        #: a connection that ended before anything was sent is replaced, once
        self._reconnects = 1
        self._rest: list[Outcome] = []

    # -- before anything irrevocable

    def prepare(self, envelopes: Sequence[Envelope], wait: bool) -> list[Outcome]:
        """See `IDeliveryRun`."""
        with self._budget:
            try:
                return self._prepared(envelopes, wait)
            except TransportError as error:
                self._drop()
                return _all_unsent(envelopes, error)
            except BaseException:
                self._drop()
                raise

    def _prepared(self, envelopes: Sequence[Envelope], wait: bool) -> list[Outcome]:
        """Connect and ask; a connection that turns out to be dead is replaced once."""
        session = self._session or self._open(wait and self._may_wait)
        while True:
            try:
                if not self._delivery.asks:
                    return []
                return list(
                    session.preflight(
                        envelopes,
                        always=self._delivery.preflight == "always",
                        timeout=self._budget.remaining,
                    )
                )
            except TransportError as error:
                if not error.lost or not self._reconnects:
                    raise
                self._delivery.events.emit(ConnectionLost(self._delivery.route, str(error)))
                session = self._reopen()

    def _open(self, wait: bool, fresh: bool = False) -> ISession:
        timeout = self._budget.remaining
        if timeout <= 0:
            raise TransportError("commit_timeout is used up")
        session = self._delivery.transport.open(
            timeout=timeout,
            wait=wait,
            fresh=fresh,
            verify=not self._delivery.asks,  # the preflight does that
        )
        self._session = session
        # A transaction that is dropped without an end must not keep the connection for ever.
        self._returned = weakref.finalize(self, session.close, dirty=True)
        self._returned.atexit = False
        if session.fresh:
            self._delivery.events.emit(Connected(session.host))
        return session

    def _reopen(self) -> ISession:
        self._reconnects -= 1
        self._drop()
        return self._open(wait=False, fresh=True)

    # -- the point of no return

    def send(self, envelopes: Sequence[Envelope]) -> Generator[Outcome, None, None]:
        """See `IDeliveryRun`."""
        self._rest = []
        with self._budget:
            try:
                outcomes = self._sent(envelopes)
                first = next(outcomes, None)
                if self._session is not None and self._session.restartable and self._reconnects:
                    outcomes, first = self._sent_anew(envelopes), None
                if first is not None:
                    yield first
                yield from outcomes
            except BaseException:
                if self._session is not None:
                    self._rest = list(self._session.unsettled())
                raise

    def _sent(self, envelopes: Sequence[Envelope]) -> Iterator[Outcome]:
        try:
            session = self._session or self._open(wait=False)
        except TransportError as error:
            yield from _all_unsent(envelopes, error)
            return
        yield from session.send(envelopes, strict=True, timeout=self._budget.remaining)

    def _sent_anew(self, envelopes: Sequence[Envelope]) -> Iterator[Outcome]:
        """The connection ended before any content was sent: ask again and send on a new one."""
        self._delivery.events.emit(ConnectionLost(self._delivery.route, "before anything was sent"))
        try:
            self._reopen()
            refusals = self._prepared(envelopes, wait=False)
        except TransportError as error:
            self._drop()
            yield from _all_unsent(envelopes, error)
            return
        if refusals:
            yield from in_order(envelopes, refusals)
            return
        yield from self._sent(envelopes)

    def unsettled(self) -> list[Outcome]:
        """See `IDeliveryRun`."""
        return self._rest

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
        session, self._session = self._session, None
        if self._returned is not None:
            self._returned.detach()
            self._returned = None
        if session is not None:
            session.close(dirty=dirty)


def _all_unsent(envelopes: Sequence[Envelope], error: TransportError) -> list[Outcome]:
    action = Action.DEFER_ROUTE if error.temporary else Action.STOP_ROUTE
    return [
        Outcome(
            recipient,
            Status.UNSENT,
            Scope.ROUTE,
            error.reply,
            envelope.message_id,
            action,
            str(error),
            preflighted=False,
            position=position,
        )
        for position, envelope in enumerate(envelopes)
        for recipient in envelope.recipients
    ]


def in_order(envelopes: Sequence[Envelope], refusals: Sequence[Outcome]) -> Iterator[Outcome]:
    """One outcome for each recipient of `envelopes`: its refusal, or `unsent`."""
    rest = iter(refusals)
    refusal = next(rest, None)
    for position, envelope in enumerate(envelopes):
        for recipient in envelope.recipients:
            if (
                refusal is not None
                and refusal.recipient == recipient
                and refusal.message_id == envelope.message_id
            ):
                yield replace(refusal, position=position)
                refusal = next(rest, None)
            else:
                yield Outcome(
                    recipient,
                    Status.UNSENT,
                    Scope.MESSAGE,
                    message_id=envelope.message_id,
                    action=Action.DEFER,
                    reason="a transaction's mail goes out together or not at all",
                    position=position,
                )


def delivery_error(
    outcomes: Sequence[Outcome],
    *,
    transient: bool = False,
    databases_may_be_committed: bool = False,
) -> DeliveryError:
    """The error for `outcomes` of which at least one is not `accepted`.

    It is `PartialDelivery` if anything was accepted or is in doubt, else `DeliveryRefused` if
    anything was refused for good, else `DeliveryUnavailable`: as a `TransientError` if `transient`
    asks for that and no person has to act first.
    """
    statuses = {o.status for o in outcomes}
    kind: type[DeliveryError] = DeliveryUnavailable
    if statuses & {Status.ACCEPTED, Status.IN_DOUBT}:
        kind = PartialDelivery
    elif Status.FAILED in statuses:
        kind = DeliveryRefused
    elif transient and not any(o.action is Action.STOP_ROUTE for o in outcomes):
        kind = TransientDeliveryUnavailable
    bad = [o for o in outcomes if o.status is not Status.ACCEPTED]
    decisive = [o for o in bad if o.status is not Status.UNSENT] or bad
    problem = f"{decisive[0]}" + (f" and {len(decisive) - 1} more" if decisive[1:] else "")
    return kind(problem, tuple(outcomes), databases_may_be_committed=databases_may_be_committed)
