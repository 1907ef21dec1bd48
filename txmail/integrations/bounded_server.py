"""A small HTTP server for a WSGI application, whose clients cannot use up the process.

It serves metrics and health, which machines ask for. `prometheus_client.start_http_server` does
not fit: it starts a thread for each connection without a limit, waits for ever for a slow client,
and answers to any Host. So anybody who reaches the port could take the worker's memory and threads,
and a page in a browser could read what is served on loopback (DNS rebinding). This server limits
the requests at once, and the octets and seconds of each; it takes one request a connection, GET
only, and only for the names of this machine.
"""

from __future__ import annotations

import contextlib
import io
import socket
import threading
import time
from collections.abc import Callable, Iterable
from socketserver import TCPServer
from typing import Any
from wsgiref.simple_server import WSGIRequestHandler, WSGIServer

from ..common.ascii_text import ascii_lower, is_digits
from ..common.logs import quiet_logger

log = quiet_logger("txmail")

#: Requests at once, enough for a few scrapes and probes. Further clients get 503.
MOST_REQUESTS = 8
#: Seconds in which a whole request has to arrive, and in which the answer has to leave.
PATIENCE = 10.0
#: Octets of a request, that is of its line and its headers.
MOST_OCTETS = 16 * 1024

_BUSY = (
    b"HTTP/1.0 503 Service Unavailable\r\nRetry-After: 1\r\nCache-Control: no-store\r\n"
    b"Content-Type: text/plain; charset=utf-8\r\nContent-Length: 22\r\n\r\ntoo many requests now\n"
)
_ALWAYS = [("Cache-Control", "no-store"), ("X-Content-Type-Options", "nosniff")]
_WILDCARDS = ("", "0.0.0.0", "::")  # noqa: S104 - these are no names of a host
_LOCAL_ADDRESS = "txmail.local_address"

Application = Callable[[dict[str, Any], Callable[..., Any]], Iterable[bytes]]


class BoundedServer:
    """Serves `application` at `host` and `port` from threads of its own."""

    def __init__(
        self,
        application: Application,
        host: str,
        port: int,
        *,
        hosts: Iterable[str] = (),
        most: int = MOST_REQUESTS,
        patience: float = PATIENCE,
    ) -> None:
        """Listen at `host` and `port`; port 0 is any free port. Raises OSError.

        Clients may call this machine by the names `hosts`, by localhost, by its own name, by
        `host`, and by the address at which a connection comes in. The server answers at most `most`
        requests at once, each in `patience` seconds.
        """
        family, _, _, _, address = socket.getaddrinfo(
            host or None, port, type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE
        )[0]
        names = {"localhost", "127.0.0.1", "::1", socket.gethostname(), *hosts, host}
        known = frozenset(map(_plain, names)) - {*_WILDCARDS}
        self._server = _Server(family, address, most, patience)
        self._server.set_app(_checked(application, known))
        self._thread = threading.Thread(
            target=self._server.serve_forever, name="txmail http", daemon=True
        )
        self._thread.start()

    @property
    def port(self) -> int:
        """The port on which the server listens."""
        return int(self._server.server_address[1])

    @property
    def url(self) -> str:
        """The URL of the server, without a path."""
        address = str(self._server.server_address[0])
        return (
            f"http://[{address}]:{self.port}" if ":" in address else f"http://{address}:{self.port}"
        )

    def stop(self) -> None:
        """Close the port and all connections, also those with a request under way."""
        with contextlib.suppress(OSError):
            self._server.socket.shutdown(
                socket.SHUT_RDWR
            )  # wakes the thread, where the system does that
        self._server.shutdown()
        self._server.server_close()
        self._thread.join()


