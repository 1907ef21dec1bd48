"""Hostile clients of the metrics: other Hosts, many at once, slow and endless ones."""

from __future__ import annotations

import contextlib
import re
import socket
import struct
import threading
import tomllib
from pathlib import Path

import pytest

pytest.importorskip("sqlalchemy")
pytest.importorskip("prometheus_client")

from txmail.events import Events
from txmail.integrations.bounded_server import MOST_OCTETS, BoundedServer
from txmail.integrations.prometheus import Metrics, serve

#: Requests at once in these tests, and seconds for each that nobody should have to wait for.
MOST, LONG = 3, 60.0


@pytest.fixture
def metrics(queue):
    return Metrics(queue, Events())


@pytest.fixture
def serving():
    """Start bounded servers; of an application that says what it was asked for."""
    started = []

    def start(application=None, host="127.0.0.1", **options):
        options = {"most": MOST, "patience": LONG, **options}
        started.append(BoundedServer(application or path_of, host, 0, **options))
        return started[-1]

    yield start
    for server in started:
        server.stop()


def path_of(environ, start_response):
    start_response("200 OK", [("Content-Type", "text/plain")])
    return [environ["PATH_INFO"].encode("latin-1")]


def ask(server, host="localhost", path="/metrics", *, head=b"", method="GET", to="127.0.0.1"):
    """The status and the whole answer to one request."""
    hosts = [host] if isinstance(host, str) else host or []
    lines = [f"{method} {path} HTTP/1.1\r\n".encode(), head]
    lines += [f"Host: {each}\r\n".encode("latin-1") for each in hosts]
    return answer_to(server, b"".join(lines) + b"\r\n", to)


def answer_to(server, octets, to="127.0.0.1"):
    with socket.create_connection((to, server.port), 30) as connected:
        with contextlib.suppress(OSError):
            connected.sendall(octets)
        return read(connected)


def read(connected):
    answer = b""
    with contextlib.suppress(OSError):
        while octets := connected.recv(65536):
            answer += octets
    found = re.match(rb"HTTP/1\.[01] ([0-9]{3}) ", answer)
    return (int(found[1]) if found else None), answer


FOREIGN = [
    "evil.example",
    "localhost.evil.example",
    "evil.example:9187",
    "127.0.0.1.evil.example",
    "192.0.2.1",
    "127.0.0.2",
    "0.0.0.0",
    "[::2]",
    "::1",
    "localhost:80:80",
    "localhost:eighty",
    "localhost, evil.example",
    "localho\u017ft".encode().decode("latin-1"),
    "user@localhost",
    "",
    " ",
    (),
    ("localhost", "localhost"),
    ("localhost", "evil.example"),
]


@pytest.mark.representative(every=4)
@pytest.mark.parametrize("path", ["/metrics", "/health", "/"])
@pytest.mark.parametrize("host", FOREIGN)
def test_s15_a_request_for_another_host_is_refused(metrics, host, path):
    """A page in a browser that has its own name lead to us (DNS rebinding)."""
    server = serve(metrics, 0)
    try:
        status, answer = ask(server, host, path)
    finally:
        server.stop()
    assert status == 400
    assert b"txmail_" not in answer
    assert b"problems" not in answer
    assert b"evil" not in answer


@pytest.mark.parametrize(
    "host",
    [
        "localhost",
        "LocalHost:9187",
        "localhost.",
        "127.0.0.1",
        "127.0.0.1:1",
        "[::1]",
        "[::1]:9187",
        "metrics.internal",
        "Metrics.Internal.:443",
        "[2001:db8::1]:9187",
        socket.gethostname(),
    ],
)
def test_s15_our_own_names_and_those_that_are_listed_are_not(metrics, host):
    """The other half: whoever is meant is answered."""
    server = serve(metrics, 0, hosts=["metrics.internal", "2001:DB8::1"])
    try:
        status, answer = ask(server, host)
    finally:
        server.stop()
    assert status == 200
    assert b"txmail_queue_up 1.0" in answer


def test_s15_the_address_that_was_connected_to_is_a_name_of_ours(serving):
    """A scraper calls us by the address it knows, whichever of the machine's it is."""
    server = serving(host="0.0.0.0")
    assert ask(server, "127.0.0.2:9187", to="127.0.0.2")[0] == 200
    assert ask(server, "127.0.0.3", to="127.0.0.2")[0] == 400
    assert ask(server, "0.0.0.0", to="127.0.0.2")[0] == 400


@pytest.mark.parametrize("target", ["http://evil.example/metrics", "//evil.example/metrics", "*"])
def test_s15_a_target_with_a_host_of_its_own_is_nothing_here(metrics, target):
    """The second place where a request can name a host (RFC 9112 3.2.2)."""
    server = serve(metrics, 0)
    try:
        assert ask(server, "localhost", target)[0] == 404
    finally:
        server.stop()


@pytest.mark.representative(every=2)
@pytest.mark.parametrize("method", ["POST", "PUT", "DELETE", "OPTIONS", "HEAD", "CONNECT", "get"])
def test_s15_nothing_but_get_is_known(serving, method):
    """What cannot be asked for cannot be abused."""
    assert ask(serving(), method=method)[0] == 501


def threads():
    return [thread for thread in threading.enumerate() if thread.name == "txmail http"]


def connect(stack, server, octets=b"GET /metrics HTTP/1.1\r\nHost: local"):
    connected = stack.enter_context(socket.create_connection(("127.0.0.1", server.port), 30))
    connected.sendall(octets)
    return connected


