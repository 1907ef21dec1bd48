"""The scripted server behaves like a server until it is told not to."""

from __future__ import annotations

import shutil
import smtplib
import socket
import ssl
import subprocess
import threading

import pytest

from txmail.testing import (
    CLOSE,
    HANG,
    NO_REPLY,
    RESET,
    Callback,
    ScriptedServer,
    then,
)
from txmail.testing._protocol import ServerProtocol
from txmail.testing._settings import Settings

CONTENT = b"Subject: one\r\n\r\nHello.\r\n"
CHUNKING = ("PIPELINING", "8BITMIME", "SMTPUTF8", "ENHANCEDSTATUSCODES", "CHUNKING")


@pytest.fixture
def server():
    with ScriptedServer() as server:
        yield server


class Client:
    """A raw client: what it says and what it reads are octets."""

    def __init__(self, server, *, ehlo=True):
        self.socket = socket.create_connection(server.address, timeout=10)
        self.reader = self.socket.makefile("rb")
        if ehlo:
            self.reply()
            self.ask(b"EHLO client.example")

    def say(self, *lines):
        self.socket.sendall(b"".join(line + b"\r\n" for line in lines))

    def reply(self):
        """One reply: its lines, joined by line feeds."""
        lines = [self.reader.readline()]
        while lines[-1][3:4] == b"-":
            lines.append(self.reader.readline())
        return b"\n".join(line.removesuffix(b"\r\n") for line in lines)

    def ask(self, *lines):
        """Say lines and read one reply for each."""
        self.say(*lines)
        return [self.reply() for _ in lines]

    def codes(self, *lines):
        return [int(reply[:3]) for reply in self.ask(*lines)]

    def at_end(self):
        return self.reader.read() == b""

    def __enter__(self):
        return self

    def __exit__(self, *_):
        self.reader.close()
        self.socket.close()


def send(server, sender="a@example.com", recipients=("b@example.com",), content=CONTENT):
    with smtplib.SMTP(*server.address, timeout=10) as client:
        return client.sendmail(sender, recipients, content)


# A server like any other


def test_it_takes_a_message_from_smtplib(server):
    send(server, recipients=["b@example.com", "c@example.com"])
    (message,) = server.messages
    assert message.sender == "a@example.com"
    assert message.recipients == ("b@example.com", "c@example.com")
    assert message.content == CONTENT
    assert message.connection == 1
    assert message.parameters == {"SIZE": str(len(CONTENT))}


def test_its_records_tell_the_whole_dialogue(server):
    send(server)
    server.wait_closed()
    (connection,) = server.connections
    assert [line.split()[0].upper() for line in connection.commands] == [
        *("EHLO", "MAIL", "RCPT", "DATA", "QUIT")
    ]
    assert server.commands == connection.commands
    assert len(connection.ehlos) == 1
    assert connection.closed
    assert connection.ended_by_quit
    assert not connection.tls
    times = [when for when, _, _ in connection.octets]
    assert times == sorted(times)
    said = b"".join(octets for _, who, octets in connection.octets if who == "C")
    assert said.endswith(CONTENT + b".\r\nQUIT\r\n")
    answered = b"".join(octets for _, who, octets in connection.octets if who == "S")
    assert answered.startswith(b"220 ")
    assert answered.endswith(b"221 2.0.0 Bye\r\n")


def test_a_connection_that_just_ends_was_not_ended_by_quit(server):
    with Client(server):
        assert repr(server.connections[0]) == "<Connection 1: open, 1 commands>"
    server.wait_closed()
    assert not server.connections[0].ended_by_quit
    assert repr(server.connections[0]) == "<Connection 1: closed, 1 commands>"


