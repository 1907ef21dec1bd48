"""The sockets of a scripted server: its listener, and connections that can be interrupted."""

from __future__ import annotations

import contextlib
import selectors
import socket
import ssl
import struct
import threading
from collections.abc import Callable

#: Seconds in which a thread has to end when the server stops; only a `Callback` can take longer.
STOP_TIMEOUT = 10.0

_CHUNK = 65536


class Interrupted(Exception):
    """The connection ends, because the server stops."""


class Wire:
    """One accepted socket, for one thread.

    `wake` becomes readable when the connection has to end; it is closed with the connection.
    """

    def __init__(self, connected: socket.socket, wake: socket.socket) -> None:
        self._socket = connected
        self._wake = wake
        connected.setblocking(False)
        connected.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        self._selector = selectors.DefaultSelector()
        self._selector.register(wake, selectors.EVENT_READ)
        self._selector.register(connected, selectors.EVENT_READ)

    def receive(self) -> bytes:
        """The next octets; empty at the end. Raises `Interrupted` or OSError."""
        while True:
            try:
                return self._socket.recv(_CHUNK)
            except (BlockingIOError, ssl.SSLWantReadError):
                self._wait(selectors.EVENT_READ)
            except ssl.SSLWantWriteError:
                self._wait(selectors.EVENT_WRITE)

    def send(self, octets: bytes) -> None:
        """Send all of `octets`. Raises `Interrupted` or OSError."""
        rest = memoryview(octets)
        while rest:
            try:
                rest = rest[self._socket.send(rest) :]
            except (BlockingIOError, ssl.SSLWantWriteError):
                self._wait(selectors.EVENT_WRITE)
            except ssl.SSLWantReadError:
                self._wait(selectors.EVENT_READ)

    def start_tls(self, context: ssl.SSLContext) -> None:
        """Do the handshake. Raises `Interrupted`, ssl.SSLError or OSError."""
        self._selector.unregister(self._socket)
        tls = context.wrap_socket(self._socket, server_side=True, do_handshake_on_connect=False)
        self._socket = tls
        self._selector.register(tls, selectors.EVENT_READ)
        while True:
            try:
                return tls.do_handshake()
            except ssl.SSLWantReadError:
                self._wait(selectors.EVENT_READ)
            except ssl.SSLWantWriteError:
                self._wait(selectors.EVENT_WRITE)

    def channel_binding(self) -> bytes | None:
        """The ``tls-unique`` of the connection (RFC 5929); TLS 1.3 has none."""
        tls = self._socket
        if not isinstance(tls, ssl.SSLSocket) or tls.version() != "TLSv1.2":
            return None
        return tls.get_channel_binding("tls-unique")

    def check(self) -> None:
        """Raise `Interrupted` if the server stops."""
        events = self._selector.select(0)
        if any(key.fileobj is self._wake for key, _ in events):
            raise Interrupted

    def finish(self) -> None:
        """Send no more (FIN). The client's octets can still be received."""
        with contextlib.suppress(OSError):
            if isinstance(self._socket, ssl.SSLSocket):
                self._socket.unwrap()
        with contextlib.suppress(OSError):
            socket.socket.shutdown(self._socket, socket.SHUT_WR)

    def reset_on_close(self) -> None:
        """Have `close` reset the connection (RST): octets under way may be lost."""
        with contextlib.suppress(OSError):
            linger = struct.pack("ii", 1, 0)
            self._socket.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, linger)

    def close(self) -> None:
        """Close the socket."""
        self._selector.close()
        self._wake.close()
        self._socket.close()

    def _wait(self, event: int) -> None:
        self._selector.modify(self._socket, event)
        events = self._selector.select()
        if any(key.fileobj is self._wake for key, _ in events):
            raise Interrupted


class Listening:
    """The time from a start to a stop: the listener, its threads, and the socket that ends them."""

    def __init__(self, host: str, port: int) -> None:
        self.listener = socket.create_server((host, port), backlog=128)
        self.listener.setblocking(False)
        #: closing `alarm` makes `wake`, and every copy of it, readable
        self.alarm, self.wake = socket.socketpair()
        #: True if connections end with a reset when `alarm` is closed
        self.reset = False
        self.accepting: threading.Thread | None = None
        self._serving: list[threading.Thread] = []

    def listen(self, serve: Callable[[socket.socket, socket.socket], Callable[[], None]]) -> None:
        """Start the listener's thread.

        The thread calls `serve` for each connection, with its socket and a `wake` of its own. The
        function that `serve` returns runs in the connection's thread.
        """
        self.accepting = threading.Thread(
            target=self._accept, args=(serve,), name="ScriptedServer", daemon=True
        )
        self.accepting.start()

    def _accept(self, serve: Callable[[socket.socket, socket.socket], Callable[[], None]]) -> None:
        with self.listener, self.wake, selectors.DefaultSelector() as selector:
            selector.register(self.listener, selectors.EVENT_READ)
            selector.register(self.wake, selectors.EVENT_READ)
            while all(key.fileobj is self.listener for key, _ in selector.select()):
                try:
                    connected, _ = self.listener.accept()
                except OSError:  # the client is gone already
                    continue
                conversation = serve(connected, self.wake.dup())
                thread = threading.Thread(target=conversation, name="ScriptedServer", daemon=True)
                self._serving = [*(t for t in self._serving if t.is_alive()), thread]
                thread.start()

    def end(self) -> list[str]:
        """End all threads, and wait for them. Returns the names of threads that go on."""
        self.alarm.close()
        if self.accepting is not None:
            self.accepting.join()  # from here on no thread is added
        others = [t for t in self._serving if t is not threading.current_thread()]
        for thread in others:
            thread.join(STOP_TIMEOUT)
        return [thread.name for thread in others if thread.is_alive()]
