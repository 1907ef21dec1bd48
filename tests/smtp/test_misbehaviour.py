"""Every stage of the dialogue against every way to misbehave, through `transaction.commit()`.

Whatever a server does, commit() raises our errors only, in bounded time and memory; a message
counts as accepted only where the server took it; and the same mailer works again as soon as the
server behaves.
"""

from __future__ import annotations

import contextlib
import threading
import time
import tracemalloc

import pytest
from commits import check_error, check_held, commit, note
from smtp_helpers import RawServer

from txmail import Mailer, transport_from_url
from txmail.smtp import pool
from txmail.testing import CLOSE, HANG, NO_REPLY, RESET, Callback, ScriptedServer, then

EXTENSIONS = ("8BITMIME", "SMTPUTF8", "ENHANCEDSTATUSCODES", "SIZE 26214400")
STAGES = {
    "greeting": "connect",
    "EHLO": "EHLO",
    "HELO": "HELO",
    "STARTTLS": "STARTTLS",
    "AUTH": "AUTH",
    "MAIL": "MAIL",
    "RCPT": "RCPT",
    "DATA": "DATA",
    "final dot": ".",
    "RSET": "RSET",
    "NOOP": "NOOP",
    "QUIT": "QUIT",
}
#: what a reply has to be to mean yes
GOOD = {"greeting": b"220", "STARTTLS": b"220", "AUTH": b"235", "DATA": b"354", "QUIT": b"221"}
#: seconds of network time for a commit with a server that is slow on purpose
SHORT = 0.1
#: seconds within which any of these commits has to end
BOUND = 10.0
#: octets of memory that are ours and the scripted server's, who keeps what it has said; it wants
#: to say a hundred megabytes
MEMORY = 40_000_000
_CHUNK = b"2" * 1_000_000
_LINES = b"250-and so on\r\n" * 70_000
_REPLIES = b"250 Ok\r\n" * 125_000


def nothing():
    """Between octets: what is before it leaves at once."""


def flood(octets):
    return then(*[octets, Callback(nothing)] * 100)


def trickle(good):
    """The reply, an octet at a time, and then more and more of the same line."""
    pause = Callback(lambda: threading.Event().wait(SHORT / 20))
    octets = good + b" " + b"x" * 200
    return then(*[step for octet in octets for step in (bytes([octet]), pause)], HANG)


#: Name: a function of the code that would be good, and whether we have to wait for our own time-out
MISBEHAVIOURS = {
    "half-close": (lambda good: CLOSE, False),
    "reset": (lambda good: RESET, False),
    "reply and close": (lambda good: then(good + b" Ok\r\n", CLOSE), False),
    "reply and reset": (lambda good: then(good + b" Ok\r\n", RESET), False),
    "done, not said": (lambda good: then(NO_REPLY, CLOSE), False),
    "421": (lambda good: then("421 4.3.2 shutting down", CLOSE), False),
    "hang": (lambda good: HANG, True),
    "an octet at a time": (trickle, True),
    "no line end": (lambda good: then(good + b" Ok", HANG), True),
    "no line end, close": (lambda good: then(good + b" Ok", CLOSE), False),
    "bare LF": (lambda good: good + b" Ok\n", False),
    "bare CR": (lambda good: then(good + b" Ok\r", HANG), True),
    "LF CR": (lambda good: then(good + b" Ok\n\r", HANG), False),
    "half a code": (lambda good: then(good[:2], CLOSE), False),
    "code 99": (lambda good: b"99 Ok\r\n", False),
    "code 2_5": (lambda good: b"2_5 Ok\r\n", False),
    "code 2500": (lambda good: good + b"0 Ok\r\n", False),
    "code 199": (lambda good: b"199 Ok\r\n", False),
    "code 600": (lambda good: b"600 Ok\r\n", False),
    "another script": (lambda good: "٢٥٠ Ok\r\n".encode(), False),
    "a space first": (lambda good: b" " + good + b" Ok\r\n", False),
    "no separator": (lambda good: good + b"Ok\r\n", False),
    "empty line": (lambda good: b"\r\n", False),
    "mixed codes": (lambda good: good + b"-one\r\n550 two\r\n", False),
    "mixed codes, good last": (lambda good: b"550-one\r\n" + good + b" two\r\n", False),
    "a line of 100 MB": (lambda good: flood(_CHUNK), False),
    "continued for ever": (lambda good: flood(_LINES), False),
    "replies for ever": (lambda good: flood(_REPLIES), False),
    "an extra reply": (lambda good: good + b" Ok\r\n250 extra\r\n", False),
    "an extra refusal": (lambda good: good + b" Ok\r\n550 extra\r\n", False),
    "an extra 354": (lambda good: good + b" Ok\r\n354 extra\r\n", False),
    "the next replies too": (lambda good: good + b" Ok\r\n250 Ok\r\n250 Ok\r\n354 go\r\n", False),
    "NULs": (lambda good: b"\0" * 5000, False),
    "NULs before": (lambda good: b"\0\0" + good + b" Ok\r\n", False),
    "NULs in the text": (lambda good: good + b" O\0\x1b[2Jk\r\n", False),
    "refused, then taken": (lambda good: b"550 no\r\n" + good + b" Ok\r\n", False),
}
#: what is odd and no fault: the reply is complete and well-formed
HARMLESS = {"NULs in the text"}


