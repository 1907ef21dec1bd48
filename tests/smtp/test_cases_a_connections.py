"""Cases of connections: worn, forgotten, to addresses that are dead, to names that are gone."""

from __future__ import annotations

import contextlib
import logging
import socket
import threading
import time

import pytest
from commits import note
from postfix import free_port
from smtp_helpers import CHUNKING, RawServer, greeted, make_envelope, statuses, transport_to

from txmail import Mailer, transport_from_url
from txmail.exceptions import (
    ConfigurationError,
    DeliveryRefused,
    DeliveryUnavailable,
    TransportError,
)
from txmail.reply import Reply
from txmail.smtp import (
    driver,
    happy_eyeballs,
    pool,
    server_memory,
)
from txmail.smtp import (
    resolver as names,
)
from txmail.smtp.failure_policy import Step, concerns_connection
from txmail.smtp.happy_eyeballs import Connector, interleaved
from txmail.smtp.resolver import NameNotResolved, Resolver
from txmail.testing import CLOSE, ScriptedServer
from txmail.transports.failover import FailoverTransport
from txmail.transports.resend import send_all
from txmail.worker.router import Circuit


@pytest.fixture
def mailers(tm):
    with contextlib.ExitStack() as stack:

        def make(server, query="", **options):
            host, port = getattr(server, "address", server)
            transport = transport_from_url(f"smtp://{host}:{port}?{query}")
            mailer = Mailer(transport, transaction_manager=tm, **options)
            stack.callback(mailer.close)
            return mailer

        yield make
        tm.abort()


# A4: what a server says of a connection that it has had enough of


class Limited:
    """A server that takes `limit` messages on each connection, and then says `said` to `verb`."""

    def __init__(self, verb, said, limit, extensions=CHUNKING):
        self.held, self.connections = [], 0
        self._verb, self._said, self._limit = verb, said.encode() + b"\r\n", limit
        self._offer = b"".join(b"250-%s\r\n" % e.encode() for e in extensions) + b"250 SIZE\r\n"

    def serve(self, connected, stopping):
        self.connections += 1
        reader = greeted(connected, self._offer)
        taken, mail, recipients = 0, None, 0
        for line in iter(reader.readline, b""):
            verb, reply = line[:4].upper().decode(), b"250 2.0.0 Ok\r\n"
            refused = taken >= self._limit and verb == self._verb
            content = None
            if verb == "QUIT":
                break
            if verb == "BDAT":
                content = reader.read(int(line.split()[1]))
            if refused:
                reply = self._said
            elif verb == "RSET":
                mail, recipients = None, 0
            elif verb == "MAIL":
                mail = line
            elif verb == "RCPT":
                reply = reply if mail else b"503 5.5.1 MAIL first\r\n"
                recipients += bool(mail)
            elif verb == "DATA" and recipients:
                connected.sendall(b"354 go\r\n")
                content = b"".join(iter(reader.readline, b".\r\n"))
            elif verb in ("BDAT", "DATA") and not recipients:
                reply = b"503 5.5.1 no valid recipients\r\n"
            if content is not None and mail and recipients and not refused:
                self.held.append(content)
                taken, mail, recipients = taken + 1, None, 0
            connected.sendall(reply)
            if reply.startswith(b"421"):
                break
        reader.close()


WORN = [
    ("MAIL", "452 4.5.3 too many messages"),
    ("MAIL", "452 too many messages in this session"),
    ("MAIL", "421 4.7.0 too many messages, try a new connection"),
    ("MAIL", "450 4.7.1 slow down"),
    ("MAIL", "550 5.7.0 too many messages on this connection"),
    ("MAIL", "554 limit reached"),
    ("RCPT", "452 4.5.3 too many recipients in this session"),
    ("RCPT", "451 try later"),
    ("DATA", "452 too many messages"),
    ("DATA", "554 5.7.0 enough"),
    ("RCPT", "421 4.7.0 too many"),
    ("DATA", "421 4.7.0 too many"),
]


