"""Every row of the failure table against real servers, through `transaction.commit()`."""

from __future__ import annotations

import contextlib
import errno
import os
import socket
from urllib.parse import quote

import failure_page
import pytest
from commits import check_error, check_held, commit, note
from rows import IN_TRANSACTION, OPENING, VERBS, events, replies_at
from smtp_helpers import RawServer, certificates, greeted

from txmail import Mailer, Message, transport_from_url
from txmail.exceptions import (
    MessageError,
    PartialDelivery,
)
from txmail.reply import Reply
from txmail.smtp import pool
from txmail.smtp.failure_policy import (
    ACCEPTED,
    DEFER_RECIPIENT,
    NEEDS_EHLO,
    SPLIT,
    TABLE,
    UNSENT,
    Step,
    judge,
)
from txmail.testing import CLOSE, HANG, NO_REPLY, RESET, ScriptedServer, then
from txmail.transports.local.folder import FileTransport


class Play:
    """Where a scene is played: servers, mailers, and one commit after the other."""

    def __init__(self, tm, stack, monkeypatch, tmp_path):
        self.tm, self.stack = tm, stack
        self.monkeypatch, self.tmp_path = monkeypatch, tmp_path
        self.server = None

    def serve(self, **options):
        self.server = self.stack.enter_context(ScriptedServer(**options))
        return self.server

    def raw(self, serve):
        return self.stack.enter_context(RawServer(serve))

    def certificates(self):
        return certificates(self.tmp_path)

    def mailer(self, query="", *, account="", address=None, transport=None, **options):
        if transport is None:
            host, port = address or self.server.address
            transport = transport_from_url(f"smtp://{account}{host}:{port}?{query}")
        mailer = Mailer(transport, transaction_manager=self.tm, **options)
        self.stack.callback(mailer.close)
        return mailer

    def commit(self, mailer, *envelopes):
        return commit(self.tm, mailer, *envelopes)


@pytest.fixture
def play(tm, monkeypatch, tmp_path):
    with contextlib.ExitStack() as stack:
        yield Play(tm, stack, monkeypatch, tmp_path)
        tm.abort()


def check_outcome(outcome, verdict):
    assert (outcome.status, outcome.scope, outcome.action) == (
        *(verdict.status, verdict.scope),
        verdict.action,
    )


# Replies


@pytest.mark.representative(every=8)
@pytest.mark.parametrize("before", [0, 1], ids=["first", "second"])
@pytest.mark.parametrize("preflight", ["auto", "never"])
@pytest.mark.parametrize(("where", "said", "row"), replies_at(*IN_TRANSACTION))
def test_a_reply_in_a_mail_transaction(play, where, said, row, preflight, before):
    server, verdict = play.serve(), row.verdict
    asked = preflight == "auto" and where in ("MAIL", "RCPT")
    matching = "<two@" if asked or where in ("MAIL", "RCPT") else ""
    after = 0 if matching else before
    server.on(VERBS.get(where, where), said, matching=matching, after=after, times=None)
    mailer = play.mailer(preflight=preflight)
    ended = play.commit(mailer, *[note("one")][:before], note("two"))

    if verdict is SPLIT:  # there is nobody to split it from
        verdict = DEFER_RECIPIENT
    if asked and said.startswith("421"):  # the preflight is not about one message
        verdict = UNSENT
    check_outcome(ended.outcomes[-1], verdict)
    if verdict is not ACCEPTED or where == "final dot":
        assert str(ended.outcomes[-1].reply) == said
    if before:
        unsent = asked and verdict is not ACCEPTED
        assert ended.outcomes[0].status == ("unsent" if unsent else "accepted")
    check_error(ended)
    server.stop()
    check_held(ended, server.messages)


@pytest.mark.parametrize("pipelining", ["yes", "no"])
@pytest.mark.parametrize("where", ["MAIL", "RCPT", "DATA", "final dot"])
@pytest.mark.parametrize("code", [399, 298])
def test_a_reply_that_does_not_belong_there_is_malformed(play, where, code, pipelining):
    """Where a 2yz or 3yz has no row it is no verdict about anything."""
    if any(where in row.stages and f"{code // 100}xx" in row.replies for row in TABLE):
        assert judge(Step(where), Reply(code)) is ACCEPTED
        return
    server = play.serve()
    server.on(VERBS.get(where, where), f"{code} said", times=None)
    ended = play.commit(play.mailer(f"pipelining={pipelining}"), note("one"))
    expected = "in_doubt" if where == "final dot" else "unsent"
    assert [str(o.status) for o in ended.outcomes] == [expected]
    check_error(ended)