@pytest.mark.parametrize(
    ("lines", "codes"),
    [
        ([b"RCPT TO:<b@example.com>"], [503]),
        ([b"DATA"], [503]),
        ([b"MAIL FROM:<a@example.com>", b"MAIL FROM:<a@example.com>"], [250, 503]),
        ([b"MAIL FROM:<a@example.com>", b"DATA"], [250, 554]),
        ([b"MAIL FROM:<a@example.com>", b"RSET", b"MAIL FROM:<>"], [250, 250, 250]),
        ([b"MAIL FROM:<a@example.com>", b"EHLO again.example", b"DATA"], [250, 250, 503]),
        ([b"MAIL FROM:<a@example.com>", b"RCPT TO:<>"], [250, 501]),
        ([b"MAIL FROM:a@example.com"], [501]),
        ([b"MAIL TO:<a@example.com>"], [501]),
        ([b"MAIL FROM:<a@example.com> SIZE=26214401"], [552]),
        ([b"MAIL FROM:<a@example.com> SIZE=many"], [501]),
        ([b"MAIL FROM:<a@example.com> BODY=BINARYMIME"], [501]),
        ([b"MAIL FROM:<a@example.com> RET=HDRS"], [555]),
        ([b"MAIL FROM:<a@example.com>", b"RCPT TO:<b@example.com> NOTIFY=NEVER"], [250, 555]),
        (["MAIL FROM:<jörg@example.com>".encode()], [553]),
        (["MAIL FROM:<jörg@example.com> SMTPUTF8".encode()], [250]),
        ([b"NOOP", b"VRFY b", b"HELO client.example", b"QUIT"], [250, 252, 250, 221]),
        ([b"EHLO", b"HELO "], [501, 501]),
        ([b"STARTTLS", b"AUTH PLAIN AGEAYg=="], [502, 504]),
        ([b"NOOP a\nQUIT", b"XYZZY"], [500, 500]),
    ],
)
def test_commands_have_their_sequence_and_syntax(server, lines, codes):
    with Client(server) as client:
        assert client.codes(*lines) == codes


def test_mail_needs_a_greeting_first(server):
    with Client(server, ehlo=False) as client:
        client.reply()
        assert client.codes(b"MAIL FROM:<a@example.com>") == [503]


def test_pipelined_commands_are_answered_in_order_out_of_one_write(server):
    with Client(server) as client:
        group = [b"MAIL FROM:<a@example.com>", b"RCPT TO:<b@example.com>", b"DATA"]
        assert client.codes(*group) == [250, 250, 354]
        client.say(CONTENT + b".", *group)
        assert [client.reply()[:3] for _ in range(4)] == [b"250", b"250", b"250", b"354"]
        client.say(b".", b"QUIT")
        assert [client.reply()[:3] for _ in range(2)] == [b"250", b"221"]
        assert client.at_end()
    assert [message.content for message in server.messages] == [CONTENT, b""]


def test_a_client_that_pipelines_without_an_offer_is_thrown_out():
    with ScriptedServer(extensions=("8BITMIME",)) as server, Client(server) as client:
        assert client.codes(b"MAIL FROM:<a@example.com>") == [250]
        client.say(b"RCPT TO:<b@example.com>", b"DATA")
        assert client.reply().startswith(b"554 ")
        assert client.at_end()


@pytest.mark.parametrize(
    ("sent", "received"),
    [
        (b".\r\n", b""),
        (b"..\r\n.\r\n", b".\r\n"),
        (b"..a\r\n\r\n...b\r\n.\r\n", b".a\r\n\r\n..b\r\n"),
        (b"a\n.\nb\r.\rc\r\n.\nd\r\n.\r\n", b"a\n.\nb\r.\rc\r\n\nd\r\n"),
    ],
)
def test_content_ends_at_one_thing_only_and_dots_are_unstuffed(server, sent, received):
    with Client(server) as client:
        client.ask(b"MAIL FROM:<a@example.com>", b"RCPT TO:<b@example.com>", b"DATA")
        client.socket.sendall(sent)
        assert client.reply().startswith(b"250 ")
    assert server.messages[0].content == received