@pytest.mark.parametrize("extensions", [CHUNKING, ("PIPELINING",)], ids=["stream", "pipeline"])
@pytest.mark.parametrize(("verb", "said"), WORN)
def test_a4_a_connection_that_has_carried_enough_costs_no_commit(
    tm, mailers, verb, said, extensions
):
    """Kind: what a server says of a connection is taken for its word on a message."""
    if verb == "DATA" and extensions is CHUNKING:
        extensions = ("PIPELINING",)
    limited = Limited(verb, said, 3, extensions)
    with RawServer(limited.serve) as raw:
        mailer = mailers(raw)
        for number in range(8):
            mailer.send(note(f"m{number}"))
            tm.commit()
    assert len(limited.held) == 8
    assert limited.connections == 3


IN_LARGE = [
    (verb, said, extensions)
    for verb, said in WORN[:1] + WORN[2:5] + WORN[8:]
    for extensions in (CHUNKING, ("PIPELINING",))
    # There is no DATA in a stream, and a 421 to RCPT is about the recipient there.
    if extensions is not CHUNKING or verb == "MAIL"
]


@pytest.mark.parametrize("preflight", ["auto", "never"])
@pytest.mark.parametrize(("verb", "said", "extensions"), IN_LARGE)
def test_a4_nor_one_message_of_a_large_commit(tm, mailers, verb, said, preflight, extensions):
    """Kind: the same, in the middle of a transaction of which some is out."""
    limited = Limited(verb, said, 3, extensions)
    with RawServer(limited.serve) as raw:
        mailer = mailers(raw, preflight=preflight)
        for number in range(8):
            mailer.send(note(f"m{number}"))
        tm.commit()
        assert statuses(mailer.last_outcomes) == ["accepted"] * 8
    assert len(limited.held) == 8
    assert limited.connections == 3


@pytest.mark.parametrize("query", ["window=1", "window=2", "window=16", "connections=2"])
@pytest.mark.parametrize(("verb", "said"), WORN[:5])
def test_a4_nor_one_of_a_worker(verb, said, query):
    limited = Limited(verb, said, 3)
    envelopes = [make_envelope(n) for n in range(8)]
    with RawServer(limited.serve) as raw, transport_to(raw, query) as transport:
        outcomes = sorted(send_all(transport, envelopes), key=lambda o: o.position)
    assert statuses(outcomes) == ["accepted"] * 8
    assert [o.position for o in outcomes] == list(range(8))
    assert sorted(limited.held) == sorted(e.content for e in envelopes)


@pytest.mark.parametrize(
    ("verb", "said", "error"),
    [
        ("MAIL", "452 4.3.1 disk full", DeliveryUnavailable),
        ("MAIL", "550 5.7.1 not you", DeliveryRefused),
        ("RCPT", "451 4.7.1 greylisted", DeliveryUnavailable),
    ],
)
def test_a4_what_a_fresh_connection_repeats_counts_and_is_not_asked_again(
    tm, mailers, verb, said, error
):
    """Kind: each mail costs a connection because of a reply that never changes."""
    with ScriptedServer() as server:
        mailer = mailers(server)
        mailer.send(note("first"))
        tm.commit()
        server.on(verb, said, times=None)
        for number, connections in ((1, 2), (2, 2), (3, 2)):
            mailer.send(note(f"m{number}"))
            with pytest.raises(error) as raised:
                tm.commit()
            tm.abort()
            assert str(raised.value.outcomes[0].reply) == said
            assert len(server.connections) == connections
            if number == 2:  # so that the fresh one has carried a message too
                server.clear()
                mailer.send(note("between"))
                tm.commit()
                server.on(verb, said, times=None)


