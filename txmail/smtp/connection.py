"""One connection to an SMTP server, from the greeting to its end: blocking, with deadlines."""

from __future__ import annotations

import contextlib
import ssl
from collections.abc import Callable, Iterator

from ..common.per_process import this_process
from ..exceptions import TransportError
from ..secret import Secret
from . import commands
from .connection_state import NO_HISTORY, ConnectionHistory
from .driver import Driver
from .extensions import Extensions
from .failure_policy import Step
from .handshake import Handshake
from .log import ProtocolLog
from .options import Options
from .preflight_record import PreflightRecord
from .protocol import Protocol
from .refusals import REFUSALS_LIMIT
from .sending import Sending
from .server_memory import ServerMemory
from .stream import Stream
from .streamed_message import is_unknown
from .transactions import CommandGroup, ConnectionEnded, Conversation, ResetRefused


class Connection:
    """One connection: its socket, and what the client has learned on it."""

    def __init__(
        self, stream: Stream, options: Options, memory: ServerMemory, clock: Callable[[], float]
    ) -> None:
        """The greeting is not read yet: see `greet`. Connections to one server share `memory`."""
        self.stream = stream
        self.options = options
        self._memory = memory
        self._log = ProtocolLog(options.name)
        self.protocol = Protocol(self._log)
        self.driver = Driver(stream, self.protocol, options.name, options.timeout, clock)
        self.preflights = PreflightRecord(self.protocol, memory)
        self.extensions = Extensions()
        #: the process that the connection belongs to
        self._process = this_process()
        self._hostname = options.local_hostname or stream.local_literal
        #: True once the connection is gone
        self.closed = False
        #: messages accepted here
        self.messages = 0
        #: the mail that was sent here before
        self.history: ConnectionHistory = NO_HISTORY
        #: True once the server has shown that it does not know BDAT, whatever it offers
        self._chunking_failed = False

    @property
    def pipelining(self) -> bool:
        """True if several commands may share a write."""
        return self.options.pipelining and self.extensions.pipelining

    @property
    def chunking(self) -> bool:
        """True if messages can be streamed."""
        offered = self.extensions.chunking and self.pipelining
        wanted = self.options.chunking and not self._chunking_failed
        return offered and wanted and not self._memory.no_reset

    @property
    def silent(self) -> bool:
        """True if the connection is open with nothing to read, and nothing is unanswered."""
        return self.protocol.idle and self.stream.quiet

    @property
    def reusable(self) -> bool:
        """True if another user may have the connection: it is open, idle, and not worn out."""
        return (
            not self.closed
            and self._process == this_process()
            and not self.preflights.exhausted
            and self.history.refusals < REFUSALS_LIMIT
            and not (self.preflights.dirty and self._memory.no_reset)
            and self.silent
        )

    def greet(
        self,
        timeout: float,
        tls: ssl.SSLContext | None = None,
        password: Secret | None = None,
    ) -> None:
        """Read the greeting, say EHLO, encrypt and log in as the options say.

        `timeout` is in seconds. `tls` is the context for the options' mode. `password` is the value
        that the options' source has given for this connection; without it the source is asked.
        Raises `TransportError`, or `ConfigurationError` if the source has no password any more; the
        connection is closed then.
        """
        handshake = Handshake(self.stream, self.protocol, self.driver, self.options, self._hostname)
        with self.bounded(timeout):
            try:
                self.extensions = handshake.run(tls, password)
            except BaseException:
                self.abandon()
                raise

    def run(self, conversation: Conversation, timeout: float | None) -> None:
        """Drive `conversation` to its end within `timeout` seconds. Raises `TransportError`."""
        with self.bounded(timeout):
            try:
                self.driver.run(conversation)
            except BaseException as error:
                self.abandon()
                self.note_reset(error)
                raise

    @contextlib.contextmanager
    def bounded(
        self, timeout: float | None, guard: Callable[[], object] | None = None
    ) -> Iterator[None]:
        """See `Driver.bounded`."""
        self._log.refresh()
        with self.driver.bounded(timeout, guard):
            yield

    def check(self) -> None:
        """Raise `ConnectionEnded` unless the connection is open, silent, and of this process.

        After a fork the connection is the parent's: the child must not write to it.
        """
        if self.closed or self._process != this_process():
            self.abandon()
            raise ConnectionEnded(f"the connection to {self.options.name} is closed")
        if not self.silent:
            self.abandon()
            raise ConnectionEnded(
                f"{self.options.name} has closed the connection, or spoke unasked"
            )

    def verify(self, timeout: float) -> bool:
        """Have the server answer NOOP, or the RSET that is due anyway, within `timeout` seconds.

        False if it does not; the connection is closed then.
        """
        reset = self.preflights.dirty
        self.driver.proven = True  # the whole `timeout` is for this reply
        group = CommandGroup([(Step.RSET, commands.RSET) if reset else (Step.NOOP, commands.NOOP)])
        with self.bounded(timeout):
            try:
                self.check()
                self.driver.run(group.answers(self.protocol, pipelining=False))
            except TransportError:
                self.abandon()
                return False
        self.preflights.dirty = False
        return True

    def note_sent(self, sending: Sending) -> None:
        """Remember what `sending`, which is over, has shown about connection and server."""
        preflights = self.preflights
        preflights.dirty = sending.dirty
        self.messages += sending.accepted
        if sending.accepted:
            preflights.note_accepted()
        self._chunking_failed = self._chunking_failed or sending.chunking_failed
        self.history = sending.history
        self._memory.no_reset = self._memory.no_reset or sending.reset_failed
        if not self.protocol.idle:
            self.abandon()

    def note_reset(self, error: BaseException) -> None:
        """Remember that the server does not know RSET, if `error` says so."""
        if isinstance(error, ResetRefused) and is_unknown(error.reply_to_reset):
            self._memory.no_reset = True

    def quit(self, timeout: float = 0.0) -> None:
        """Say QUIT, wait at most `timeout` seconds for the answer, and close. Never raises."""
        if self.closed:
            return
        if self._process == this_process() and self.silent:
            with contextlib.suppress(TransportError, OSError):
                self.protocol.issue(Step.QUIT, commands.QUIT)
                self.stream.send(self.protocol.outgoing())
                if timeout:
                    self.stream.wait(False, timeout)
        self.abandon()

    def abandon(self) -> None:
        """Close without QUIT. Never raises."""
        self.closed = True
        self.preflights.open_transaction = None
        self.protocol.discard()
        self.stream.close()
