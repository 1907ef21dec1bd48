"""Streams to servers that break, end, dawdle or do not read: what is known after."""

from __future__ import annotations

import itertools
import socket
import struct

import pytest
from smtp_helpers import (
    CHUNKING,
    OK,
    RawServer,
    certificates,
    greeted,
    make_envelope,
    opened,
    statuses,
)

from txmail import transport_from_url
from txmail.smtp import driver
from txmail.testing import CLOSE, HANG, RESET, ScriptedServer, then

OFFER = b"250-mx\r\n250-PIPELINING\r\n250-CHUNKING\r\n250 SIZE\r\n"


def messages(count, body=b"Hello.\r\n"):
    """Small messages of different senders to different recipients."""
    return [
        make_envelope(n, [f"r{n:05}@b.example"], f"s{n:05}@a.example", body) for n in range(count)
    ]


def held(envelope):
    return envelope.sender, envelope.recipients, envelope.content


def arrived(server):
    return [(m.sender, m.recipients, m.content) for m in server.messages]


@pytest.fixture
def server():
    with ScriptedServer(extensions=CHUNKING) as server:
        yield server


# 421, and what comes after it

#: what a 421 means to the message that gets it
STAGES = [("RSET", "unsent"), ("MAIL", "unsent"), ("RCPT", "deferred"), (".", "deferred")]
TO_FIRST = [(verb, status) for verb, status in STAGES if verb != "RSET"]


@pytest.fixture
def short_patience(monkeypatch):
    monkeypatch.setattr(driver, "CLOSING_TIMEOUT", 0.2)


@pytest.mark.representative(every=6)
@pytest.mark.parametrize("leave", [True, False])
@pytest.mark.parametrize("end", [CLOSE, HANG, RESET])
@pytest.mark.parametrize("window", [1, 2, 4])
@pytest.mark.parametrize(("verb", "status"), STAGES)
def test_a_421_in_mid_stream(server, short_patience, verb, status, window, end, leave):
    """Whatever comes after it, and if that is nothing: nobody waits the usual time for it."""
    if verb == "RSET" and window == 1:
        pytest.skip("no RSET stands behind an accepted message")
    # There is none in front of the first message, and of the others the second certainly has one.
    before = 1 if verb == "RSET" else 2
    server.on(verb, then("421 4.3.2 closing", end), after=0 if verb == "RSET" else before)
    envelopes = messages(8)
    left = iter(envelopes)
    # The usual time would be longer than a test may take.
    with opened(server, window=window, timeout=1000) as session:
        outcomes = list(session.send(left, keep_untaken=leave))
        assert session.closed
    found = statuses(outcomes)
    if end is RESET and found[: before + 1] != ["accepted"] * before + [status]:
        assert set(found[: before + 1]) <= {
            "accepted",
            "in_doubt",
            status,
        }  # replies are lost by a reset
    else:
        assert found[:before] == ["accepted"] * before
        assert (found[before], outcomes[before].reply.code) == (status, 421)
        assert session.restartable is False
    doubtful = found[before + 1 : before + window]
    assert set(doubtful) <= {"in_doubt", "unsent"}
    rest = list(left)
    assert len(rest) + len(outcomes) == 8
    assert set(found[before + window :]) <= {"unsent"}
    if leave:
        assert len(rest) >= 8 - before - window
        assert rest == envelopes[len(outcomes) :]
    assert not set(arrived(server)) - {held(e) for e in envelopes[:before]}
    for outcome, envelope in zip(outcomes, envelopes, strict=False):
        assert (held(envelope) in arrived(server)) or outcome.status != "accepted"


@pytest.mark.parametrize(("verb", "status"), TO_FIRST)
def test_a_421_to_the_first_message_is_no_reason_to_start_over(server, verb, status):
    """Its content has left with its commands."""
    server.on(verb, then("421 4.3.2 closing", CLOSE))
    with opened(server, window=1) as session:
        assert statuses(session.send(messages(2), strict=True)) == [status, "unsent"]
        assert session.restartable is False
    assert arrived(server) == []


def heard(reader):
    """How many commands the next message has, and its content; 0 where the stream has ended."""
    for commands, line in enumerate(iter(reader.readline, b""), 1):
        if line.startswith(b"BDAT"):
            return commands, reader.read(int(line.split()[1]))
    return 0, b""