@pytest.mark.parametrize("preflight", ["auto", "never"])
@pytest.mark.parametrize("said", ["452 4.5.3 many", "552 5.5.3 many", "452 many", "552 many"])
def test_too_many_recipients_are_split_and_all_get_it(play, said, preflight):
    server = play.serve()
    server.on("RCPT", said, matching="c@")
    ended = play.commit(
        play.mailer(preflight=preflight),
        note("one", recipients=[f"{name}@example.net" for name in "abc"]),
    )
    check_error(ended)
    server.stop()
    check_held(ended, server.messages)
    assert [str(o.status) for o in ended.outcomes] == ["accepted"] * 3
    assert judge(Step.RCPT, Reply(int(said[:3]), (said[4:],))) is SPLIT


@pytest.mark.parametrize(("where", "said", "row"), replies_at(*OPENING))
def test_a_reply_outside_mail_transactions(play, where, said, row):
    account, query, options = "", "", {}
    if where == "HELO":
        options = {"ehlo": False}
    elif where == "STARTTLS":
        options, query = {"tls_context": play.certificates()}, "tls=opportunistic"
    elif where == "AUTH":
        options, query = {"credentials": {"ann": "secret"}}, "auth_in_clear=yes"
        account = "ann:secret@"
    server = play.serve(**options)
    server.on(VERBS.get(where, where), said, times=None)
    # Two messages, so that there is a RSET between questions.
    ended = play.commit(play.mailer(query, account=account), note("one"), note("two"))
    for outcome in ended.outcomes:
        check_outcome(outcome, row.verdict)
        assert outcome.reply.code == int(said[:3])
    check_error(ended)
    server.stop()
    check_held(ended, server.messages)


def test_every_reply_of_the_table_is_tried():
    stages = {stage for row in TABLE if row.replies for stage in row.stages}
    assert stages == {*IN_TRANSACTION, *OPENING}


# Events

SCENES = {}


def scene(stage, event):
    """`function` plays the event; it returns what became of it, or does its own checks."""

    def keep(function):
        assert (stage, event) not in SCENES
        SCENES[stage, event] = function
        return function

    return keep


def scenes(stages, *events):
    """`function` plays several events, which it gets with the stage and the `Play`."""

    def keep(function):
        for where in stages:
            for event in events:
                scene(where, event)(
                    lambda play, where=where, event=event: function(play, where, event)
                )
        return function

    return keep


def test_every_event_of_the_table_is_tried():
    assert {parameter.values[:2] for parameter in events()} == set(SCENES)


@pytest.mark.representative(every=6)
@pytest.mark.parametrize(("where", "event", "row"), events())
def test_an_event(play, where, event, row):
    ended = SCENES[where, event](play)
    if ended is None:
        return
    assert ended.outcomes
    for outcome in ended.outcomes:
        check_outcome(outcome, row.verdict)
    check_error(ended)
    if play.server is not None:
        play.server.stop()
        check_held(ended, play.server.messages)


@scene("connect", "refused")
def _(play):
    with socket.create_server(("127.0.0.1", 0)) as free:
        address = free.getsockname()
    return play.commit(play.mailer(address=address), note("one"))


def addresses(play, address):
    found = [(socket.AF_INET, socket.SOCK_STREAM, 6, "", address)]
    play.monkeypatch.setattr(socket, "getaddrinfo", lambda *_, **__: found)


@scene("connect", "unreachable")
def _(play):
    addresses(play, ("255.255.255.255", 25))  # no connection can have that end, on any machine
    return play.commit(play.mailer(address=("127.0.0.1", 25)), note("one"))


@scene("connect", "time-out")
def _(play):
    """The queue of the listener is full: a handshake has to wait."""
    listener = play.stack.enter_context(socket.create_server(("127.0.0.1", 0), backlog=0))
    for _ in range(3):
        waiting = play.stack.enter_context(socket.socket())
        waiting.setblocking(False)
        waiting.connect_ex(listener.getsockname())
    mailer = play.mailer("timeout=0.1", address=listener.getsockname())
    return play.commit(mailer, note("one"))


def resolver(play, code):
    def fail(*_, **__):
        raise socket.gaierror(code, "it says")

    play.monkeypatch.setattr(socket, "getaddrinfo", fail)
    return play.commit(play.mailer(address=("127.0.0.1", 25)), note("one"))


@scene("connect", "temporary DNS failure")
def _(play):
    return resolver(play, socket.EAI_AGAIN)


