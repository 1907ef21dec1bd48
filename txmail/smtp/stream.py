"""The only file with a socket: octets over TCP or TLS, never blocking longer than it is told."""

from __future__ import annotations

import contextlib
import select
import socket
import ssl
from collections.abc import Sequence

from ..exceptions import TransportError

#: Octets asked of the kernel at once.
RECEIVE_SIZE = 64 * 1024
#: Buffers in one `sendmsg`, far below the kernel's limit of 1024.
_BUFFERS = 64

_QUICKACK = getattr(socket, "TCP_QUICKACK", None)


class Stream:
    """One connected socket. Every method returns at once, except `wait` and `start_tls`."""

    def __init__(self, sock: socket.socket) -> None:
        sock.setblocking(False)
        with contextlib.suppress(OSError):
            sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        self._socket = sock
        self._poll = select.poll()
        self._interest = 0

    @classmethod
    def connect(cls, host: str, port: int, timeout: float) -> Stream:
        """Connect to the first address of `host` that answers, within `timeout` seconds for each.

        Raises `TransportError`.
        """
        if timeout <= 0:
            raise TransportError(f"no time left to connect to {host}:{port}")
        try:
            return cls(socket.create_connection((host, port), timeout))
        except socket.gaierror as error:
            temporary = error.errno == socket.EAI_AGAIN
            raise TransportError(
                f"cannot resolve {host}: {error.strerror}", temporary=temporary
            ) from error
        except TimeoutError as error:
            raise TransportError(f"no connection to {host}:{port} in time") from error
        except OSError as error:
            raise TransportError(
                f"cannot connect to {host}:{port}: {error.strerror or error}"
            ) from error

    def start_tls(self, context: ssl.SSLContext, hostname: str, timeout: float) -> None:
        """Do the TLS handshake as client. Raises `TransportError`; then only `close` is left."""
        self._socket.settimeout(max(timeout, 0.001))
        try:
            self._socket = context.wrap_socket(self._socket, server_hostname=hostname)
        except OSError as error:
            raise TransportError(f"TLS handshake failed: {error.strerror or error}") from error
        self._socket.setblocking(False)
        self._poll, self._interest = select.poll(), 0

    @property
    def local_literal(self) -> str:
        """Our end's address as a literal for EHLO (RFC 5321 section 4.1.3)."""
        address = str(self._socket.getsockname()[0])
        return f"[IPv6:{address.partition('%')[0]}]" if ":" in address else f"[{address}]"

    @property
    def encrypted(self) -> bool:
        """True after `start_tls`."""
        return isinstance(self._socket, ssl.SSLSocket)

    def send(self, buffers: Sequence[bytes | memoryview]) -> int:
        """Write as much of `buffers` as the socket takes; return the number of octets, perhaps 0.

        Raises OSError if the connection cannot be written to any more.
        """
        if isinstance(self._socket, ssl.SSLSocket):
            return self._send_encrypted(buffers)
        try:
            return self._socket.sendmsg(buffers[:_BUFFERS])
        except BlockingIOError:
            return 0

    def _send_encrypted(self, buffers: Sequence[bytes | memoryview]) -> int:
        taken = 0
        for buffer in buffers:
            try:
                sent = self._socket.send(buffer)
            except (BlockingIOError, ssl.SSLWantReadError, ssl.SSLWantWriteError):
                break
            except OSError:
                if taken:
                    break  # the next call fails again, with nothing to forget
                raise
            taken += sent
            if sent < len(buffer):
                break
        return taken

    def receive(self) -> bytes | None:
        """What has arrived; None if nothing has, ``b""`` if the server has closed.

        Raises OSError if the connection was reset.
        """
        try:
            data = self._socket.recv(RECEIVE_SIZE)
        except (BlockingIOError, ssl.SSLWantReadError, ssl.SSLWantWriteError):
            return None
        except (ssl.SSLEOFError, ssl.SSLZeroReturnError):
            return b""
        if _QUICKACK is not None:
            with contextlib.suppress(OSError):
                self._socket.setsockopt(socket.IPPROTO_TCP, _QUICKACK, 1)
        return data

    def wait(self, write: bool, timeout: float) -> bool:
        """Wait for something to read, or, with `write`, for room to write. False on time-out.

        `timeout` in seconds.
        """
        if isinstance(self._socket, ssl.SSLSocket) and self._socket.pending():
            return True
        interest = select.POLLIN | (select.POLLOUT if write else 0)
        if interest != self._interest:
            self._poll.register(self._socket, interest)
            self._interest = interest
        return bool(self._poll.poll(max(0.0, timeout) * 1000))

    @property
    def quiet(self) -> bool:
        """True if the connection is open and has nothing to read: neither EOF nor a stray reply."""
        try:
            return not self.wait(False, 0)
        except (OSError, ValueError):
            return False

    def close(self) -> None:
        """Close without ceremony. Never blocks, never raises; may be called again."""
        with contextlib.suppress(OSError):
            self._socket.close()

    def __del__(self) -> None:
        # A transaction or a transport that was dropped without an end is no cause for a warning.
        if hasattr(self, "_socket"):
            self.close()