@pytest.fixture
def playing(tm, context, monkeypatch):
    """A server that gets to `stage`, and a mailer for it."""
    with contextlib.ExitStack() as stack:

        def play(stage, pipelining):
            extensions = (*EXTENSIONS, "PIPELINING") if pipelining else EXTENSIONS
            options, account, query = {}, "", "local_hostname=client.example"
            if stage == "STARTTLS":
                options, query = {"tls_context": context}, "tls=opportunistic"
            elif stage == "AUTH":
                options, query = {"credentials": {"ann": "secret"}}, "auth_in_clear=yes"
                account = "ann:secret@"
            server = stack.enter_context(
                ScriptedServer(extensions=extensions, ehlo=stage != "HELO", **options)
            )
            url = f"smtp://{account}127.0.0.1:{server.port}?{query}"
            preflight = "never" if stage == "NOOP" else "auto"
            mailer = Mailer(transport_from_url(url), transaction_manager=tm, preflight=preflight)
            stack.callback(mailer.close)
            if stage == "NOOP":
                monkeypatch.setattr(pool, "VERIFY_AFTER", -1.0)
                monkeypatch.setattr(pool, "VERIFY_TIMEOUT", SHORT)
            return server, mailer

        yield play


@contextlib.contextmanager
def bounded(memory=False):
    """In a bounded time and, if it is looked at, memory."""
    began = time.monotonic()
    if memory:
        tracemalloc.start()
    try:
        yield
    finally:
        peak = tracemalloc.get_traced_memory()[1] if memory else 0
        tracemalloc.stop()
    assert time.monotonic() - began < BOUND
    assert peak < MEMORY


def seconds(mailer, number):
    mailer._direct.commit_timeout = number


@pytest.mark.representative(every=24)
@pytest.mark.parametrize("stage", STAGES)
@pytest.mark.parametrize("name", MISBEHAVIOURS)
@pytest.mark.parametrize("pipelining", [True, False], ids=["pipelined", "lockstep"])
def test_whatever_a_server_does(playing, tm, stage, name, pipelining):
    misbehave, slow = MISBEHAVIOURS[name]
    server, mailer = playing(stage, pipelining)
    held = 0
    if stage in ("NOOP", "QUIT"):  # a connection that was used before
        assert commit(tm, mailer, note("first")).error is None
        held = 1
    server.on(STAGES[stage], misbehave(GOOD.get(stage, b"250")), times=None)

    if slow and stage != "NOOP":
        seconds(mailer, SHORT)
    with bounded(memory="ever" in name or "MB" in name):
        if stage == "QUIT":
            mailer.close()
            server.clear()
        ended = commit(tm, mailer, note("one"), note("two"))
        mailer.close()
    check_error(ended)
    server.clear()
    server.restart()
    check_held(ended, server.messages[held:])
    assert ended.statuses.count("in_doubt") <= 1
    if stage not in ("final dot", "NOOP", "QUIT") and name not in HARMLESS:
        assert "accepted" not in ended.statuses
        # A 354 and then the end: that it was the end is known when the content is on its way.
        went_on = stage == "DATA" and name in ("reply and close", "reply and reset")
        assert went_on or "in_doubt" not in ended.statuses
    if stage in ("NOOP", "QUIT") or name in HARMLESS:
        assert ended.statuses == ["accepted"] * 2

    # Nothing of it sticks to the mailer.
    seconds(mailer, BOUND)
    before = len(server.messages)
    again = commit(tm, mailer, note("three"), note("four"))
    assert again.statuses == ["accepted"] * 2
    check_held(again, server.messages[before:])


# What EHLO promises and the server does not keep


EVERYTHING = b"250-mx\r\n250-PIPELINING\r\n250-8BITMIME\r\n250-SMTPUTF8\r\n250 SIZE 9000\r\n"