@scene("connect", "no such host")
def _(play):
    return resolver(play, socket.EAI_NONAME)


ACTIONS = {
    "EOF": CLOSE,
    "reset": RESET,
    "time-out": HANG,
    "malformed": b"SSH-2.0-OpenSSH_9.2\r\n",
    "partial line": then(b"25", CLOSE),
}


@scenes(["greeting"], "EOF", "reset", "time-out", "malformed")
@scenes(["EHLO"], "EOF")
def _(play, where, event):
    server = play.serve()
    server.on(VERBS.get(where, where), ACTIONS[event], times=None)
    return play.commit(play.mailer("timeout=0.1"), note("one"))


@scene("EHLO", "500, 502 or 504, HELO will do")
def _(play):
    play.serve(ehlo=False)
    ended = None
    for code in (500, 502, 504):
        play.server.on("EHLO", f"{code} what")
        ended = play.commit(play.mailer(), note(f"one{code}"))
        assert ended.error is None
    play.server.restart()
    assert [c.commands[1].split()[0] for c in play.server.connections] == ["HELO"] * 3
    assert len(play.server.messages) == 3


@scene("EHLO", "500, 502 or 504, TLS or AUTH needed")
def _(play):
    play.serve(ehlo=False)
    for code in (500, 502, 504):
        play.server.on("EHLO", f"{code} what")
        ended = play.commit(play.mailer("tls=required"), note("one"))
        assert ended.outcomes[0].action == "stop_route"
        assert ended.outcomes[0].reply.code == code
    mailer = play.mailer("auth_in_clear=yes", account="ann:secret@")
    return play.commit(mailer, note("one"))


@scene("EHLO", "500, 502 or 504, SMTPUTF8 needed")
def _(play):
    play.serve(ehlo=False)
    envelope = note("one", sender="söd@example.com")
    ended = play.commit(play.mailer(preflight="never"), envelope)
    check_outcome(ended.outcomes[0], NEEDS_EHLO)
    return play.commit(play.mailer(), envelope)


@scene("STARTTLS", "not offered")
def _(play):
    play.serve()
    return play.commit(play.mailer("tls=required"), note("one"))


TLS_ACTIONS = {
    "EOF": CLOSE,
    "more octets behind the 220": b"220 go\r\n250-injected\r\n250 SIZE\r\n",
    "handshake fails": then(b"220 go\r\n", b"\x15\x03\x03\x00\x02\x02\x28", CLOSE),
}


@scenes(["STARTTLS"], "EOF", "more octets behind the 220")
@scenes(["TLS"], "handshake fails")
def _(play, where, event):
    server = play.serve(tls_context=play.certificates())
    server.on("STARTTLS", TLS_ACTIONS[event], times=None)
    ended = None
    for tls in ("required", "opportunistic"):
        ended = play.commit(play.mailer(f"tls={tls}"), note("one"))
        assert not any(line.startswith("MAIL") for line in server.commands)
    return ended


@scene("TLS", "certificate does not verify")
def _(play):
    play.serve(tls_context=play.certificates())
    return play.commit(play.mailer("tls=required"), note("one"))


@scene("AUTH", "no mechanism that we know")
def _(play):
    play.serve()
    mailer = play.mailer("auth_in_clear=yes", account="ann:secret@")
    return play.commit(mailer, note("one"))


@scene("AUTH", "EOF")
def _(play):
    server = play.serve(credentials={"ann": "secret"})
    server.on("AUTH", CLOSE, times=None)
    mailer = play.mailer("auth_in_clear=yes", account="ann:secret@")
    return play.commit(mailer, note("one"))


@scenes(["MAIL", "RCPT", "DATA"], "EOF or reset, once", "EOF or reset, again")
def _(play, where, event):
    server = play.serve()
    ended = None
    for number, action in enumerate((CLOSE, RESET, then("421 4.3.2 bye", CLOSE))):
        once = event.endswith("once")
        if number == 2 and not once:  # that is a reply, which has rows of its own
            continue
        server.clear()
        server.on(where, action, times=1 if once else None)
        before = len(server.connections)
        mailer = play.mailer()
        ended = play.commit(mailer, note("one"))
        mailer.close()
        assert len(server.connections) == before + 2
        assert (ended.error is None) is once
    if not once:
        return ended
    server.stop()
    assert len(server.messages) == 3
    return None


@scenes(["MAIL", "RCPT", "DATA"], "time-out", "malformed")
def _(play, where, event):
    server = play.serve()
    server.on(where, ACTIONS[event], times=None)
    return play.commit(play.mailer("timeout=0.1"), note("one"))