class _Server(WSGIServer):
    request_queue_size = 16

    def __init__(self, family: int, address: Any, most: int, patience: float) -> None:
        self.address_family = family
        self.patience = patience
        self._slots = threading.BoundedSemaphore(most)
        self._lock = threading.Lock()
        self._busy: dict[socket.socket, threading.Thread] = {}
        super().__init__(address, _Handler)

    def server_bind(self) -> None:
        TCPServer.server_bind(self)  # HTTPServer would ask the DNS for our name
        self.server_name, self.server_port = str(self.server_address[0]), self.server_address[1]
        self.setup_environ()

    def process_request(self, request: Any, client_address: Any) -> None:
        """Answer in a thread of its own, or with 503 if there are too many."""
        if not self._slots.acquire(blocking=False):
            with contextlib.suppress(OSError):
                request.setblocking(False)
                request.send(_BUSY)
            self.shutdown_request(request)
            return
        thread = threading.Thread(
            target=self._answer, args=(request, client_address), name="txmail http", daemon=True
        )
        with self._lock:
            self._busy[request] = thread
        thread.start()

    def _answer(self, request: Any, client_address: Any) -> None:
        try:
            self.finish_request(request, client_address)
        except OSError:
            pass  # the client is gone, or too slow
        except Exception:
            log.exception("a request failed")
        finally:
            self.shutdown_request(request)
            with self._lock:
                self._busy.pop(request, None)
            self._slots.release()

    def server_close(self) -> None:
        super().server_close()
        with self._lock:
            busy = dict(self._busy)
        for request, thread in busy.items():
            with contextlib.suppress(OSError):
                request.shutdown(socket.SHUT_RDWR)
            thread.join(self.patience)

    def handle_error(self, request: Any, client_address: Any) -> None:
        """Do nothing: that a client is gone does not belong on standard error."""


class _Request(io.RawIOBase):
    """What a client sends: at most `MOST_OCTETS`, and within `patience` seconds."""

    def __init__(self, connection: socket.socket, patience: float) -> None:
        self._connection = connection
        self._left = MOST_OCTETS
        self._deadline = time.monotonic() + patience

    def readable(self) -> bool:
        return True

    def readinto(self, buffer: Any) -> int:
        seconds = self._deadline - time.monotonic()
        if seconds <= 0 or self._left <= 0:
            raise TimeoutError("a request that does not end")
        self._connection.settimeout(seconds)
        octets = self._connection.recv(min(len(buffer), self._left))
        buffer[: len(octets)] = octets
        self._left -= len(octets)
        return len(octets)


class _Handler(WSGIRequestHandler):
    server: _Server
    server_version, sys_version = "txmail", ""

    def setup(self) -> None:
        super().setup()
        self.rfile.close()
        self.rfile = io.BufferedReader(_Request(self.connection, self.server.patience))
        self.connection.settimeout(self.server.patience)

    def get_environ(self) -> dict[str, Any]:
        return {**super().get_environ(), _LOCAL_ADDRESS: self.connection.getsockname()[0]}

    def log_message(self, format: str, *args: Any) -> None:
        """Do nothing: a line for each scrape would hide the other lines of the log."""


def _checked(application: Application, names: frozenset[str]) -> Application:
    """`application` for allowed requests; an error for all others."""

    def checked(environ: dict[str, Any], start_response: Callable[..., Any]) -> Iterable[bytes]:
        def start(status: str, headers: list[tuple[str, str]], *rest: Any) -> Any:
            return start_response(status, [*headers, *_ALWAYS], *rest)

        host = _host_of(environ.get("HTTP_HOST", ""))
        if host is None or (host not in names and host != _plain(environ[_LOCAL_ADDRESS])):
            return _refused(start, "400 Bad Request", "not a Host of this server")
        if environ["REQUEST_METHOD"] != "GET":
            return _refused(start, "501 Not Implemented", "GET only")
        try:
            return application(environ, start)
        except Exception:
            log.exception("a request for %r failed", environ.get("PATH_INFO"))
            return _refused(start, "500 Internal Server Error", "see the log")

    return checked


def _refused(start: Callable[..., Any], status: str, why: str) -> list[bytes]:
    body = f"{why}\n".encode("ascii")
    start(
        status,
        [("Content-Type", "text/plain; charset=utf-8"), ("Content-Length", str(len(body)))],
    )
    return [body]


def _host_of(header: str) -> str | None:
    """The host of a Host header (RFC 9110 section 7.2); None if the header is malformed."""
    host, mark, port = header.rpartition(":")
    if not mark or "]" in port:
        host, port = header, ""
    if not host.isascii() or (port and not is_digits(port)):
        return None
    bracketed = host.startswith("[") and host.endswith("]")
    if ":" in host and not bracketed:
        return None
    return _plain(host[1:-1] if bracketed else host)


def _plain(host: str) -> str:
    """A host in the form that is compared: lower case, without a dot at its end."""
    mapped = ascii_lower(host).removeprefix("::ffff:") if "." in host else ascii_lower(host)
    return mapped.partition("%")[0].removesuffix(".")
