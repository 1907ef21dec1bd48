"""Sends for one user after another over one connection, which it renews when that is better."""

from __future__ import annotations

import ssl
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import Protocol

from zope.interface import implementer

from ..common.logs import quiet_logger
from ..envelope import Envelope
from ..exceptions import TransportError
from ..interfaces import ISession
from ..outcome import Outcome
from ..reply import Reply
from ..secret import Secret
from .connection import Connection
from .connection_state import ConnectionState
from .driver import Driver
from .extensions import Extensions
from .options import Options
from .reconnect_policy import ReconnectPolicy
from .send_request import WINDOW, SendRequest
from .sending import Sending
from .server_memory import ServerMemory
from .shared_evidence import SharedEvidence
from .source import Source
from .stream import Stream
from .streaming import SHARED_OCTETS, WINDOW_OCTETS
from .transactions import ReconnectNeeded

log = quiet_logger("txmail")


class SessionOwner(Protocol):
    """Keeps sessions between their users: see `txmail.smtp.pool.Pool`."""

    def give(self, session: Session, *, dirty: bool = False) -> None:
        """Take `session` back."""

    def renewed(self, session: Session) -> None:
        """`session` has a new connection."""


@implementer(ISession)
class Session:
    """One open connection of an SMTP transport. See `ISession`."""

    def __init__(
        self,
        stream: Stream,
        options: Options,
        clock: Callable[[], float] = time.monotonic,
        *,
        memory: ServerMemory | None = None,
        connect: Callable[[float], Session] | None = None,
    ) -> None:
        """The server's greeting is not read yet: see `greet`.

        `memory` is what other connections have learned about the server. `connect` opens another
        session with it, within so many seconds; without it the session never renews its connection.
        """
        self.options = options
        self.memory = memory if memory is not None else ServerMemory()
        self._connect = connect
        self._clock = clock
        self.connection = Connection(stream, options, self.memory, clock)
        #: the owner that `close` gives the session back to; None closes the connection
        self.pool: SessionOwner | None = None
        #: see `ISession`
        self.fresh = True
        #: for the pool, by its clock: when the session was opened, and last given back
        self.opened_at = self.used_at = 0.0
        self._sending: Sending | None = None
        #: True if the last `send` lost its connection
        self._lost = False
        #: True if the last `send` had sent content before it went on over a fresh connection
        self._begun = False

    @property
    def host(self) -> str:
        """Printable name of the server."""
        return self.options.name

    @property
    def closed(self) -> bool:
        """True once the connection is gone."""
        return self.connection.closed

    @property
    def restartable(self) -> bool:
        """True if the last `send` lost the connection before any content had been sent."""
        begun = self._begun or self._sending is None or self._sending.begun
        return self._lost and not begun

    @property
    def evidence(self) -> SharedEvidence:
        """Whose fault refusals are, as commits have heard them from this server."""
        return self.memory.evidence

    @property
    def extensions(self) -> Extensions:
        """The extensions that the server offers."""
        return self.connection.extensions

    @property
    def driver(self) -> Driver:
        """The driver of the connection, for a caller that waits for several at once."""
        return self.connection.driver

    def greet(
        self,
        timeout: float,
        tls: ssl.SSLContext | None = None,
        password: Secret | None = None,
    ) -> None:
        """See `Connection.greet`."""
        self.connection.greet(timeout, tls, password)

    # -- ISession: asking

    def preflight(
        self,
        envelopes: Sequence[Envelope],
        *,
        always: bool = False,
        keep_open: bool = True,
        timeout: float | None = None,
    ) -> list[Outcome]:
        """See `ISession`. A fresh connection is asked if a refusal may be about this one alone."""
        deadline = None if timeout is None else self._clock() + timeout
        refusals, reply = self._ask(envelopes, always, keep_open, timeout)
        if reply is None or not refusals:
            return refusals
        log.info("%s: %s; a fresh connection is asked", self.host, reply)
        self._renew(deadline)
        return self._ask(envelopes, always, keep_open, self._left(deadline))[0]

    def _ask(
        self, envelopes: Sequence[Envelope], always: bool, keep_open: bool, timeout: float | None
    ) -> tuple[list[Outcome], Reply | None]:
        """The refusals, and a reply that may be about this connection alone."""
        connection = self.connection
        questions = connection.preflights.plan(
            connection.extensions,
            envelopes,
            always=always,
            keep_open=keep_open,
            pipelining=connection.pipelining,
        )
        if questions is None:
            return [], None
        connection.check()
        connection.run(questions.preflight.conversation(), timeout)
        policy = ReconnectPolicy(self._renewable, connection.history.carried)
        return connection.preflights.note(questions), questions.preflight.reconnect_reply(policy)

    # -- ISession: sending

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
        deadline = None if timeout is None else self._clock() + timeout
        source = Source(envelopes)
        self._begun = False

        def begin() -> Sending:
            return self.begin(source, strict=strict, window=window, keep_untaken=keep_untaken)

        return self._send(begin(), begin, deadline, guard)

    def _send(
        self,
        sending: Sending,
        begin: Callable[[], Sending],
        deadline: float | None,
        guard: Callable[[], object] | None,
    ) -> Iterator[Outcome]:
        """The outcomes of `sending`, and of those that go on over fresh connections."""
        while True:
            yield from self._outcomes(sending, self._left(deadline), guard)
            if sending.reconnect_needed is None or self._connect is None:
                return
            log.info("%s: %s", self.host, sending.reconnect_needed)
            self._begun = self._begun or sending.begun
            try:
                self._renew(deadline)
            except TransportError as error:
                sending = begin()
                self.failed(sending, error)
                yield from self.hand_out(sending)
                return
            sending = begin()

    def begin(
        self,
        source: Source,
        *,
        strict: bool = False,
        window: int | None = None,
        keep_untaken: bool = False,
        shared: bool = False,
    ) -> Sending:
        """Prepare to send: see `ISession.send`. `shared` if other sessions take from `source`."""
        self._lost = False
        messages = self.window(window, strict=strict)
        request = SendRequest(
            strict=strict,
            window=messages if self.connection.chunking else 0,
            octets=SHARED_OCTETS if shared else WINDOW_OCTETS,
            keep_untaken=keep_untaken,
            takes_rest=not shared,
        )
        connection = self.connection
        preflights = connection.preflights
        state = ConnectionState(
            connection.extensions,
            connection.pipelining,
            preflights.passed,
            preflights.open_transaction,
            dirty=preflights.dirty,
            proven=connection.driver.proven,
            history=connection.history,
            memory=self._renewable,
            messages_left=None if shared else self._messages_left(),
        )
        sending = self._sending = Sending(connection.protocol, source, request, state)
        preflights.give_up_open_transaction()
        return sending

    def _messages_left(self) -> int | None:
        """Messages that this connection may still carry; None is any number."""
        if self._connect is None or self.options.messages is None:
            return None
        return max(0, self.options.messages - self.connection.messages)

    def window(self, window: int | None, *, strict: bool = False) -> int:
        """Messages on their way at once if the caller of `ISession.send` asks for `window`."""
        return self.options.window or window or (1 if strict else WINDOW)

    def _outcomes(
        self, sending: Sending, timeout: float | None, guard: Callable[[], object] | None
    ) -> Iterator[Outcome]:
        connection, driver = self.connection, self.connection.driver
        conversation, ready = sending.conversation(), sending.ready
        with connection.bounded(timeout, guard):
            try:
                try:
                    connection.check()
                    for _ in conversation:
                        # Before the write: if the caller stops here, nothing more may leave.
                        while ready:
                            yield ready[0]
                            ready.popleft()
                        driver.write()
                        sending.prepare_next()  # while the server is busy
                        driver.bring_reply(conversation)
                except TransportError as error:
                    self.failed(sending, error)
            except BaseException:
                self.interrupted(sending)
                raise
        self.ended(sending)
        yield from self.hand_out(sending)

    def failed(self, sending: Sending, error: TransportError) -> None:
        """End `sending` and the connection because of `error`."""
        sending.cut(str(error), error.reply)  # if the conversation has not even begun
        self.connection.note_reset(error)
        self._lost = error.lost
        if isinstance(error, ReconnectNeeded):
            self.connection.quit()
        self.connection.abandon()

    def interrupted(self, sending: Sending) -> None:
        """End `sending` and the connection because of an error that is not the connection's."""
        sending.cut("interrupted")
        self.connection.abandon()

    def ended(self, sending: Sending) -> None:
        """Note that `sending` is over."""
        self.connection.note_sent(sending)

    def hand_out(self, sending: Sending) -> Iterator[Outcome]:
        """Hand out the outcomes that are known."""
        ready = sending.ready
        while ready:
            yield ready[0]
            ready.popleft()  # when the caller has come back, and not before: see `unsettled`

    def unsettled(self) -> list[Outcome]:
        """See `ISession`."""
        return list(self._sending.ready) if self._sending is not None else []

    def close(self, *, dirty: bool = False) -> None:
        """See `ISession`."""
        if self.pool is not None:
            self.pool.give(self, dirty=dirty)
        else:
            self.forget(dirty=dirty)
            self.quit()

    # -- going on over a fresh connection

    @property
    def _renewable(self) -> ServerMemory | None:
        """The memory of the server; None if this session cannot open another connection."""
        return self.memory if self._connect is not None else None

    def _renew(self, deadline: float | None) -> None:
        """Go on over a new connection to the same server. Raises `TransportError`."""
        assert self._connect is not None
        self.quit()
        left = self._left(deadline)
        other = self._connect(self.options.timeout if left is None else left)
        self.connection = other.connection
        self.fresh, self._lost = True, False
        if self.pool is not None:
            self.pool.renewed(self)

    def _left(self, deadline: float | None) -> float | None:
        """Seconds until `deadline`, None if there is none."""
        return None if deadline is None else deadline - self._clock()

    # -- for the pool

    def forget(self, *, dirty: bool) -> None:
        """Forget the last user, who may have left a mail transaction open if `dirty`."""
        self.connection.preflights.forget(dirty=dirty)
        self._sending = None
        self.fresh = self.connection.driver.proven = False

    @property
    def reusable(self) -> bool:
        """True if another user may have the connection."""
        return self.connection.reusable

    def quit(self, timeout: float = 0.0) -> None:
        """See `Connection.quit`."""
        self.connection.quit(timeout)