def lying(server_says, took):
    """A server that offers everything, and answers as `server_says` has it.

    `server_says` is a function of a command line, or of the final dot; None leaves the answer to a
    server that takes all. What it took goes to `took`.
    """

    def serve(connected, stopping):
        connected.sendall(b"220 mx\r\n")
        reader = connected.makefile("rb")
        while line := reader.readline():
            usual = b"250 Ok\r\n"
            if line.startswith(b"EHLO"):
                usual = EVERYTHING
            elif line == b"DATA\r\n":
                connected.sendall(b"354 go\r\n")
                content = b""
                while (line := reader.readline()) not in (b".\r\n", b""):
                    content += line
                if not line:
                    return
                line = b"."
                if server_says(line) is None:
                    took.append(content)
            connected.sendall(server_says(line) or usual)

    return serve


def refusing(word, reply):
    return lambda line: reply if word in line else None


NOT_7BIT = b"554 5.6.1 octets above 127\r\n"
LIES = {
    "SIZE": (refusing(b"SIZE=", b"555 5.5.4 SIZE is not known\r\n"), "failed"),
    "SIZE, too big after all": (refusing(b"SIZE=", b"552 5.3.4 too big\r\n"), "failed"),
    "8BITMIME": (refusing(b"8BITMIME", b"501 5.5.4 BODY is not known\r\n"), "failed"),
    "8BITMIME at the end": (lambda line: NOT_7BIT if line == b"." else None, "failed"),
    "SMTPUTF8": (refusing(b"SMTPUTF8", b"555 5.6.7 SMTPUTF8 is not known\r\n"), "failed"),
    "SMTPUTF8 at RCPT": (refusing(b"RCPT", b"553 5.6.7 ASCII only\r\n"), "failed"),
}


@pytest.mark.parametrize("lie", LIES)
@pytest.mark.parametrize("preflight", ["auto", "never"])
def test_an_ehlo_that_lies(tm, lie, preflight):
    """The message that needs it is refused, as the server says, and the other one is fine."""
    says, expected = LIES[lie]
    took, lies = [], [True]
    needy = note("one", body="süß\r\n".encode(), recipients=["ü@example.net"])
    with RawServer(lying(lambda line: says(line) if lies[0] else None, took)) as server:
        host, port = server.address
        transport = transport_from_url(f"smtp://{host}:{port}")
        mailer = Mailer(transport, transaction_manager=tm, preflight=preflight)
        ended = commit(tm, mailer, needy)
        assert ended.statuses == [expected]
        assert ended.outcomes[0].reply.code in (501, 552, 553, 554, 555)
        check_error(ended)
        assert took == []
        lies[0] = False
        assert commit(tm, mailer, needy).error is None
        mailer.close()
    assert len(took) == 1


@pytest.mark.parametrize("preflight", ["auto", "never"])
def test_a_server_that_offers_pipelining_and_cannot_do_it(tm, preflight):
    """It reads one line and throws away what came with it: we are never left with a success."""
    heard = []

    def serve(connected, stopping):
        connected.sendall(b"220 mx\r\n")
        while octets := connected.recv(65536):
            line = octets.partition(b"\r\n")[0]
            heard.append(line)
            if line.startswith(b"EHLO"):
                connected.sendall(b"250-mx\r\n250 PIPELINING\r\n")
            else:
                connected.sendall(b"354 go\r\n" if line == b"DATA" else b"250 Ok\r\n")

    with RawServer(serve) as server:
        host, port = server.address
        transport = transport_from_url(f"smtp://{host}:{port}")
        mailer = Mailer(transport, transaction_manager=tm, preflight=preflight, commit_timeout=0.3)
        with bounded():
            ended = commit(tm, mailer, note("one"), note("two"))
        mailer.close()
    assert ended.statuses == ["unsent", "unsent"]
    check_error(ended)
    assert b"DATA" not in heard


def test_a_server_that_throws_out_clients_who_pipeline_is_used_without(tm):
    """The URL option is there for it."""
    with ScriptedServer(extensions=EXTENSIONS) as server:
        server.on("EHLO", "250-mx\n250-PIPELINING\n250 SIZE", times=None)
        for query, expected in (("", "unsent"), ("?pipelining=no", "accepted")):
            transport = transport_from_url(server.url + query)
            mailer = Mailer(transport, transaction_manager=tm)
            ended = commit(tm, mailer, note("one"), note("two"))
            assert ended.statuses == [expected] * 2
            check_error(ended)
            mailer.close()
        assert len(server.messages) == 2
