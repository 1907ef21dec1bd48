"""What the tests of the SMTP client share: dialogues without I/O, raw servers, a cutting relay."""

from __future__ import annotations

import contextlib
import shutil
import socket
import ssl
import struct
import subprocess
import threading

import pytest

from txmail.envelope import Envelope
from txmail.smtp.connection_state import ConnectionState
from txmail.smtp.extensions import Extensions
from txmail.smtp.options import Options
from txmail.smtp.preflight import PROBES_LIMIT, Preflight
from txmail.smtp.protocol import Protocol
from txmail.smtp.send_request import SendRequest
from txmail.smtp.sending import Sending
from txmail.smtp.session import Session
from txmail.smtp.stream import Stream
from txmail.smtp.streaming import WINDOW_OCTETS
from txmail.smtp.transactions import ConnectionEnded
from txmail.testing import CLOSE, RESET
from txmail.testing._protocol import ServerProtocol
from txmail.testing._script import Rule, Script, steps_of
from txmail.testing._settings import Settings
from txmail.transports import from_url

PIPELINING = Extensions(pipelining=True, eightbitmime=True, smtputf8=True, size=True)
STREAMING = Extensions(
    esmtp=True, pipelining=True, chunking=True, eightbitmime=True, smtputf8=True, size=True
)
LOCKSTEP = Extensions()
#: what a `ScriptedServer` has to offer to get messages in a stream
CHUNKING = (
    "PIPELINING",
    "CHUNKING",
    "8BITMIME",
    "SMTPUTF8",
    "ENHANCEDSTATUSCODES",
    "SIZE 26214400",
)

OK = b"250 2.0.0 Ok\r\n"
GO_AHEAD = b"354 Go ahead\r\n"
NO_SUCH_USER = b"550 5.1.1 no such user\r\n"
NO_RECIPIENTS = b"503 5.5.1 no valid recipients\r\n"


def make_envelope(
    number=1, recipients=("b@example.com",), sender="a@example.com", body=b"Hello.\r\n"
):
    """An envelope whose octets nobody else's have."""
    head = b"Message-ID: <%d@example.com>\r\nSubject: %d\r\n\r\n" % (number, number)
    return Envelope(sender, recipients, head + body)


def statuses(outcomes):
    return [str(outcome.status) for outcome in outcomes]


class Dialogue:
    """A conversation fed by hand: `writes` has what it wrote, one entry for each write."""

    def __init__(self, extensions=PIPELINING):
        self.extensions = extensions
        self.protocol = Protocol()
        self.protocol.receive(b"220 mx.example.com ESMTP\r\n")
        self.protocol.next_reply()
        self.writes = []
        self.conversation = None
        self.error = None
        self.ended = False

    def sending(
        self,
        *envelopes,
        source=None,
        strict=True,
        passed=(),
        open_transaction=None,
        dirty=None,
        window=0,
        octets=WINDOW_OCTETS,
        keep_untaken=False,
    ):
        """Begin to send `envelopes`, or what `source` iterates over; the `Sending`.

        Unless `dirty` says otherwise a stream is on a connection that an aborted transaction has
        used: RSET stands in front of its first message too.
        """
        if dirty is None:
            dirty = bool(window) and open_transaction is None
        request = SendRequest(
            strict=strict, window=window, octets=octets, keep_untaken=keep_untaken
        )
        connection = ConnectionState(
            self.extensions,
            self.extensions.pipelining,
            lambda envelope: envelope in passed,
            open_transaction,
            dirty,
        )
        given = envelopes if source is None else source
        sending = Sending(self.protocol, given, request, connection)
        self._begin(sending.conversation())
        return sending

    def preflight(
        self, *envelopes, always=False, keep_open=True, dirty=False, allowed=PROBES_LIMIT
    ):
        """Begin to ask; the `Preflight`."""
        preflight = Preflight(
            self.protocol,
            self.extensions,
            envelopes,
            always=always,
            keep_open=keep_open,
            pipelining=self.extensions.pipelining,
            dirty=dirty,
            allowed=allowed,
        )
        self._begin(preflight.conversation())
        return preflight

    def _begin(self, conversation):
        self.conversation = conversation
        self.ended = False
        self._go_on()

    def _go_on(self, error=None):
        try:
            self.conversation.throw(error) if error else next(self.conversation)
        except StopIteration:
            self.ended = True
        except Exception as raised:
            self.ended, self.error = True, raised

    def write(self, octets=None):
        """Let the socket accept that many `octets` of what waits, by default all; return them."""
        waiting = b"".join(self.protocol.outgoing())
        taken = waiting if octets is None else waiting[:octets]
        self.protocol.note_written(len(taken))
        return taken

    def answer(self, *replies):
        """Write all that is due and give the server's answers to it; the octets written."""
        written = self.write()
        self.writes.append(written)
        self.feed(*replies)
        return written

    def feed(self, *replies):
        """Give the server's octets to the conversation, as far as it takes them."""
        self.protocol.receive(b"".join(replies))
        while self.protocol.ready and not self.ended:
            self._go_on()

    def end(self, problem="the server closed the connection", reply=None):
        """No more answers will come."""
        self._go_on(ConnectionEnded(problem, reply=reply))


