"""Reads and writes octets over TCP or TLS, without blocking.

This is one of three files with sockets, beside `happy_eyeballs` and `resolver`.
"""

from __future__ import annotations

import contextlib
import ipaddress
import select
import socket
import ssl
import weakref
from collections.abc import Sequence

from ..exceptions import TransportError
from .happy_eyeballs import Connector

#: Octets to ask of the kernel at once.
RECEIVE_SIZE = 64 * 1024
#: Buffers in one `sendmsg`. The kernel's limit is 1024.
_BUFFERS = 512
#: Octets in one TLS record at most (RFC 8446 section 5.1).
_RECORD_SIZE = 16 * 1024

_QUICKACK = getattr(socket, "TCP_QUICKACK", None)


class Stream:
    """One connected socket. Every method returns at once, except `wait` and `start_tls`."""

    def __init__(self, sock: socket.socket) -> None:
        sock.setblocking(False)
        with contextlib.suppress(OSError):
            sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        self._own(sock)
        self._poll = select.poll()
        self._interest = 0
        #: True if octets came that were not acknowledged yet
        self._owes = False

    @classmethod
    def connect(
        cls, host: str, port: int, timeout: float, connector: Connector | None = None
    ) -> Stream:
        """Connect to the first address of `host` that answers, within `timeout` seconds.

        `connector` remembers the addresses that did not answer. Raises `TransportError`.
        """
        connector = connector if connector is not None else Connector()
        return cls(connector.connect(host, port, timeout))

    def start_tls(self, context: ssl.SSLContext, hostname: str, timeout: float) -> None:
        """Do the TLS handshake as client. After a `TransportError` only `close` may be called."""
        self._socket.settimeout(max(timeout, 0.001))
        try:
            self._socket.getpeername()  # `wrap_socket` leaks a copy of a socket that was reset
            # Owned before the handshake, so that an interrupt leaves no socket open.
            self._own(
                context.wrap_socket(
                    self._socket, server_hostname=hostname, do_handshake_on_connect=False
                )
            )
            self._shake_hands()
        except ssl.SSLCertVerificationError as error:
            raise TransportError(
                f"the certificate of {hostname} does not verify: {error.verify_message}",
                temporary=False,
            ) from error
        except (OSError, ValueError) as error:
            reason = getattr(error, "strerror", None) or error
            raise TransportError(f"TLS handshake failed: {reason}") from error
        self._socket.setblocking(False)
        self._poll, self._interest = select.poll(), 0

    def _shake_hands(self) -> None:
        assert isinstance(self._socket, ssl.SSLSocket)
        self._socket.do_handshake()

    @property
    def local_literal(self) -> str:
        """The local address as a literal for EHLO (RFC 5321 section 4.1.3)."""
        address = str(self._socket.getsockname()[0])
        return f"[IPv6:{address.partition('%')[0]}]" if ":" in address else f"[{address}]"

    @property
    def loopback(self) -> bool:
        """True if the server is on this machine, whatever its name. False if it is gone."""
        try:
            address = ipaddress.ip_address(str(self._socket.getpeername()[0]))
        except OSError:
            return False
        return (getattr(address, "ipv4_mapped", None) or address).is_loopback

    @property
    def encrypted(self) -> bool:
        """True after `start_tls`."""
        return isinstance(self._socket, ssl.SSLSocket)

    def channel_binding(self) -> tuple[str, bytes] | None:
        """Type and data of the channel binding (RFC 5929), None without TLS 1.2.

        TLS 1.3 has ``tls-exporter`` (RFC 9266), which the `ssl` module does not offer.
        """
        if not isinstance(self._socket, ssl.SSLSocket) or self._socket.version() != "TLSv1.2":
            return None
        data = self._socket.get_channel_binding("tls-unique")
        return None if data is None else ("tls-unique", data)

    def send(self, buffers: Sequence[bytes | memoryview]) -> int:
        """Write as much of `buffers` as the socket takes; the number of octets, perhaps 0.

        Raises OSError if the connection cannot be written to any more.
        """
        if isinstance(self._socket, ssl.SSLSocket):
            return self._send_record(buffers)
        try:
            taken = self._socket.sendmsg(
                buffers if len(buffers) <= _BUFFERS else buffers[:_BUFFERS]
            )
        except BlockingIOError:
            return 0
        self._owes = False
        return taken

    def _send_record(self, buffers: Sequence[bytes | memoryview]) -> int:
        """Send the head of `buffers` as one TLS record.

        If the socket is full, OpenSSL keeps the record and wants the same octets again. It gets
        them, because only octets that it took are ever removed from the head.
        """
        record = bytearray()
        for buffer in buffers:
            record += memoryview(buffer)[: _RECORD_SIZE - len(record)]
            if len(record) == _RECORD_SIZE:
                break
        try:
            return self._socket.send(record)
        except (BlockingIOError, ssl.SSLWantReadError, ssl.SSLWantWriteError):
            return 0

    def receive(self) -> bytes | None:
        """The octets that have arrived; None if none have, ``b""`` if the server has closed.

        Raises OSError if the connection was reset.
        """
        try:
            data = self._socket.recv(RECEIVE_SIZE)
        except (BlockingIOError, ssl.SSLWantReadError, ssl.SSLWantWriteError):
            return None
        except (ssl.SSLEOFError, ssl.SSLZeroReturnError):
            return b""
        self._owes = True
        return data

    def acknowledge(self) -> None:
        """Acknowledge at once what came, before waiting for more. To send acknowledges as well.

        A server with Nagle's algorithm sends no small segment before the last one is acknowledged.
        A client that acknowledges late would wait 40 ms for it each time.
        """
        if self._owes and _QUICKACK is not None:
            self._owes = False
            try:  # noqa: SIM105 - contextlib.suppress costs more than the call
                self._socket.setsockopt(socket.IPPROTO_TCP, _QUICKACK, 1)
            except OSError:
                pass

    def wait(self, write: bool, timeout: float) -> bool:
        """Wait `timeout` seconds for octets to read or, with `write`, for room to write.

        False if neither came.
        """
        if self.buffered:
            return True
        self.acknowledge()
        interest = select.POLLIN | (select.POLLOUT if write else 0)
        if interest != self._interest:
            self._poll.register(self._socket, interest)
            self._interest = interest
        return bool(self._poll.poll(max(0.0, timeout) * 1000))

    def fileno(self) -> int:
        """The descriptor, for a caller that polls several connections at once."""
        return self._socket.fileno()

    @property
    def buffered(self) -> bool:
        """True if there are octets to read that `select.poll` does not see."""
        return isinstance(self._socket, ssl.SSLSocket) and bool(self._socket.pending())

    @property
    def quiet(self) -> bool:
        """True if the connection is open with nothing to read: neither EOF nor a stray reply."""
        try:
            # Under TLS the octets may be a session ticket, which is no reply.
            return not self.wait(False, 0) or (self.encrypted and self.receive() is None)
        except (OSError, ValueError):
            return False

    def close(self) -> None:
        """Close the socket. Never blocks, never raises; may be called again."""
        with contextlib.suppress(OSError):
            self._socket.close()

    def _own(self, sock: socket.socket) -> None:
        # A stream that is dropped without `close` must not cause a ResourceWarning. (A finalizer:
        # in a reference cycle the socket's own __del__ could run before ours.)
        self._socket = sock
        weakref.finalize(self, sock.close)
