"""Serves one connection of a scripted server, with protocol, socket, script and records."""

from __future__ import annotations

import ssl
from collections.abc import Callable, Iterator
from types import MappingProxyType

from ._protocol import Output, ServerProtocol, StartTLS
from ._records import Received, Records
from ._script import Script, Signal, Step
from ._settings import MailTransaction, Settings
from ._wire import Interrupted, Wire


class Conversation:
    """One connection, from its greeting to its end."""

    def __init__(
        self,
        settings: Settings,
        tls_context: ssl.SSLContext | None,
        wire: Wire,
        records: Records,
        script: Script,
        resets: Callable[[], bool],
    ) -> None:
        self._tls_context, self._implicit_tls = tls_context, settings.implicit_tls
        self._wire, self._records, self._script, self._resets = wire, records, script, resets
        self._record = records.connect()
        self._protocol = ServerProtocol(settings, self)

    def hold(self) -> None:
        """Serve the connection to its end: the body of its thread."""
        try:
            self._talk()
        except Interrupted:
            if self._resets():
                self._wire.reset_on_close()
        except OSError:
            pass  # the client is gone, or refuses the certificate
        finally:
            self._wire.close()
            self._record.mark(closed=True)

    def _talk(self) -> None:
        if self._implicit_tls:
            self._start_tls()
        signal = self._perform(self._protocol.greet())
        while signal is None:
            octets = self._receive()
            if not octets:
                return
            signal = self._perform(self._protocol.receive(octets))
        if signal is Signal.RESET:
            self._wire.reset_on_close()
            return
        if signal is Signal.CLOSE:
            self._wire.finish()
            self._record.mark(closed=True)
        while self._receive():
            pass  # record the octets, and answer nothing

    def _perform(self, outputs: Iterator[Output]) -> Signal | None:
        """Carry out the outputs of the protocol. Replies without a pause leave in one write."""
        replies = bytearray()
        for output in outputs:
            if isinstance(output, bytes):
                replies += output
                continue
            self._send(replies)
            replies.clear()
            if isinstance(output, Signal):
                return output
            if isinstance(output, StartTLS):
                self._start_tls()
                self._protocol.tls_started()
            else:
                output.function()
                self._wire.check()
        self._send(replies)
        return None

    def _start_tls(self) -> None:
        if self._tls_context is not None:
            self._wire.start_tls(self._tls_context)
            self._record.mark(tls=True)

    def _receive(self) -> bytes:
        octets = self._wire.receive()
        if octets:
            self._record.add_octets("C", octets)
        return octets

    def _send(self, octets: bytearray) -> None:
        if octets:
            self._record.add_octets("S", bytes(octets))
            self._wire.send(bytes(octets))

    # For the protocol

    def choose(self, verb: str, argument: str, content: bytes) -> tuple[Step, ...] | None:
        """The script's steps for a command, or None."""
        with self._records.condition:
            return self._script.choose(verb, argument, content, self._record.number)

    def command(self, line: str) -> None:
        """Record a command line."""
        self._record.add_command(line)

    def channel_binding(self) -> bytes | None:
        """The ``tls-unique`` of the connection, if it has one."""
        return self._wire.channel_binding()

    def accepted(self, transaction: MailTransaction, content: bytes) -> None:
        """Record an accepted message."""
        received = Received(
            transaction.sender,
            tuple(transaction.recipients),
            content,
            self._record.number,
            MappingProxyType(dict(transaction.parameters)),
        )
        self._records.receive(received)