class Peer:
    """A scripted server without a socket, for a `Dialogue` to talk to.

    It hears what was written and says what it has to say to that; `closed` once it said its last.
    """

    def __init__(self, *, exim_like=False, extensions=CHUNKING, max_recipients=None):
        settings = Settings("mx", extensions, exim_like=exim_like, max_recipients=max_recipients)
        self._script = Script()
        self._protocol = ServerProtocol(settings, self)
        #: (sender, recipients, content) of what it has accepted
        self.messages = []
        self.commands = []
        self.closed = False
        assert list(self._protocol.greet())
        self.hear(b"EHLO client\r\n")

    def on(self, verb, action, *, matching="", after=0, times=1):
        """As `ScriptedServer.on`."""
        self._script.add(Rule(verb, steps_of(action), matching, after, times))

    def hear(self, octets):
        said = b""
        for output in () if self.closed else self._protocol.receive(octets):
            if not isinstance(output, bytes):
                assert output in (CLOSE, RESET)
                self.closed = True
                break
            said += output
        return said

    # What its protocol asks and tells

    def choose(self, verb, argument, content):
        return self._script.choose(verb, argument, content, 1)

    def command(self, line):
        self.commands.append(line)

    def channel_binding(self):
        return None

    def accepted(self, transaction, content):
        self.messages.append((transaction.sender, tuple(transaction.recipients), content))


def converse(dialogue, peer):
    """Let both talk until the conversation is over."""
    while not dialogue.ended:
        replies = peer.hear(dialogue.write())
        if replies:
            dialogue.feed(replies)
        elif peer.closed:
            dialogue.end()
        else:
            raise AssertionError("both wait for each other")


def lines(octets):
    """Commands in one write."""
    assert octets.endswith(b"\r\n") or not octets
    return octets.decode().split("\r\n")[:-1]


@contextlib.contextmanager
def opened(server, timeout=10, **options):
    """A session with a `ScriptedServer` or at an address, outside any pool."""
    host, port = getattr(server, "address", server)
    made = Options(host=host, port=port, local_hostname="client.example", **options)
    session = Session(Stream.connect(host, port, 10), made)
    session.greet(timeout)
    try:
        yield session
    finally:
        session.close()


@contextlib.contextmanager
def transport_to(server, query="local_hostname=client.example", **_):
    """An SMTP transport with a pool."""
    host, port = getattr(server, "address", server)
    transport = from_url(f"smtp://{host}:{port}?{query}")
    try:
        yield transport
    finally:
        transport.close()