#: more than what the kernel takes for a server that does not read
LARGE = b"".join(b"%075d\r\n" % number for number in range(200_000))


def in_the_content(play, answer, *, reset=False):
    """A server that says `answer` when it has read a little of the content, and hangs up."""

    def serve(connected, stopping):
        reader = greeted(connected)
        for line in reader:
            connected.sendall(b"354 go\r\n" if line == b"DATA\r\n" else b"250 Ok\r\n")
            if line == b"DATA\r\n":
                break
        reader.read(1000)
        connected.sendall(answer)
        if answer:
            connected.shutdown(socket.SHUT_WR)
            while octets := reader.read(65536):
                received.extend(octets)
        reader.close()
        connected.close()

    received = bytearray()
    server = play.raw(serve)
    ended = play.commit(play.mailer(address=server.address), note("one", body=LARGE))
    assert len(received) < len(LARGE)
    assert b"\r\n.\r\n" not in received
    return ended


@scene("content", "connection lost before the final dot")
def _(play):
    return in_the_content(play, b"")


@scene("content", "4xx before the final dot")
def _(play):
    return in_the_content(play, b"452 4.3.1 no space\r\n")


@scene("content", "5xx before the final dot")
def _(play):
    return in_the_content(play, b"552 5.3.4 too big\r\n")


FINAL_ACTIONS = {**ACTIONS, "malformed": then(b"250 2.0.0 Ok\n", CLOSE)}


@scene("final dot", "more than was due")
def _(play):
    play.serve().on(".", b"250 2.0.0 Ok\r\n550 5.7.1 no\r\n", times=None)
    return play.commit(play.mailer(), note("one"))


@scenes(["final dot"], "EOF", "reset", "time-out", "partial line", "malformed")
def _(play, where, event):
    """Once with the message taken and once not: nobody can tell from here."""
    server = play.serve()
    action = FINAL_ACTIONS[event]
    for taken in (False, True):
        server.clear()
        server.on(".", then(NO_REPLY, action) if taken else then(b"", action))
        ended = play.commit(play.mailer("timeout=0.1"), note("one"))
        if not taken:
            assert type(ended.error) is PartialDelivery
            assert ended.error.in_doubt == ended.outcomes
    assert [m.sender for m in server.messages] == ["one@example.com"]
    return ended


@scene("RSET", "EOF")
def _(play):
    server = play.serve()
    server.on("RSET", CLOSE)
    ended = play.commit(play.mailer(), note("one"), note("two"))
    assert len(server.connections) == 2
    return ended


@scene("NOOP", "anything")
def _(play):
    """It is said where a kept connection was idle and no preflight asks."""
    play.monkeypatch.setattr(pool, "VERIFY_AFTER", -1.0)
    play.monkeypatch.setattr(pool, "VERIFY_TIMEOUT", 0.1)
    server = play.serve()
    mailer = play.mailer(preflight="never")
    actions = (CLOSE, RESET, HANG, "500 what", "421 bye", b"2", b"250 Ok\n", b"\0\r\n")
    assert play.commit(mailer, note("first")).error is None
    for number, action in enumerate(actions):
        server.on("NOOP", action)
        assert play.commit(mailer, note(f"one{number}")).error is None
        assert len(server.connections) == number + 2
    assert sum(line == "NOOP" for line in server.commands) == len(actions)
    assert len(server.messages) == 1 + len(actions)


@scene("QUIT", "anything")
def _(play):
    server = play.serve()
    for number, action in enumerate((CLOSE, RESET, HANG, "500 what", "421 bye", b"2", b"")):
        server.on("QUIT", action)
        mailer = play.mailer()
        ended = play.commit(mailer, note(f"one{number}"))
        mailer.close()
        assert ended.error is None
        assert len(server.messages) == number + 1


STREAM = ("PIPELINING", "CHUNKING")


@scene("BDAT", "500 to 504, recipients accepted")
def _(play):
    server = play.serve(extensions=STREAM)
    server.on("BDAT", "502 5.5.1 what?", times=None)
    ended = play.commit(play.mailer(), note("one"), note("two"))
    assert ended.error is None
    assert len(server.messages) == 2
    assert [line.split()[0] for line in server.commands].count("BDAT") == 1