def test_content_may_come_an_octet_at_a_time():
    accepted = []

    class Observer:
        def choose(self, verb, argument, content):
            return None

        def command(self, line):
            pass

        def accepted(self, transaction, content):
            accepted.append(content)

    protocol = ServerProtocol(Settings("mx.example.com", ("PIPELINING",)), Observer())
    list(protocol.greet())
    dialogue = (
        b"EHLO a\r\nMAIL FROM:<a@example.com>\r\nRCPT TO:<b@example.com>\r\nDATA\r\n"
        b"..a\r\n..\r\n.\r\nNOOP\r\n"
    )
    said = b"".join(output for octet in dialogue for output in protocol.receive(bytes([octet])))
    assert accepted == [b".a\r\n.\r\n"]
    assert said.endswith(b"354 End with <CRLF>.<CRLF>\r\n250 Ok: queued\r\n250 Ok\r\n")


def test_content_beyond_the_size_limit_is_refused():
    with ScriptedServer(extensions=("PIPELINING", "SIZE 10")) as server, Client(server) as client:
        client.ask(b"MAIL FROM:<a@example.com>", b"RCPT TO:<b@example.com>", b"DATA")
        assert client.codes(CONTENT + b".") == [552]
        assert server.messages == []


def test_an_endless_command_line_is_not_awaited(server):
    with Client(server) as client:
        client.socket.sendall(b"NOOP " + b"x" * 10_000)
        assert client.reply().startswith(b"500 ")
        assert client.at_end()


def test_extended_smtp_can_be_off():
    with ScriptedServer(ehlo=False) as server:
        send(server)
        assert [c.split()[0] for c in server.commands[:2]] == ["ehlo", "helo"]
        assert server.messages[0].parameters == {}


def test_enhanced_status_codes_are_left_out_unless_offered():
    with ScriptedServer(extensions=("PIPELINING",)) as server, Client(server) as client:
        assert client.ask(b"MAIL FROM:<a@example.com>") == [b"250 Ok"]


def test_recipients_can_be_limited():
    with ScriptedServer(max_recipients=1) as server:
        refused = send(server, recipients=["b@example.com", "c@example.com"])
        assert refused == {"c@example.com": (452, b"4.5.3 Too many recipients")}
        assert server.messages[0].recipients == ("b@example.com",)


def test_chunks_make_one_message():
    with ScriptedServer(extensions=CHUNKING) as server, Client(server) as client:
        client.ask(b"MAIL FROM:<a@example.com>", b"RCPT TO:<b@example.com>")
        client.socket.sendall(b"BDAT 8\r\na\r\n.\r\nb\nBDAT 2 LAST\r\n\r\nBDAT 1\r\nxDATA\r\n")
        codes = [client.reply()[:3] for _ in range(4)]
        assert codes == [b"250", b"250", b"503", b"503"]
        assert server.messages[0].content == b"a\r\n.\r\nb\n\r\n"


def test_chunks_do_not_mix_with_data():
    with ScriptedServer(extensions=CHUNKING) as server, Client(server) as client:
        client.ask(b"MAIL FROM:<a@example.com>", b"RCPT TO:<b@example.com>")
        client.socket.sendall(b"BDAT 1\r\nx")
        assert client.reply().startswith(b"250 ")
        assert client.codes(b"DATA", b"RCPT TO:<c@example.com>") == [503, 503]


def test_a_chunk_that_was_not_offered_ends_the_connection(server):
    with Client(server) as client:
        assert client.codes(b"BDAT 1 LAST") == [502]
        assert client.at_end()


def test_a_refused_message_leaves_nothing_behind(server):
    server.on(".", "554 5.6.0 no")
    with Client(server) as client:
        client.ask(b"MAIL FROM:<a@example.com>", b"RCPT TO:<b@example.com>", b"DATA")
        assert client.codes(b".", b"MAIL FROM:<c@example.com>") == [554, 250]