def test_a4_but_after_ten_minutes_it_is():
    now = [0.0]
    memory = server_memory.ServerMemory(lambda: now[0])
    said, alike = Reply(452, ("4.5.3 too many: 10",)), Reply(452, ("4.5.3 too many: 11",))
    assert memory.may_reconnect_for(said)
    memory.note_answer(alike)
    assert not memory.may_reconnect_for(said)
    assert memory.may_reconnect_for(Reply(452, ("something else",)))
    now[0] = server_memory.REPEATED_FOR + 1
    assert memory.may_reconnect_for(said)
    for number in range(1000):
        memory.may_reconnect_for(Reply(400 + number % 100, ("x" * (number // 100 + 1),)))
    assert len(memory._asked) <= 64


@pytest.mark.parametrize(
    ("stage", "code", "text", "asked"),
    [
        (Step.MAIL, 452, "", True),
        (Step.DATA, 451, "4.2.1 whatever", True),
        (Step.MAIL, 550, "", True),
        (Step.MAIL, 550, "5.1.8 bad sender", False),
        (Step.MAIL, 552, "5.2.2 full", False),
        (Step.MAIL, 552, "5.3.4 too big", False),
        (Step.MAIL, 552, "5.3.1 system full", True),
        (Step.DATA, 554, "5.6.0 bad content", False),
        (Step.RCPT, 450, "4.7.1 greylisted", True),
        (Step.RCPT, 452, "4.2.2 mailbox full", False),
        (Step.RCPT, 550, "5.7.1 no relaying", False),
        (Step.RCPT, 550, "", False),
        (Step.FINAL, 452, "too many", False),
        (Step.MAIL, 250, "", False),
    ],
)
def test_a4_which_replies_may_be_about_the_connection(stage, code, text, asked):
    assert concerns_connection(stage, Reply(code, (text,))) is asked


def test_a4_one_of_several_recipients_is_no_matter_of_the_connection(tm, mailers):
    with ScriptedServer() as server:
        mailer = mailers(server)
        mailer.send(note("first"))
        tm.commit()
        server.on("RCPT", "450 4.7.1 greylisted", matching="b@")
        mailer.send(note("two", recipients=["a@example.net", "b@example.net"]))
        with pytest.raises(DeliveryUnavailable):
            tm.commit()
        assert len(server.connections) == 1


@pytest.mark.parametrize("extensions", [CHUNKING, ("PIPELINING",), ()])
@pytest.mark.parametrize("way", ["one by one", "one commit", "worker"])
def test_a4_a_connection_is_retired_after_as_many_messages_as_the_url_says(
    tm, mailers, way, extensions
):
    """Kind: a limit that is known can be kept only by running into it."""
    given = [note(f"m{number}") for number in range(8)]
    with ScriptedServer(extensions=extensions) as server:
        if way == "worker":
            with transport_to(server, "messages=3") as transport:
                assert statuses(send_all(transport, given)) == ["accepted"] * 8
        else:
            mailer = mailers(server, "messages=3", preflight="never")
            for envelope in given:
                mailer.send(envelope)
                if way == "one by one":
                    tm.commit()
            tm.commit()
            mailer.close()
        server.stop()
        carried = [[m.connection for m in server.messages].count(n) for n in (1, 2, 3)]
        assert carried == [3, 3, 2]
        assert [m.content for m in server.messages] == [e.content for e in given]
        assert all(connection.ended_by_quit for connection in server.connections)


@pytest.mark.parametrize("value", ["0", "-1", "many", "1.5", ""])
def test_a4_and_that_is_a_number(value):
    with pytest.raises(ConfigurationError, match="url option messages: a whole number above 0"):
        transport_from_url(f"smtp://mx.example?messages={value}")


# A8: a connection that somebody in between has forgotten


class Forgetful:
    """Takes `messages` on its first connection, and then is silent on it."""

    def __init__(self, messages=1, extensions=CHUNKING):
        self.limited = Limited("none", "", 0, extensions)
        self._messages = messages
        self.heard = b""

    def serve(self, connected, stopping):
        if self.limited.connections:
            self.limited.serve(connected, stopping)
            return
        thread = threading.Thread(
            target=self.limited.serve, args=(_Deaf(self, connected), stopping)
        )
        thread.start()
        thread.join()
        connected.settimeout(None)
        with contextlib.suppress(OSError):
            while octets := connected.recv(65536):
                self.heard += octets


class _Deaf:
    """The socket of a server that hears nothing more after so many messages."""

    def __init__(self, forgetful, connected):
        self._forgetful, self._connected = forgetful, connected

    def sendall(self, octets):
        self._connected.sendall(octets)

    def makefile(self, mode):
        return _Ears(self._forgetful, self._connected.makefile(mode))


class _Ears:
    def __init__(self, forgetful, reader):
        self._forgetful, self._reader = forgetful, reader

    def readline(self):
        if len(self._forgetful.limited.held) >= self._forgetful._messages:
            return b""
        return self._reader.readline()

    def read(self, size):
        return self._reader.read(size)

    def close(self):
        pass


@pytest.fixture
def impatient(monkeypatch):
    monkeypatch.setattr(driver, "KEPT_TIMEOUT", 0.2)


@pytest.mark.representative(every=3)
@pytest.mark.parametrize("extensions", [CHUNKING, ("PIPELINING",), ()])
@pytest.mark.parametrize("preflight", ["auto", "never"])
def test_a8_a_kept_connection_that_is_silent_is_replaced(
    tm, mailers, impatient, preflight, extensions
):
    """Kind: a connection is believed to live because nobody has said that it is dead."""
    forgetful = Forgetful(extensions=extensions)
    with RawServer(forgetful.serve) as raw:
        mailer = mailers(raw, preflight=preflight)
        for number in range(3):
            mailer.send(note(f"m{number}", body=b"Secret words.\r\n"))
            tm.commit()
            assert statuses(mailer.last_outcomes) == ["accepted"]
        assert forgetful.limited.connections == 2
    assert len(forgetful.limited.held) == 3
    # No content goes out before there was a reply.
    assert b"Secret" not in forgetful.heard


@pytest.mark.parametrize("window", [1, 16])
def test_a8_a_worker_does_the_same(impatient, window):
    forgetful = Forgetful()
    envelopes = [make_envelope(n, body=b"Secret words.\r\n") for n in range(5)]
    with RawServer(forgetful.serve) as raw, transport_to(raw, f"window={window}") as transport:
        assert statuses(send_all(transport, envelopes[:1])) == ["accepted"]
        assert statuses(send_all(transport, envelopes[1:])) == ["accepted"] * 4
    assert b"Secret" not in forgetful.heard


def test_a8_half_of_what_is_left_is_kept_for_the_fresh_one(tm, mailers):
    forgetful = Forgetful()
    with RawServer(forgetful.serve) as raw:
        mailer = mailers(raw, commit_timeout=2.0)
        for number in range(2):
            mailer.send(note(f"m{number}"))
            tm.commit()
    assert len(forgetful.limited.held) == 2


# A7: names that do not resolve


def gone(monkeypatch, *outcomes):
    """`getaddrinfo` does one of `outcomes` after the other, and the last for ever."""
    left = list(outcomes)

    def getaddrinfo(*_, **__):
        outcome = left.pop(0) if left[1:] else left[0]
        if isinstance(outcome, Exception):
            raise outcome
        return [(socket.AF_INET, socket.SOCK_STREAM, 6, "", outcome)]

    monkeypatch.setattr(socket, "getaddrinfo", getaddrinfo)


CODES = [
    getattr(socket, name)
    for name in ("EAI_NONAME", "EAI_NODATA", "EAI_AGAIN", "EAI_FAIL", "EAI_ADDRFAMILY")
    if hasattr(socket, name)
]


@pytest.mark.parametrize("code", CODES)
def test_a7_a_name_that_does_not_resolve_is_always_temporary(monkeypatch, caplog, code):
    """Kind: what comes back in seconds is taken for what a person has to mend."""
    gone(monkeypatch, socket.gaierror(code, "no such name"))
    resolver = Resolver()
    with pytest.raises(
        NameNotResolved, match=r"cannot resolve mx\.example: no such name"
    ) as raised:
        Connector(resolver=resolver).connect("mx.example", 25, 5)
    assert raised.value.temporary
    assert [r.levelno for r in caplog.records] == [logging.ERROR]
    assert "mx.example" in caplog.text


def test_a7_a_name_that_has_resolved_before_is_no_error(monkeypatch, caplog):
    with socket.create_server(("127.0.0.1", 0)) as listener:
        address = listener.getsockname()
        gone(monkeypatch, address, socket.gaierror(socket.EAI_NONAME, "no such name"))
        connector = Connector(resolver=Resolver())
        connector.connect("mx.example", 25, 5).close()
        with pytest.raises(NameNotResolved):
            connector.connect("mx.example", 25, 5)
    assert caplog.records == []


@pytest.mark.parametrize("failover", [True, False])
def test_a7_the_route_is_tried_again_within_thirty_seconds(monkeypatch, failover):
    with ScriptedServer() as server:
        gone(monkeypatch, socket.gaierror(socket.EAI_NONAME, "no"), server.address)
        transport = transport_from_url("smtp://mx.example:25?tls=off")
        if failover:
            transport = FailoverTransport([transport])
        (outcome,) = send_all(transport, [make_envelope()])
        assert (outcome.status, outcome.action) == ("unsent", "defer_route")
        assert transport.retry_within == names.RETRY_WITHIN == 30.0
        assert statuses(send_all(transport, [make_envelope()])) == ["accepted"]
        assert transport.retry_within is None
        transport.close()


def test_a7_nor_is_it_passed_over_for_longer_in_a_list(monkeypatch):
    now = [0.0]
    with ScriptedServer() as server:
        gone(monkeypatch, socket.gaierror(socket.EAI_NONAME, "no"))
        first = transport_from_url("smtp://mx.example?tls=off")
        second = transport_from_url(server.url)
        monkeypatch.setattr(Resolver, "resolve", only_numbers(Resolver.resolve, server.address))
        transport = FailoverTransport([first, second], clock=lambda: now[0])
        transport.open().close()
        assert transport.order() == [1, 0]
        now[0] = names.RETRY_WITHIN + 1
        assert transport.order() == [0, 1]
        transport.close()


def only_numbers(resolve, address):
    """Resolves `address` and fails as before for others."""

    def resolved(self, host, port, timeout):
        if (host, port) == address:
            return [(socket.AF_INET, address)]
        return resolve(self, host, port, timeout)

    return resolved


def test_a4_a_connection_that_ends_after_one_has_carried_messages_starts_nothing_over():
    """Kind: what was accepted on the connection before is sent once more."""
    extensions = ("PIPELINING",)
    with ScriptedServer(extensions=extensions) as server:
        server.on("MAIL", "452 too many", after=2, connection=1)
        server.on("MAIL", CLOSE, connection=2)
        with transport_to(server) as transport:
            session = transport.open()
            outcomes = list(session.send([note(f"m{n}") for n in range(4)], strict=True))
            assert statuses(outcomes) == ["accepted", "accepted", "unsent", "unsent"]
            assert not session.restartable
            session.close()
        assert len(server.messages) == 2


@pytest.mark.parametrize("jitter", [0.0, 0.5, 1.0])
@pytest.mark.parametrize("failures", [1, 2, 5, 50])
def test_a7_however_often_it_has_failed(failures, jitter):
    circuit = Circuit(lambda: 0.0, _jitter=lambda: jitter)
    for _ in range(failures):
        circuit.failed("no such name", within=30.0)
    assert 0 < circuit.left <= 30.0
    assert not circuit.stopped


# A9: addresses that swallow what is sent to them


def addresses(monkeypatch, *found):
    family = {2: socket.AF_INET, 4: socket.AF_INET6}
    answer = [(family[len(a)], socket.SOCK_STREAM, 6, "", a) for a in found]
    monkeypatch.setattr(socket, "getaddrinfo", lambda *_, **__: answer)


@pytest.fixture
def refused():
    """An address where nobody listens."""
    return ("127.0.0.1", free_port())


@pytest.fixture
def tried(monkeypatch):
    """The addresses that were tried, in order."""
    found = []
    begin = happy_eyeballs._Attempts._begin

    def note_and_begin(self, address, now):
        found.append(address[1])
        begin(self, address, now)

    monkeypatch.setattr(happy_eyeballs._Attempts, "_begin", note_and_begin)
    return found


def test_a9_the_next_address_is_begun_beside_one_that_is_silent(monkeypatch, silent, tried):
    """Kind: one dead address of several costs every connection its time-out."""
    with ScriptedServer() as server:
        addresses(monkeypatch, silent, server.address)
        connector = Connector(resolver=Resolver())
        connector.connect("mx.example", 25, 60).close()
        assert tried == [silent, server.address]
        # The dead one is remembered.
        connector.connect("mx.example", 25, 60).close()
        assert tried[2:] == [server.address]


def test_a9_for_ten_minutes(monkeypatch, silent, tried):
    now = [0.0]
    with ScriptedServer() as server:
        addresses(monkeypatch, silent, server.address)
        connector = Connector(lambda: now[0], Resolver())
        connector.connect("mx.example", 25, 60).close()
        now[0] = happy_eyeballs.DEAD_FOR + 1
        connector.connect("mx.example", 25, 60).close()
        assert tried == [silent, server.address] * 2


def test_a9_if_all_are_dead_they_are_tried_all_the_same(monkeypatch, silent, tried):
    addresses(monkeypatch, silent)
    connector = Connector(resolver=Resolver())
    for _ in range(2):
        with pytest.raises(TransportError, match="in time"):
            connector.connect("mx.example", 25, 0.3)
    assert tried == [silent] * 2


@pytest.mark.parametrize("dead", [1, 2, 5])
def test_a9_one_that_refuses_costs_nothing(monkeypatch, refused, tried, dead):
    monkeypatch.setattr(happy_eyeballs, "ATTEMPT_DELAY", 1000.0)
    with ScriptedServer() as server:
        others = [("127.0.0.1", refused[1]), *[(f"127.0.0.{n}", refused[1]) for n in range(2, 6)]]
        addresses(monkeypatch, *others[:dead], server.address)
        Connector(resolver=Resolver()).connect("mx.example", 25, 60).close()
        assert tried == [*others[:dead], server.address]


def test_a9_one_that_is_slow_and_answers_first_is_used(monkeypatch, silent):
    """Of two on their way the first to answer wins, not the last that was begun."""
    monkeypatch.setattr(happy_eyeballs, "ATTEMPT_DELAY", 0.0)
    with ScriptedServer() as server:
        addresses(monkeypatch, server.address, silent)
        connected = Connector(resolver=Resolver()).connect("mx.example", 25, 60)
        assert connected.getpeername() == server.address
        connected.close()


def test_a9_a_family_that_is_not_there_is_passed_over(monkeypatch):
    with ScriptedServer() as server:
        addresses(monkeypatch, ("2001:db8::1", 25, 0, 0), server.address)
        connected = Connector(resolver=Resolver()).connect("mx.example", 25, 60)
        assert connected.getpeername() == server.address
        connected.close()


@pytest.mark.parametrize(
    ("found", "expected"),
    [
        ("", ""),
        ("6666", "6666"),
        ("6644", "6464"),
        ("4466", "4646"),
        ("66644", "64646"),
        ("46666", "46666"),
    ],
)
def test_a9_families_take_turns(found, expected):
    given = [(family, (place,)) for place, family in enumerate(found)]
    assert "".join(family for family, _ in interleaved(given)) == expected
    assert sorted(interleaved(given)) == sorted(given)
    assert interleaved([*given, *given]) == interleaved(given)


def test_a9_no_socket_stays_open(monkeypatch, silent):
    """Warnings are errors: a socket that is left to the garbage collector is one."""
    addresses(monkeypatch, silent, silent, silent)
    began = time.monotonic()
    with pytest.raises(TransportError):
        Connector(resolver=Resolver()).connect("mx.example", 25, 0.1)
    assert time.monotonic() - began < 30


@pytest.mark.representative(every=2)
@pytest.mark.parametrize("extensions", [CHUNKING, ()])
def test_a8_one_that_has_been_idle_for_long_has_half_of_the_time_as_well(
    tm, mailers, monkeypatch, extensions
):
    monkeypatch.setattr(pool, "VERIFY_AFTER", -1.0)
    forgetful = Forgetful(extensions=extensions)
    with RawServer(forgetful.serve) as raw:
        mailer = mailers(raw, preflight="never", commit_timeout=1.0)
        for number in range(2):
            mailer.send(note(f"m{number}"))
            tm.commit()
    assert len(forgetful.limited.held) == 2


def test_a5_a_connection_with_eight_refusals_is_not_kept():
    """Kind: the next user of a connection pays for what the one before was refused."""
    with ScriptedServer() as server, transport_to(server) as transport:
        server.on("RCPT", "550 5.1.1 no such user", times=8)
        session = transport.open()
        given = [note(f"m{n}") for n in range(10)]
        assert statuses(session.send(given)) == ["failed"] * 8 + ["accepted"] * 2
        session.close()
        transport.open().close()
        assert len(server.connections) == 2