def certificates(folder):
    """A self-signed certificate: an `ssl.SSLContext` for a server that has it."""
    openssl = shutil.which("openssl")
    if openssl is None:
        pytest.skip("there is no openssl command to make a certificate with")
    key, certificate = folder / "key.pem", folder / "certificate.pem"
    subprocess.run(
        [
            *(openssl, "req", "-x509", "-newkey", "rsa:2048", "-nodes", "-days", "2"),
            *("-keyout", key, "-out", certificate, "-subj", "/CN=localhost"),
            *("-addext", "subjectAltName=DNS:localhost,IP:127.0.0.1"),
        ],
        check=True,
        capture_output=True,
    )
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(certificate, key)
    return context


class RawServer:
    """A server that does with each connection what `serve` does, in a thread.

    `serve` gets the socket and a `threading.Event` which is set when the server stops.
    """

    def __init__(self, serve):
        self._serve = serve
        self._listener = socket.create_server(("127.0.0.1", 0))
        self.address = self._listener.getsockname()[:2]
        self.stopping = threading.Event()
        self._sockets = []
        self._threads = []
        self._accepting = threading.Thread(target=self._accept, daemon=True)

    def _accept(self):
        while True:
            try:
                connected, _ = self._listener.accept()
            except OSError:
                return
            if self.stopping.is_set():
                connected.close()
                return
            self._sockets.append(connected)
            thread = threading.Thread(target=self._hold, args=(connected,), daemon=True)
            self._threads.append(thread)
            thread.start()

    def _hold(self, connected):
        with connected, contextlib.suppress(OSError):
            self._serve(connected, self.stopping)

    def __enter__(self):
        self._accepting.start()
        return self

    def __exit__(self, *_):
        self.stopping.set()
        with contextlib.suppress(OSError), socket.create_connection(self.address):
            pass  # wakes accept
        self._accepting.join(10)
        self._listener.close()
        for connected in self._sockets:
            with contextlib.suppress(OSError):
                connected.shutdown(socket.SHUT_RDWR)
        for thread in self._threads:
            thread.join(10)
            assert not thread.is_alive()


def greeted(connected, extensions=b"250-mx\r\n250-PIPELINING\r\n250 SIZE\r\n"):
    """Do greeting and EHLO on a raw server's socket; what reads its lines from here on."""
    connected.sendall(b"220 mx\r\n")
    reader = connected.makefile("rb")
    assert reader.readline().startswith(b"EHLO ")
    connected.sendall(extensions)
    return reader


class CuttingRelay:
    """Passes on what comes, and cuts both connections after so many octets of one direction.

    It serves one connection, in the caller's thread: `pump` returns when it is over. `passed` are
    the octets of client and server that were passed on.
    """

    def __init__(self, target, *, client_octets=None, server_octets=None, reset=False):
        self._listener = socket.create_server(("127.0.0.1", 0))
        self.address = self._listener.getsockname()[:2]
        self._target = target
        self._left = [client_octets, server_octets]
        self._reset = reset
        self.passed = [0, 0]
        self._thread = threading.Thread(target=self._run, daemon=True)

    def __enter__(self):
        self._thread.start()
        return self

    def __exit__(self, *_):
        self._listener.close()
        self._thread.join(10)
        assert not self._thread.is_alive()

    def _run(self):
        try:
            client, _ = self._listener.accept()
        except OSError:
            return
        server = socket.create_connection(self._target)
        with client, server, contextlib.suppress(OSError):
            pair = (client, server)
            for connected in pair:
                connected.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
            back = threading.Thread(target=self._pump, args=(1, pair), daemon=True)
            back.start()
            self._pump(0, pair)
            back.join(10)

    def _pump(self, way, pair):
        source, target = pair[way], pair[1 - way]
        with contextlib.suppress(OSError):
            while self._left[way] != 0 and (octets := source.recv(65536)):
                if self._left[way] is not None:
                    octets = octets[: self._left[way]]
                    self._left[way] -= len(octets)
                target.sendall(octets)
                self.passed[way] += len(octets)
        self._cut(pair)

    def _cut(self, pair):
        for connected in pair:
            with contextlib.suppress(OSError):
                if self._reset:
                    linger = struct.pack("ii", 1, 0)
                    connected.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, linger)
                connected.shutdown(socket.SHUT_RDWR)
