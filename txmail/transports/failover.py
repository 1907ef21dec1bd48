"""Uses the first of several routes that works, in the order of the settings.

The transport takes another route only while nothing irrevocable has happened: when a route cannot
be opened, or fails in the preflight, or says there that it must not be used now. It never sends
over another route what one route has accepted or may have accepted.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import Any

from zope.interface import implementer

from ..envelope import Envelope
from ..exceptions import ConfigurationError, TransportError
from ..interfaces import ISession, ITransport
from ..outcome import Outcome, Scope, Status
from ..smtp.shared_evidence import SharedEvidence
from .login_limit import Logins, close_idle, logins_of

#: Seconds for which a route that failed is tried last. Long enough that not every transaction waits
#: for a host that is down; short enough that a host is used soon after it is up again.
PAUSE = 60.0


@implementer(ITransport)
class FailoverTransport:
    """Opens the first of its routes that can be opened. See `ITransport`."""

    def __init__(
        self,
        routes: Iterable[ITransport],
        pause: float = PAUSE,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        """`pause` is in seconds. Raises `ConfigurationError` for anything but transports."""
        self.routes = tuple(routes)
        if not self.routes or not all(ITransport.providedBy(route) for route in self.routes):
            raise ConfigurationError("at least one ITransport is needed", field="routes")
        self._pause = pause
        self._clock = clock
        #: by index, until when a route is tried last
        self._resting: dict[int, float] = {}

    @property
    def name(self) -> str:
        """The names of all routes."""
        return ", ".join(str(route.name) for route in self.routes)

    @property
    def connections(self) -> int:
        """The number of connections that one `ISession.send` uses at most, over any route."""
        return max(getattr(route, "connections", 1) for route in self.routes)

    @property
    def window(self) -> int | None:
        """As that of `SmtpTransport`: the largest, if all routes have one."""
        found = [getattr(route, "window", None) for route in self.routes]
        known = [window for window in found if window is not None]
        return max(known) if len(known) == len(found) else None

    @property
    def logins(self) -> tuple[Logins, ...]:
        """The logins of all routes."""
        return tuple(login for route in self.routes for login in logins_of(route))

    @property
    def is_barred(self) -> bool:
        """True if no route can log in before its password changes."""
        return all(getattr(route, "is_barred", False) for route in self.routes)

    @property
    def retry_within(self) -> float | None:
        """The shortest `SmtpTransport.retry_within` of its routes."""
        known = [getattr(route, "retry_within", None) for route in self.routes]
        return min([seconds for seconds in known if seconds is not None], default=None)

    @property
    def asks_server(self) -> bool:
        """True if the preflight of a route asks a server."""
        return any(route.asks_server for route in self.routes)

    def open(
        self,
        *,
        timeout: float | None = None,
        wait: bool = True,
        fresh: bool = False,
        verify: bool = True,
    ) -> FailoverSession:
        """See `ITransport`. Each route gets an equal share of the remaining time."""
        deadline = None if timeout is None else self._clock() + timeout
        index, session = self.first(self.order(), deadline, wait, fresh, verify)
        return FailoverSession(self, index, session)

    def order(self) -> list[int]:
        """The indexes of all routes; those that failed lately come last."""
        now = self._clock()
        indexes = range(len(self.routes))
        return sorted(indexes, key=lambda index: self._resting.get(index, now) > now)

    def first(
        self,
        order: Sequence[int],
        deadline: float | None,
        wait: bool,
        fresh: bool,
        verify: bool = True,
    ) -> tuple[int, ISession]:
        """The first of `order` that can be opened. Raises `TransportError`, for all of them."""
        errors: list[TransportError] = []
        for position, index in enumerate(order):
            share = self.share(deadline, len(order) - position)
            try:
                session = self.routes[index].open(
                    timeout=share, wait=wait, fresh=fresh, verify=verify
                )
            except TransportError as error:
                self.rest(index)
                errors.append(error)
            else:
                self._resting.pop(index, None)
                return index, session
        raise TransportError(
            "; ".join(map(str, errors)) or "there is no other route",
            temporary=any(error.temporary for error in errors),
            reply=errors[-1].reply if errors else None,
        )

    def share(self, deadline: float | None, among: int) -> float | None:
        """Seconds for the first of so many routes that may still have to be tried."""
        return None if deadline is None else max(0.0, deadline - self._clock()) / among

    def rest(self, index: int) -> None:
        """Pass this route over for a while."""
        within = getattr(self.routes[index], "retry_within", None)
        pause = self._pause if within is None else min(self._pause, within)
        self._resting[index] = self._clock() + pause

    def now(self) -> float:
        """Seconds of the clock that deadlines are on."""
        return self._clock()

    def close_idle(self) -> None:
        """As that of `SmtpTransport`."""
        for route in self.routes:
            close_idle(route)

    def close(self) -> None:
        """See `ITransport`."""
        for route in self.routes:
            route.close()

    def __reduce__(self) -> tuple[Any, ...]:
        # A copy, perhaps in another process, finds out by itself what is down.
        return type(self), (self.routes, self._pause, self._clock)

    def __repr__(self) -> str:
        return f"<{type(self).__name__} {self.name}>"


@implementer(ISession)
class FailoverSession:
    """A session of one route, or of another if that one fails in the preflight."""

    def __init__(self, transport: FailoverTransport, index: int, session: ISession) -> None:
        self._transport = transport
        self._index = index
        self._session = session
        self._tried = {index}
        self._preflighted = False

    @property
    def evidence(self) -> SharedEvidence | None:
        """Of the server that it speaks to, if there is one."""
        return getattr(self._session, "evidence", None)

    @property
    def host(self) -> str:
        """See `ISession`."""
        return str(self._session.host)

    @property
    def fresh(self) -> bool:
        """See `ISession`."""
        return bool(self._session.fresh)

    @property
    def restartable(self) -> bool:
        """See `ISession`. The next session may be one of another route."""
        return bool(self._session.restartable)

    def preflight(
        self,
        envelopes: Sequence[Envelope],
        *,
        always: bool = False,
        keep_open: bool = True,
        timeout: float | None = None,
    ) -> list[Outcome]:
        """See `ISession`. Asks the next route if this one fails or must not be used now."""
        transport = self._transport
        deadline = None if timeout is None else transport.now() + timeout
        while True:
            untried = len(transport.routes) - len(self._tried)
            share = transport.share(deadline, untried + 1)
            refusals: list[Outcome] = []
            problem: TransportError | None = None
            try:
                refusals = list(
                    self._session.preflight(
                        envelopes, always=always, keep_open=keep_open, timeout=share
                    )
                )
            except TransportError as error:
                if error.lost and (self._preflighted or not self._session.fresh):
                    # The route worked before. The caller opens a new connection to it.
                    raise
                problem = error
            if problem is None and not _about_route(refusals):
                self._preflighted = True
                return refusals
            transport.rest(self._index)
            if not self._move(deadline):
                if problem is not None:
                    raise problem
                return refusals

    def _move(self, deadline: float | None) -> bool:
        """Go on over a route that was not tried yet; False if none can be opened.

        Never waits for another thread's connection: this transaction may hold locks.
        """
        order = [index for index in self._transport.order() if index not in self._tried]
        try:
            found = self._transport.first(order, deadline, wait=False, fresh=True)
        except TransportError:
            return False
        self._session.close(dirty=True)
        self._index, self._session = found
        self._tried.add(self._index)
        self._preflighted = False
        return True

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
        """See `ISession`. Never goes on over another route."""
        sending = self._session.send(
            envelopes,
            strict=strict,
            timeout=timeout,
            window=window,
            keep_untaken=keep_untaken,
            guard=guard,
        )
        return self._note_route_failures(sending)

    def _note_route_failures(self, sending: Iterator[Outcome]) -> Iterator[Outcome]:
        """The outcomes of `sending`. After one about the route it is tried last for a while."""
        try:
            for outcome in sending:
                if _about_route([outcome]) and not self._session.restartable:
                    self._transport.rest(self._index)
                yield outcome
        finally:
            close = getattr(sending, "close", None)
            if close is not None:
                close()

    def unsettled(self) -> list[Outcome]:
        """See `ISession`."""
        return list(self._session.unsettled())

    def close(self, *, dirty: bool = False) -> None:
        """See `ISession`."""
        self._session.close(dirty=dirty)


def _about_route(refusals: Sequence[Outcome]) -> bool:
    """True if the route must not be used now, and nothing was accepted or failed for good."""
    return any(o.scope is Scope.ROUTE for o in refusals) and not any(
        o.status in (Status.FAILED, Status.ACCEPTED) for o in refusals
    )