class Counting:
    """Serves a stream: takes `take` messages, answers `answer` of them, and then does `end`."""

    def __init__(self, take, answer, end):
        self.take, self.answer, self.end = take, answer, end
        self.held = []

    def serve(self, connected, stopping):
        reader = greeted(connected, OFFER)
        for number in range(self.take):
            commands, content = heard(reader)
            self.held.append(content)
            if number < self.answer:
                connected.sendall(OK * commands)
        reader.close()  # which would keep the socket open
        self.end(connected)
        stopping.wait()


def reset(connected):
    connected.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
    connected.close()


def closed(connected):
    connected.shutdown(socket.SHUT_WR)


@pytest.mark.parametrize("end", [closed, reset])
@pytest.mark.parametrize("answered", range(5))
def test_replies_to_what_was_accepted_are_read_until_the_end(end, answered):
    """The connection ends while four are in the window; what it said before that is not lost."""
    take = answered + 4
    counting = Counting(take, answered, end)
    envelopes = messages(20)
    left = iter(envelopes)
    with RawServer(counting.serve) as raw, opened(raw, window=4) as session:
        outcomes = list(session.send(left, keep_untaken=True))
    found = statuses(outcomes)
    assert found[:answered] == ["accepted"] * answered
    assert found[answered : answered + 4] == ["in_doubt"] * 4
    assert set(found[answered + 4 :]) <= {"unsent"}
    assert list(left) == envelopes[len(outcomes) :]
    assert counting.held == [e.content for e in envelopes[:take]]


# Servers that offer CHUNKING and do not know it


@pytest.mark.parametrize("exim_like", [True, False])
@pytest.mark.parametrize("code", [500, 501, 502, 503, 504])
@pytest.mark.parametrize("window", [1, 4, 16])
def test_a_server_that_breaks_on_bdat_gets_data_on_the_same_connection(window, code, exim_like):
    envelopes = messages(20)
    with ScriptedServer(extensions=CHUNKING, exim_like=exim_like) as server:
        server.on("BDAT", f"{code} 5.5.1 what?", times=None)
        with opened(server, window=window) as session:
            first = list(session.send(envelopes[:15]))
            second = list(session.send(envelopes[15:]))
        assert [(o.position, str(o.status)) for o in first] == [(n, "accepted") for n in range(15)]
        assert statuses(second) == ["accepted"] * 5
        assert arrived(server) == [held(envelope) for envelope in envelopes]
        (connection,) = server.connections
    chunks = [n for n, line in enumerate(connection.commands) if line.startswith("BDAT")]
    assert len(chunks) == min(window, 15)
    assert connection.commands.index("DATA") > chunks[-1]


def test_in_strict_sending_as_well(server):
    server.on("BDAT", "502 5.5.1 what?", times=None)
    envelopes = messages(5)
    with opened(server) as session:
        assert session.preflight(envelopes) == []
        assert statuses(session.send(envelopes, strict=True)) == ["accepted"] * 5
    assert arrived(server) == [held(envelope) for envelope in envelopes]


def literally(connected, stopping):
    """A server that offers CHUNKING and does not know it: content is commands to it."""
    reader = greeted(connected, OFFER)
    kept, sender, recipients = connected_messages[connected.getsockname()], None, []
    for line in iter(reader.readline, b""):
        verb = line[:4].upper()
        reply = b"500 5.5.2 what?\r\n"
        if verb == b"MAIL":
            reply = b"503 5.5.1 nested\r\n" if sender else OK
            sender = sender or line
        elif verb == b"RCPT":
            recipients.append(line)
            reply = OK
        elif verb in (b"RSET", b"NOOP"):
            reply, sender, recipients = OK, None if verb == b"RSET" else sender, []
        elif verb == b"DATA":
            connected.sendall(b"354 go\r\n")
            while (line := reader.readline()) != b".\r\n":
                if not line:
                    return
            kept.append(sender)
            reply, sender, recipients = OK, None, []
        elif verb == b"QUIT":
            return
        connected.sendall(reply)


connected_messages = {}