def test_like_exim_it_keeps_the_sender_of_a_refused_message():
    with ScriptedServer(exim_like=True) as server, Client(server) as client:
        server.on(".", "554 5.6.0 no")
        client.ask(b"MAIL FROM:<a@example.com>", b"RCPT TO:<b@example.com>", b"DATA")
        assert client.codes(b".") == [554]
        later = [b"MAIL FROM:<c@example.com>", b"RCPT TO:<d@example.com>", b"DATA", b"."]
        assert client.codes(*later) == [503, 250, 354, 250]
        assert server.messages[0].sender == "a@example.com"
        assert server.messages[0].recipients == ("b@example.com", "d@example.com")


# TLS and AUTH


@pytest.fixture(scope="session")
def contexts(tmp_path_factory):
    """A server's context with a certificate for localhost, and a client's that trusts it."""
    openssl = shutil.which("openssl")
    if openssl is None:
        pytest.skip("there is no openssl command to make a certificate with")
    folder = tmp_path_factory.mktemp("tls")
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
    server = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    server.load_cert_chain(certificate, key)
    return server, ssl.create_default_context(cafile=certificate)


def test_starttls_begins_a_new_session(contexts):
    with (
        ScriptedServer(tls_context=contexts[0]) as server,
        smtplib.SMTP(*server.address, timeout=10) as client,
    ):
        client.ehlo()
        assert client.has_extn("starttls")
        client.starttls(context=contexts[1])
        assert client.docmd("MAIL FROM:<a@example.com>")[0] == 503
        client.ehlo()
        assert not client.has_extn("starttls")
        client.sendmail("a@example.com", ["b@example.com"], CONTENT)
        assert server.messages[0].content == CONTENT
        assert server.connections[0].tls
        assert len(server.connections[0].ehlos) == 2


def test_what_was_said_in_clear_behind_starttls_is_thrown_away(contexts):
    with ScriptedServer(tls_context=contexts[0]) as server, Client(server) as client:
        client.say(b"STARTTLS", b"NOOP injected")
        assert client.reply().startswith(b"220 ")
        client.reader.close()
        with contexts[1].wrap_socket(client.socket, server_hostname="localhost") as encrypted:
            encrypted.sendall(b"NOOP\r\n")
            assert encrypted.recv(100).startswith(b"250 ")
        assert "NOOP injected" not in server.commands


def test_a_large_message_passes_implicit_tls(contexts):
    content = b"Subject: large\r\n\r\n" + b"x" * 70 * 1000 + b"\r\n"
    with (
        ScriptedServer(tls_context=contexts[0], implicit_tls=True) as server,
        smtplib.SMTP_SSL(*server.address, context=contexts[1], timeout=10) as client,
    ):
        assert server.url == f"smtps://127.0.0.1:{server.port}"
        client.sendmail("a@example.com", ["b@example.com"], content)
        assert server.messages[0].content == content


def test_a_client_that_does_not_like_the_certificate_ends_the_connection(contexts):
    with ScriptedServer(tls_context=contexts[0]) as server:
        with smtplib.SMTP(*server.address, timeout=10) as client:
            with pytest.raises(ssl.SSLError):
                client.starttls(context=ssl.create_default_context())
            client.close()
        server.wait_closed()


def test_implicit_tls_needs_a_context():
    with pytest.raises(ValueError, match="tls_context"):
        ScriptedServer(implicit_tls=True)


@pytest.mark.parametrize("mechanism", ["CRAM-MD5", "PLAIN", "LOGIN"])
@pytest.mark.parametrize("initial", [True, False])
def test_a_user_can_log_in_once_and_with_the_right_password(mechanism, initial):
    with (
        ScriptedServer(credentials={"user": "password"}) as server,
        smtplib.SMTP(*server.address, timeout=10) as client,
    ):
        client.ehlo()
        assert mechanism in client.esmtp_features["auth"].split()
        method = getattr(client, "auth_" + mechanism.lower().replace("-", "_"))
        client.user, client.password = "user", "wrong"
        with pytest.raises(smtplib.SMTPAuthenticationError, match="535"):
            client.auth(mechanism, method, initial_response_ok=initial)
        client.password = "password"
        assert client.auth(mechanism, method, initial_response_ok=initial)[0] == 235
        assert client.docmd("AUTH", mechanism)[0] == 503