@scene("stream", "RSET refused, but not with 421")
def _(play):
    server = play.serve(extensions=STREAM)
    server.on("RSET", "500 5.5.1 what?", after=1)  # not in the preflight
    ended = play.commit(play.mailer("window=2"), note("one"), note("two"))
    assert ended.statuses == ["accepted", "accepted"]
    assert len(server.messages) == 2
    # Behind a message that was not accepted, who is the sender of the next one?
    server.clear()
    server.on("RSET", "500 5.5.1 what?", after=1)
    server.on(".", "554 5.7.1 no")
    doubtful = play.commit(play.mailer("window=2"), note("three"), note("four"))
    assert doubtful.statuses == ["failed", "in_doubt"]
    assert len(server.messages) == 3


@scene("idle reuse", "421 unasked")
def _(play):
    """The server says goodbye between two transactions."""
    server = play.serve()
    mailer = play.mailer()
    server.on(".", then("250 2.0.0 Ok", "421 4.4.2 idle too long", CLOSE))
    assert play.commit(mailer, note("first")).error is None
    server.wait_for(lambda: server.connections[0].closed)
    ended = play.commit(mailer, note("one"))
    assert len(server.connections) == 2
    assert ended.error is None
    assert len(server.messages) == 2


@scene("idle reuse", "EOF")
def _(play):
    server = play.serve()
    mailer = play.mailer()
    assert play.commit(mailer, note("first")).error is None
    server.restart()
    ended = play.commit(mailer, note("one"))
    assert len(server.connections) == 2
    assert ended.error is None
    assert len(server.messages) == 2


@scene("local", "cannot be rendered")
def _(play):
    play.serve()
    mailer = play.mailer()
    play.tm.begin()
    with pytest.raises(MessageError):
        mailer.send(Message("one\ntwo", ["one@example.net"], "Hello", sender="one@example.com"))
    play.tm.commit()
    assert play.server.connections == []


@scene("local", "SMTPUTF8 not offered")
def _(play):
    play.serve(extensions=("PIPELINING", "8BITMIME"))
    ended = play.commit(play.mailer(), note("one", sender="söd@example.com"))
    assert ended.outcomes[0].reason.startswith("5.6.7 ")
    return ended


@scene("local", "8BITMIME not offered")
def _(play):
    play.serve(extensions=("PIPELINING", "SMTPUTF8"))
    ended = play.commit(play.mailer(), note("one", body="süß\r\n".encode()))
    assert ended.outcomes[0].reason.startswith("5.6.3 ")
    return ended


@scene("local", "larger than the server takes")
def _(play):
    play.serve(extensions=("SIZE 100",))
    ended = play.commit(play.mailer(), note("one"))
    assert ended.outcomes[0].reason.startswith("5.3.4 ")
    assert not any(line.startswith("MAIL") for line in play.server.commands)
    return ended


@scene("local", "memory, disk or database")
def _(play):
    """The disk, as the transport that writes to one finds it."""

    def full(*_):
        raise OSError(errno.ENOSPC, "No space left on device")

    play.monkeypatch.setattr(os, "fsync", full)
    return play.commit(play.mailer(transport=FileTransport(play.tmp_path)), note("one"))


def program(play, end):
    path = play.tmp_path / "sendmail"
    path.write_text(f"#!/bin/sh\ncat > /dev/null\n{end}\n")
    path.chmod(0o700)
    transport = transport_from_url(f"sendmail://{quote(str(path))}")
    return play.commit(play.mailer(transport=transport), note("one"))


EXITS = {
    "exit 68, 69 or 75": ["exit 68", "exit 69", "exit 75"],
    "exit 64 or 65": ["exit 64", "exit 65"],
    "exit 67": ["exit 67"],
    "any other exit": ["exit 1", "exit 70", "exit 127", "exit 255"],
    "ended by a signal": ["kill -9 $$"],
}


@scenes(["sendmail"], *EXITS)
def _(play, where, event):
    *others, last = EXITS[event]
    verdict = next(row.verdict for row in TABLE if row.event == event)
    for end in others:
        check_outcome(program(play, end).outcomes[0], verdict)
    return program(play, last)


# The page


def test_the_page_shows_the_table():
    """An ``include`` would show nothing where most people will read it."""
    page = failure_page.PAGE.read_text("utf-8")
    assert f"\n\n{failure_page.shown()}\n" in page, "run python tests/support/failure_page.py"


def test_the_page_shows_every_row():
    shown = " ".join(failure_page.shown().split())
    for row in TABLE:
        verdict = row.verdict
        cells = (row.event or ", ".join(row.replies), verdict.status, verdict.scope, verdict.action)
        assert " ".join(cells) in shown, row
        assert f"**{', '.join(row.stages)}**" in shown, row