#: what looks like commands, so that a reader of them has as many good replies as it needs
COMMANDS = b"RSET\r\nNOOP\r\nNOOP\r\nNOOP\r\n" * 4


@pytest.mark.parametrize("strict", [True, False])
@pytest.mark.parametrize("body", [b"Hello.\r\n", COMMANDS, b"NOOP\r\n" * 3 + b"DATA\r\n"])
@pytest.mark.parametrize("window", [1, 2, 4, 16])
def test_content_that_is_read_as_commands_makes_nothing_accepted(window, body, strict):
    envelopes = messages(6, body)
    with RawServer(literally) as raw:
        kept = connected_messages[raw.address] = []
        with opened(raw, window=window) as session:
            outcomes = list(session.send(envelopes, strict=strict))
            assert session.closed
    assert kept == []
    assert set(statuses(outcomes)) <= {"unsent", "in_doubt"}
    assert statuses(outcomes)[0] == "unsent"
    assert statuses(outcomes).count("in_doubt") <= window


# Who reads and writes when


@pytest.mark.representative(every=2)
@pytest.mark.parametrize(("count", "octets"), [(20_000, None), (2_000, 4096)])
def test_thousands_of_messages_to_a_server_that_reads_nothing_before_it_is_read(count, octets):
    """Neither replies nor messages fit into what lies between: both sides have to go on."""
    counting = Counting(count, count, closed)

    def serve(connected, stopping):
        if octets:
            connected.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, octets)
        counting.serve(connected, stopping)

    envelopes = messages(count)
    with RawServer(serve) as raw, opened(raw, window=count) as session:
        if octets:
            narrow = session.connection.stream._socket
            narrow.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, octets)
            narrow.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, octets)
        positions = []
        for outcome in session.send(envelopes):
            assert outcome.status == "accepted"
            positions.append(outcome.position)
    assert positions == list(range(count))
    assert counting.held == [envelope.content for envelope in envelopes]


def test_a_server_that_answers_nothing_before_it_has_the_whole_window():
    envelopes = messages(64, b"x" * 990 + b"\r\n" * 40)
    kept = []

    def serve(connected, stopping):
        reader = greeted(connected, OFFER)
        for _ in range(4):
            commands = 0
            for _ in range(16):
                count, content = heard(reader)
                commands += count
                kept.append(content)
            connected.sendall(OK * commands)
        stopping.wait()

    with RawServer(serve) as raw, opened(raw, window=16) as session:
        assert statuses(session.send(envelopes)) == ["accepted"] * 64
    assert kept == [envelope.content for envelope in envelopes]


def test_a_server_that_answers_one_octet_at_a_time():
    envelopes = messages(12)

    def serve(connected, stopping):
        connected.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        reader = greeted(connected, OFFER)
        for number in itertools.count():
            commands, _ = heard(reader)
            if not commands:
                return
            said = b"250-ok\r\n" + OK * (commands - 1) + b"250 2.0.0 number %d\r\n" % number
            for octet in said:
                connected.sendall(bytes([octet]))

    # The first reply has two lines, of which the second is the first OK.
    with RawServer(serve) as raw, opened(raw, window=3) as session:
        outcomes = list(session.send(envelopes))
    assert statuses(outcomes) == ["accepted"] * 12
    assert [o.reply.text for o in outcomes] == [f"2.0.0 number {n}" for n in range(12)]


@pytest.mark.parametrize("octets", [4096, None])
def test_a_stream_within_tls(tmp_path, octets):
    """OpenSSL wants the head of what it could not write once more, and by then there is more."""
    context = certificates(tmp_path)
    envelopes = messages(200, b"x" * 990 + b"\r\n")
    with ScriptedServer(extensions=CHUNKING, tls_context=context) as server:
        query = f"tls=required&cafile={tmp_path / 'certificate.pem'}&window=64"
        transport = transport_from_url(f"smtp://localhost:{server.port}?{query}")
        session = transport.open()
        if octets:
            session.connection.stream._socket.setsockopt(
                socket.SOL_SOCKET, socket.SO_SNDBUF, octets
            )
        assert statuses(session.send(envelopes)) == ["accepted"] * 200
        session.close()
        transport.close()
        assert arrived(server) == [held(envelope) for envelope in envelopes]
        assert server.connections[0].tls