def occupy(stack, server):
    """Have all threads of `server` wait for the end of a request."""
    busy = [connect(stack, server) for _ in range(MOST)]
    while ask(server)[0] != 503:
        pass
    return busy


@pytest.mark.parametrize("first", [b"", b"G", b"GET /metrics HTTP/1.1\r\n", b"GET / HTTP/1.1\r\nH"])
def test_s15_clients_that_wait_use_up_so_many_threads_and_no_more(serving, first):
    """A thread for each that connects, and no end of those."""
    server = serving()
    before = len(threads())
    with contextlib.ExitStack() as stack:
        occupy(stack, server)
        late = [connect(stack, server, first) for _ in range(12)]
        assert [read(each)[0] for each in late] == [503] * 12
        assert len(threads()) == before + MOST


def test_s15_it_goes_on_when_they_are_gone(serving):
    """A bound that is never given back would be another way to stop it."""
    server = serving()
    for _ in range(3):
        with contextlib.ExitStack() as stack:
            busy = occupy(stack, server)
            for connected in busy[1:]:
                # Abruptly, with a reset.
                connected.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
                connected.close()
            busy[0].sendall(b"host\r\n\r\n")
            assert read(busy[0])[0] == 200
        while ask(server)[0] != 200:
            pass


@pytest.mark.parametrize("dripping", [False, True])
def test_s15_a_request_has_an_end_however_slowly_it_comes(serving, dripping):
    """A time-out for each octet is none for all of them."""
    server = serving(patience=0.3)
    with contextlib.ExitStack() as stack:
        connected = connect(stack, server)
        stop = threading.Event()

        def drip():
            with contextlib.suppress(OSError):
                while dripping and not stop.wait(0.02):
                    connected.sendall(b"x")

        dripper = threading.Thread(target=drip)
        dripper.start()
        try:
            assert read(connected)[0] is None  # it was closed
        finally:
            stop.set()
            dripper.join(30)
    assert ask(server)[0] == 200


@pytest.mark.parametrize(
    "octets",
    [
        b"GET /" + b"x" * MOST_OCTETS,
        b"GET / HTTP/1.1\r\nX: " + b"x" * MOST_OCTETS,
        b"GET / HTTP/1.1\r\n" + b"X: y\r\n" * MOST_OCTETS,
        b"GET / HTTP/1.1\r\n" + b"\t" * MOST_OCTETS,
        b"\r\n" * MOST_OCTETS,
        b"x" * 3 * MOST_OCTETS,
    ],
)
def test_s15_a_request_has_so_many_octets_at_most(serving, octets):
    """What is kept of a request grows with what somebody sends."""
    server = serving()
    status, _ = answer_to(server, octets)
    assert status in (None, 400, 414, 431, 501)
    assert ask(server)[0] == 200


@pytest.mark.parametrize(
    "octets",
    [
        b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03\r\n\r\n",
        b"GET / HTTP/9.9\r\n\r\n",
        b"GET\r\n\r\n",
        b"GET /metrics\r\n\r\n",
        b"GET / HTTP/1.1\r\nHost\r\n\r\n",
        b"GET / HTTP/1.1\r\n Host: localhost\r\n\r\n",
        b"GET / HTTP/1.1\r\nHost: local\0host\r\n\r\n",
        b"\xff\xfe\r\n\r\n",
        b"\r\n\r\n",
        b"",
    ],
)
def test_s15_what_is_no_request_gets_nothing_and_says_nothing(serving, capfd, octets):
    """Noise of a scanner, on standard error or in the answer."""
    server = serving()
    with socket.create_connection(("127.0.0.1", server.port), 30) as connected:
        connected.sendall(octets)
        connected.shutdown(socket.SHUT_WR)
        status, answer = read(connected)
    assert status in (None, 400, 505) or answer.startswith(b"<!DOCTYPE")
    assert ask(server)[0] == 200
    assert capfd.readouterr().err == ""


def test_s15_an_application_that_fails_is_logged_and_not_shown(serving, caplog):
    """A traceback is for us."""

    def fail(environ, start_response):
        raise RuntimeError("a secret")

    status, answer = ask(serving(fail))
    assert status == 500
    assert b"secret" not in answer
    assert "a secret" in caplog.text


def test_s15_stopping_cuts_off_who_is_being_answered(serving):
    """A server that ends does not wait for the slowest client."""
    server = serving()
    with contextlib.ExitStack() as stack:
        busy = occupy(stack, server)
        server.stop()
        assert [read(each)[0] for each in busy] == [None] * MOST
    assert threads() == []


# S16


def test_s16_no_release_of_pyramid_with_a_known_hole_is_allowed():
    """CVE-2023-40587 is mended in 2.0.2: a floor below it lets a resolver take what has it."""
    project = Path(__file__).resolve().parents[2] / "pyproject.toml"
    extras = tomllib.loads(project.read_text("utf-8"))["project"]["optional-dependencies"]
    wanted = [
        requirement
        for extra in extras.values()
        for requirement in extra
        if re.match(r"pyramid\b(?![_-])", requirement, re.IGNORECASE)
    ]
    assert wanted
    for requirement in wanted:
        floor = re.search(r">=\s*([0-9.]+)", requirement)
        assert floor, requirement
        assert tuple(map(int, floor[1].split("."))) >= (2, 0, 2)
