"""One open connection: drives the conversations over a stream, blocking, with deadlines."""

from __future__ import annotations

import contextlib
import ssl
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import replace
from typing import Protocol

from zope.interface import implementer

from ..common.logs import quiet_logger
from ..common.per_process import this_process
from ..envelope import Envelope
from ..exceptions import TransportError
from ..interfaces import ISession
from ..outcome import Outcome
from ..reply import Reply
from ..secret import Secret
from . import commands
from .connection_state import NO_HISTORY, ConnectionState
from .driver import Driver
from .extensions import Extensions
from .failure_policy import Step
from .handshake import Handshake
from .log import ProtocolLog
from .options import Options
from .preflight import ASKED_ENOUGH, NO_RESET, PROBES_LIMIT, Preflight
from .protocol import Protocol as ClientProtocol
from .reconnect_policy import ReconnectPolicy
from .refusals import REFUSALS_LIMIT
from .send_request import WINDOW, SendRequest
from .sending import Sending
from .server_memory import ServerMemory
from .source import Source
from .stream import Stream
from .streamed_message import is_unknown
from .streaming import SHARED_OCTETS, WINDOW_OCTETS
from .transactions import (
    CommandGroup,
    ConnectionEnded,
    MailTransaction,
    ReconnectNeeded,
    ResetRefused,
)

log = quiet_logger("txmail")


class Owner(Protocol):
    """Keeps sessions between their users: see `txmail.smtp.pool.Pool`."""

    def give(self, session: Session, *, dirty: bool = False) -> None:
        """Take `session` back."""

    def renewed(self, session: Session) -> None:
        """`session` has a new connection."""