def test_a_login_can_be_refused_by_a_rule():
    with ScriptedServer(credentials={"user": "pw"}) as server, Client(server) as client:
        server.on("AUTH", "454 4.7.0 not now")
        right = b"AUTH PLAIN AHVzZXIAcHc="
        assert client.codes(right, right) == [454, 235]


def test_an_exchange_can_go_wrong_in_other_ways():
    with ScriptedServer(credentials={"user": "pw"}) as server, Client(server) as client:
        assert client.codes(b"AUTH PLAIN", b"*", b"AUTH PLAIN", b"?") == [334, 501, 334, 501]
        assert client.codes(b"AUTH CRAM-MD5 =", b"AUTH CRAM-MD5", b"") == [535, 334, 535]
        assert client.codes(b"AUTH SCRAM-SHA-256-PLUS", b"AUTH NTLM") == [504, 504]


# Faults


@pytest.mark.parametrize(
    ("verb", "before"),
    [
        ("MAIL", []),
        ("RCPT", [b"MAIL FROM:<a@example.com>"]),
        ("DATA", [b"MAIL FROM:<a@example.com>", b"RCPT TO:<b@example.com>"]),
        (".", [b"MAIL FROM:<a@example.com>", b"RCPT TO:<b@example.com>", b"DATA"]),
        ("RSET", []),
        ("NOOP", []),
        ("QUIT", []),
        ("VRFY", []),
        ("HELO", []),
        ("EHLO", []),
    ],
)
def test_every_reply_can_be_replaced(server, verb, before):
    line = {
        "MAIL": b"MAIL FROM:<a@example.com>",
        "RCPT": b"RCPT TO:<b@example.com>",
        "VRFY": b"VRFY b",
        "HELO": b"HELO c",
        "EHLO": b"EHLO c",
    }.get(verb, verb.encode())
    with Client(server) as client:
        client.ask(*before)
        server.on(verb, "451 4.3.0 first\nsecond")
        assert client.ask(line) == [b"451-4.3.0 first\n451 second"]
    assert server.messages == []


def test_a_greeting_can_turn_clients_away(server):
    server.on("connect", "554 5.3.2 no service")
    with Client(server, ehlo=False) as client:
        assert client.reply() == b"554 5.3.2 no service"
        assert client.codes(b"EHLO client.example") == [503]
        assert client.codes(b"QUIT") == [221]
    with Client(server, ehlo=False) as client:
        assert client.reply().startswith(b"220 ")


def test_a_reply_of_lines_with_codes_keeps_one_code_a_line(server):
    server.on("NOOP", "250-one\n250 two")
    with Client(server) as client:
        assert client.ask(b"NOOP") == [b"250-one\n250 two"]


def test_rules_are_used_in_their_order_and_as_often_as_they_say(server):
    server.on("NOOP", "450 first")
    server.on("NOOP", "451 second", times=2)
    server.on("NOOP", "452 fifth and on", after=4, times=None)
    with Client(server) as client:
        codes = client.codes(*[b"NOOP"] * 7)
        assert codes == [450, 451, 451, 250, 452, 452, 452]
        server.clear()
        assert client.codes(b"NOOP") == [250]


def test_a_rule_can_be_for_one_argument_one_content_or_one_connection(server):
    server.on("MAIL", "550 sender", matching="bad@example.com")
    server.on(".", "554 content", matching="viagra")
    server.on(".", "555 sender", matching="C@example.com")
    server.on("NOOP", "450 busy", connection=2, times=None)
    group = [b"RCPT TO:<b@example.com>", b"DATA"]
    with Client(server) as first, Client(server) as second:
        assert first.codes(b"NOOP") == [250]
        assert second.codes(b"NOOP") == [450]
        assert first.codes(b"MAIL FROM:<BAD@example.com>", b"MAIL FROM:<ok@example.com>") == [
            *(550, 250)
        ]
        assert first.codes(*group, b"Buy viagra\r\n.") == [250, 354, 554]
        assert first.codes(b"MAIL FROM:<c@example.com>", *group, b".") == [250, 250, 354, 555]


def test_an_address_can_be_refused_until_that_is_cleared(server):
    server.refuse("Bob@example.com")
    server.refuse("eve@example.com", "450 4.2.1 later")
    with Client(server) as client:
        client.ask(b"MAIL FROM:<a@example.com>")
        bob, eve = b"RCPT TO:<bob@example.com>", b"RCPT TO:<eve@example.com>"
        assert client.codes(bob, eve, bob, b"RCPT TO:<notbob@example.com>") == [550, 450, 550, 250]
        server.clear()
        assert client.codes(bob) == [250]


def test_a_positive_reply_carries_a_command_out_that_would_have_been_refused(server):
    server.on("DATA", "354 nobody will get it")
    with Client(server) as client:
        assert client.codes(b"MAIL FROM:<a@example.com>", b"DATA", b".") == [250, 354, 554]
        assert client.codes(b"MAIL FROM:<a@example.com>") == [250]


def test_octets_are_sent_as_they_are(server):
    server.on("NOOP", b"\xff\0 250\n")
    with Client(server) as client:
        client.say(b"NOOP")
        assert client.reader.read(7) == b"\xff\0 250\n"


def test_a_reply_can_come_in_pieces(server):
    go_on = threading.Event()
    server.on("NOOP", then(b"25", Callback(lambda: go_on.wait(10)), b"0 slow\r\n"))
    with Client(server) as client:
        client.say(b"NOOP")
        assert client.reader.read(2) == b"25"
        go_on.set()
        assert client.reply() == b"0 slow"


def test_a_callback_runs_before_the_usual_reply(server):
    seen = []
    server.on("RCPT", Callback(lambda: seen.append(len(server.messages))))
    send(server)
    assert seen == [0]
    assert len(server.messages) == 1


@pytest.mark.parametrize("verb", ["connect", "NOOP"])
def test_close_ends_the_connection_in_order(server, verb):
    server.on(verb, CLOSE)
    with Client(server, ehlo=verb != "connect") as client:
        if verb == "NOOP":
            client.say(b"NOOP")
        assert client.at_end()
    server.wait_closed()


def test_then_says_something_before_it_closes(server):
    server.on("MAIL", then("421 4.3.2 shutting down", CLOSE))
    with Client(server) as client:
        client.say(b"MAIL FROM:<a@example.com>", b"RCPT TO:<b@example.com>")
        assert client.reply() == b"421 4.3.2 shutting down"
        assert client.at_end()


def test_reset_resets_the_connection(server):
    server.on("NOOP", RESET)
    with Client(server) as client:
        client.say(b"NOOP")
        with pytest.raises(ConnectionResetError):
            client.reply()


def test_an_accepted_message_whose_reply_is_lost_is_recorded(server):
    server.on(".", then(NO_REPLY, RESET))
    with Client(server) as client:
        client.ask(b"MAIL FROM:<a@example.com>", b"RCPT TO:<b@example.com>", b"DATA")
        client.say(b".")
        with pytest.raises(ConnectionResetError):
            client.reply()
    assert len(server.messages) == 1


def test_a_message_lost_before_it_was_accepted_is_not_recorded(server):
    server.on(".", RESET)
    with Client(server) as client:
        client.ask(b"MAIL FROM:<a@example.com>", b"RCPT TO:<b@example.com>", b"DATA")
        client.say(b".")
        with pytest.raises(ConnectionResetError):
            client.reply()
    assert server.messages == []