@implementer(ISession)
class Session:
    """One connection to an SMTP server. See `ISession`."""

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

        `memory` is what is known of the server. `connect` opens another session with it within so
        many seconds; without it no fresh connection is asked what this one may not say.
        """
        self.options = options
        self.memory = memory if memory is not None else ServerMemory()
        self._connect = connect
        self.extensions = Extensions()
        #: where `close` gives the connection back to; None closes it
        self.pool: Owner | None = None
        #: see `ISession`
        self.fresh = True
        #: for the pool, by its clock: when it was opened, and last given back
        self.opened_at = self.used_at = 0.0
        #: messages accepted here
        self.messages = 0
        #: the process the connection belongs to
        self.process = this_process()
        self._stream = stream
        self._clock = clock
        self._protocol_log = ProtocolLog(options.name)
        self._protocol = ClientProtocol(self._protocol_log)
        #: for who drives several connections at once
        self.driver = Driver(stream, self._protocol, options.name, options.timeout, clock)
        self._name = options.local_hostname or stream.local_literal
        self._closed = False
        self._lost = False
        #: True once the server has shown that it does not know BDAT, whatever it offers
        self._chunking_failed = False
        self._dirty = False
        #: the mail that was sent here before
        self._history = NO_HISTORY
        #: questions since a message was last accepted here, and those of earlier users among them
        self._probes = self._inherited = 0
        #: by id, envelopes the preflight has dealt with here, and whether they were asked about
        self._preflighted: dict[int, tuple[Envelope, bool]] = {}
        self._open_transaction: MailTransaction | None = None
        self._sending: Sending | None = None
        #: True if the last `send` had sent content before it went on over a fresh connection
        self._begun = False

    @property
    def host(self) -> str:
        """Printable name of the server."""
        return self.options.name

    @property
    def closed(self) -> bool:
        """True once the connection is gone."""
        return self._closed

    @property
    def restartable(self) -> bool:
        """True if the last `send` lost the connection before any content had been sent."""
        begun = self._begun or self._sending is None or self._sending.begun
        return self._lost and not begun

    @property
    def _pipelining(self) -> bool:
        return self.options.pipelining and self.extensions.pipelining

    @property
    def _chunking(self) -> bool:
        """True if messages can be streamed."""
        offered = self.extensions.chunking and self._pipelining
        wanted = self.options.chunking and not self._chunking_failed
        return offered and wanted and not self.memory.no_reset

    # -- opening

    def greet(
        self,
        timeout: float,
        tls: ssl.SSLContext | None = None,
        password: Secret | None = None,
    ) -> None:
        """Read the greeting, say EHLO, encrypt and authenticate as the options want it.

        `tls` is the context for the options' mode. `timeout` in seconds. `password` is a value that
        the options' source has given for this connection; without it the source is asked. Raises
        `TransportError`, or `ConfigurationError` if there is no password any more; the connection
        is closed then.
        """
        handshake = Handshake(self._stream, self._protocol, self.driver, self.options, self._name)
        with self.bounded(timeout):
            try:
                self.extensions = handshake.run(tls, password)
            except BaseException:
                self._break()
                raise

    # -- ISession

    def preflight(
        self,
        envelopes: Sequence[Envelope],
        *,
        always: bool = False,
        keep_open: bool = True,
        timeout: float | None = None,
    ) -> list[Outcome]:
        """See `ISession`. A fresh connection is asked what this one may say of itself alone."""
        deadline = None if timeout is None else self._clock() + timeout
        refusals, again = self._ask(list(envelopes), always, keep_open, timeout)
        if again is None or not refusals:
            return refusals
        log.info("%s: %s; a fresh connection is asked", self.host, again)
        self._renew(deadline)
        left = None if deadline is None else deadline - self._clock()
        return self._ask(list(envelopes), always, keep_open, left)[0]

    def _ask(
        self, envelopes: list[Envelope], always: bool, keep_open: bool, timeout: float | None
    ) -> tuple[list[Outcome], Reply | None]:
        """The refusals, and a reply that may be about this connection alone."""
        places = [i for i, e in enumerate(envelopes) if id(e) not in self._preflighted]
        unasked = [envelopes[place] for place in places]
        if not unasked:
            return [], None
        self.check()
        # Who may not be asked any more gets no RSET either: the open transaction stays open.
        spent = self._probes >= PROBES_LIMIT
        spent = spent or (self.memory.no_reset and self._open_transaction is not None)
        if self._open_transaction is not None and not spent:
            self._open_transaction, self._dirty = None, True
            self._probes += 1
        if keep_open and not spent and unasked[0] is not envelopes[0]:
            unasked.insert(0, envelopes[0])
            places.insert(0, 0)
        preflight = Preflight(
            self._protocol,
            self.extensions,
            unasked,
            always=always,
            keep_open=keep_open and not spent,
            pipelining=self._pipelining,
            dirty=self._dirty,
            allowed=0 if self.memory.no_reset else PROBES_LIMIT - self._probes,
            limit=NO_RESET if self.memory.no_reset else ASKED_ENOUGH,
        )
        if self._inherited and preflight.planned > PROBES_LIMIT - self._probes:
            raise ConnectionEnded(
                "too much was asked on this connection to ask all of this as well"
            )
        with self.bounded(timeout):
            try:
                self.driver.run(preflight.conversation())
            except BaseException as error:
                self._break()
                self._note_reset(error)
                raise
        if not spent:
            self._open_transaction, self._dirty = preflight.open_transaction, preflight.dirty
        self._probes += preflight.probes
        refusals = [replace(o, position=places[o.position]) for o in preflight.refusals()]
        if not refusals:
            self._preflighted.update((id(e), (e, preflight.passed(e))) for e in unasked)
        return refusals, preflight.reconnect_reply(
            ReconnectPolicy(self._renewable, self._history.carried)
        )

    @property
    def _renewable(self) -> ServerMemory | None:
        return self.memory if self._connect is not None else None

    def _renew(self, deadline: float | None) -> None:
        """Go on over a new connection to the same server. Raises `TransportError`."""
        assert self._connect is not None
        self.quit()
        left = self.options.timeout if deadline is None else deadline - self._clock()
        other = self._connect(left)
        # All of the other's state but who it belongs to, which nobody knows yet.
        kept = {"pool", "_connect", "_sending", "_begun", "opened_at", "used_at"}
        vars(self).update({k: v for k, v in vars(other).items() if k not in kept})
        if self.pool is not None:
            self.pool.renewed(self)

    def _note_reset(self, error: BaseException) -> None:
        if isinstance(error, ResetRefused) and is_unknown(error.reply_to_reset):
            self.memory.no_reset = True

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

        return self._sent(begin(), begin, deadline, guard)

    def _sent(
        self,
        sending: Sending,
        begin: Callable[[], Sending],
        deadline: float | None,
        guard: Callable[[], object] | None,
    ) -> Iterator[Outcome]:
        """The outcomes of `sending`, and of those that go on over fresh connections."""
        while True:
            left = None if deadline is None else deadline - self._clock()
            yield from self._outcomes(sending, left, guard)
            if sending.reconnect_needed is None or self._connect is None:
                return
            log.info("%s: %s", self.host, sending.reconnect_needed)
            self._begun = self._begun or sending.begun
            try:
                self._renew(deadline)
            except TransportError as error:
                sending = begin()
                self.failed(sending, error)
                yield from self.handed_out(sending)
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
            window=messages if self._chunking else 0,
            octets=SHARED_OCTETS if shared else WINDOW_OCTETS,
            keep_untaken=keep_untaken,
            takes_rest=not shared,
        )
        connection = ConnectionState(
            self.extensions,
            self._pipelining,
            self._has_passed,
            self._open_transaction,
            dirty=self._dirty,
            proven=self.driver.proven,
            history=self._history,
            memory=self._renewable,
            messages_left=None if shared else self._messages_left(),
        )
        sending = self._sending = Sending(self._protocol, source, request, connection)
        if self._open_transaction is not None:
            self._open_transaction, self._dirty = None, True
        return sending

    def _messages_left(self) -> int | None:
        """Messages that may still be sent here before a fresh connection is better."""
        if self._connect is None or self.options.messages is None:
            return None
        return max(0, self.options.messages - self.messages)

    def window(self, window: int | None, *, strict: bool = False) -> int:
        """Messages on their way at once, if the caller of `ISession.send` says `window`."""
        return self.options.window or window or (1 if strict else WINDOW)

    def _has_passed(self, envelope: Envelope) -> bool:
        return self._preflighted.get(id(envelope), (envelope, False))[1]

    def _outcomes(
        self, sending: Sending, timeout: float | None, guard: Callable[[], object] | None
    ) -> Iterator[Outcome]:
        conversation, ready, driver = sending.conversation(), sending.ready, self.driver
        with self.bounded(timeout, guard):
            try:
                try:
                    self.check()
                    for _ in conversation:
                        # First: a caller who has seen enough must not find that more has left.
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
        yield from self.handed_out(sending)

    def failed(self, sending: Sending, error: TransportError) -> None:
        """What was being sent is over, and so is the connection."""
        sending.cut(str(error), error.reply)  # if the conversation has not even begun
        self._note_reset(error)
        self._lost = error.lost
        if isinstance(error, ReconnectNeeded):
            self.quit()
        self._break()

    def interrupted(self, sending: Sending) -> None:
        """The same, because of something that has nothing to do with it."""
        sending.cut("interrupted")
        self._break()

    def ended(self, sending: Sending) -> None:
        """What was being sent is over."""
        self._dirty = sending.dirty
        self.messages += sending.accepted
        if sending.accepted:
            self._probes = self._inherited = 0
        self._chunking_failed = self._chunking_failed or sending.chunking_failed
        self._history = sending.history
        self.memory.no_reset = self.memory.no_reset or sending.reset_failed
        if not self._protocol.idle:
            self._break()

    def handed_out(self, sending: Sending) -> Iterator[Outcome]:
        """The outcomes that are known."""
        ready = sending.ready
        while ready:
            yield ready[0]
            ready.popleft()  # not before the caller has come back for more: see `unsettled`

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

    # -- for the pool

    def forget(self, *, dirty: bool) -> None:
        """Forget the last user, who may have left a mail transaction open if `dirty`."""
        if dirty or self._open_transaction is not None:
            self._dirty = True
            self._probes += 1
        self._inherited = self._probes
        self._open_transaction = self._sending = None
        self._preflighted.clear()
        self.fresh = self.driver.proven = False

    @property
    def reusable(self) -> bool:
        """True if another user may have the connection: open, idle, ours, not worn out."""
        return (
            not self._closed
            and self.process == this_process()
            and self._probes < PROBES_LIMIT
            and self._history.refusals < REFUSALS_LIMIT
            and not (self._dirty and self.memory.no_reset)
            and self._protocol.idle
            and self._stream.quiet
        )

    def verify(self, timeout: float) -> bool:
        """Have the server answer NOOP, or the RSET that is due anyway, within `timeout` seconds.

        False, and closed, if it does not.
        """
        reset = self._dirty
        self.driver.proven = True  # there is `timeout` for it, and nothing else to be done
        group = CommandGroup([(Step.RSET, commands.RSET) if reset else (Step.NOOP, commands.NOOP)])
        with self.bounded(timeout):
            try:
                self.check()
                self.driver.run(group.answers(self._protocol, pipelining=False))
            except TransportError:
                self._break()
                return False
        self._dirty = False
        return True

    def quit(self, timeout: float = 0.0) -> None:
        """Say QUIT, wait `timeout` seconds at most for the answer, close. Never raises."""
        if self._closed:
            return
        if self.process == this_process() and self._protocol.idle and self._stream.quiet:
            with contextlib.suppress(TransportError, OSError):
                self._protocol.issue(Step.QUIT, commands.QUIT)
                self._stream.send(self._protocol.outgoing())
                if timeout:
                    self._stream.wait(False, timeout)
        self._break()

    def check(self) -> None:
        """Raise `ConnectionEnded` unless the connection is open, ours, and silent as it should be.

        After a fork it is the parent's: nothing may be said on it.
        """
        if self._closed or self.process != this_process():
            self._break()
            raise ConnectionEnded(f"the connection to {self.host} is closed")
        if not (self._protocol.idle and self._stream.quiet):
            self._break()
            raise ConnectionEnded(f"{self.host} has closed the connection, or spoke unasked")

    def _break(self) -> None:
        self._closed = True
        self._open_transaction = None
        self._protocol.discard()
        self._stream.close()

    @contextlib.contextmanager
    def bounded(
        self, timeout: float | None, guard: Callable[[], object] | None = None
    ) -> Iterator[None]:
        """See `Driver.bounded`."""
        self._protocol_log.refresh()
        with self.driver.bounded(timeout, guard):
            yield