def test_hang_says_nothing_until_the_server_stops(server):
    server.on("NOOP", HANG)
    with Client(server) as client:
        client.say(b"NOOP")
        server.wait_for(lambda: "NOOP" in server.commands)
        client.say(b"QUIT")
        server.wait_for(lambda: server.connections[0].octets[-1][2] == b"QUIT\r\n")
        assert not server.connections[0].ended_by_quit
        assert not server.connections[0].closed
        server.stop()
        assert client.at_end()


def test_rules_of_the_last_chunk_are_those_of_the_final_reply_too():
    with ScriptedServer(extensions=CHUNKING) as server, Client(server) as client:
        server.on("BDAT", "451 4.3.0 chunk", matching="LAST")
        server.on(".", "452 4.3.1 final", after=1)
        for code in (b"451", b"250", b"452"):
            client.ask(b"MAIL FROM:<a@example.com>", b"RCPT TO:<b@example.com>")
            client.socket.sendall(b"BDAT 1 LAST\r\nx")
            assert client.reply()[:3] == code
        assert len(server.messages) == 1


@pytest.mark.parametrize(
    ("verb", "action", "error"),
    [
        ("NOPE", "250 ok", ValueError),
        ("MAIL", "no reply", ValueError),
        ("MAIL", "199 too low", ValueError),
        ("MAIL", None, TypeError),
    ],
)
def test_nonsense_rules_are_refused(server, verb, action, error):
    with pytest.raises(error):
        server.on(verb, action)


# Starting, stopping, dying


def test_start_and_stop_may_be_repeated():
    server = ScriptedServer()
    assert server.port == 0
    server.stop()
    assert server.start() is server
    port = server.port
    assert server.start().port == port
    send(server)
    server.stop()
    server.stop()
    with pytest.raises(ConnectionRefusedError):
        socket.create_connection(server.address, timeout=10)
    server.restart()
    assert server.port == port
    assert server.url == f"smtp://127.0.0.1:{port}"
    send(server)
    server.restart()
    server.stop()
    assert [message.connection for message in server.messages] == [1, 2]


def test_stop_leaves_no_thread_behind():
    before = set(threading.enumerate())
    with ScriptedServer() as server:
        with Client(server), Client(server):
            server.stop()
            assert set(threading.enumerate()) == before
        assert all(connection.closed for connection in server.connections)


def test_kill_resets_what_is_open_and_restart_comes_back(server):
    with Client(server) as client:
        server.kill()
        with pytest.raises(ConnectionResetError):
            client.reply()
    with pytest.raises(ConnectionRefusedError):
        Client(server)
    server.restart()
    send(server)
    assert len(server.messages) == 1


def test_it_can_die_in_the_middle_of_a_command(server):
    server.on(".", Callback(server.kill))
    with Client(server) as client:
        client.ask(b"MAIL FROM:<a@example.com>", b"RCPT TO:<b@example.com>", b"DATA")
        client.say(b".")
        with pytest.raises(ConnectionResetError):
            client.reply()
    assert server.messages == []


def test_stop_does_not_wait_for_a_client_that_does_not_read():
    extensions = ("PIPELINING",)
    with ScriptedServer(extensions=extensions) as server, Client(server) as client:
        server.on("NOOP", b"x" * 50_000_000)
        client.say(b"NOOP")
        server.wait_for(lambda: len(server.connections[0].octets[-1][2]) == 50_000_000)
        server.stop()
        assert server.connections[0].closed


def test_waiting_in_vain_ends(server):
    with pytest.raises(TimeoutError):
        server.wait_for(lambda: server.messages, timeout=0.01)
    with Client(server), pytest.raises(TimeoutError):
        server.wait_closed(timeout=0.01)


def test_many_clients_at_once(server):
    threads = [threading.Thread(target=send, args=(server, f"{n}@example.com")) for n in range(20)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert {m.sender for m in server.messages} == {f"{n}@example.com" for n in range(20)}
    assert sorted(c.number for c in server.connections) == list(range(1, 21))
