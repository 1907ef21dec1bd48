"""Every row of the failure table as a worker keeps it: state, tries, the route, and all others.

Each time a message for which something goes wrong stands between messages for which nothing does.
"""

from __future__ import annotations

import contextlib
import errno
import os
import socket
from urllib.parse import quote

import pytest
from commits import note
from queues import OWN_SQLITE, kinds
from rows import IN_TRANSACTION, OPENING, VERBS, events, replies_at
from smtp_helpers import RawServer, certificates, greeted

sa = pytest.importorskip("sqlalchemy")

from workers import change, put, put_many  # noqa: E402

from txmail import transport_from_url  # noqa: E402
from txmail.events import Events, RouteFailed, RouteSlowed, RouteStopped  # noqa: E402
from txmail.queue import schema  # noqa: E402
from txmail.queue.sql import route_state  # noqa: E402
from txmail.smtp import pool  # noqa: E402
from txmail.testing import CLOSE, HANG, NO_REPLY, RESET, ScriptedServer, then  # noqa: E402
from txmail.transports.local.folder import FileTransport  # noqa: E402
from txmail.worker import run_once  # noqa: E402

WORKS, FAILS, STOPS = route_state.CLOSED, route_state.OPEN, route_state.STOPPED
BAD, BAD_ID = "bad@example.net", "<bad@example.com>"
#: Messages in front of the bad one.
BEFORE = 2
STREAM = ("PIPELINING", "CHUNKING")

#: By what the table says: the state, how many tries it cost, and what the route is taken for.
ENDS = {
    ("accepted", "message", "done"): ("sent", 1, WORKS),
    ("failed", "message", "fail"): ("failed", 1, WORKS),
    ("failed", "recipient", "fail"): ("failed", 1, WORKS),
    ("deferred", "message", "defer"): ("deferred", 1, WORKS),
    ("deferred", "recipient", "defer"): ("deferred", 1, WORKS),
    ("deferred", "recipient", "split"): ("deferred", 1, WORKS),  # there is nobody to split it from
    ("in_doubt", "message", "in_doubt"): ("in_doubt", 1, WORKS),
    ("unsent", "route", "defer_route"): ("ready", 0, FAILS),
    ("deferred", "route", "defer_route"): ("ready", 0, FAILS),
    ("deferred", "route", "defer"): ("ready", 0, FAILS),
    ("unsent", "route", "stop_route"): ("ready", 0, STOPS),
    ("deferred", "route", "stop_route"): ("ready", 0, STOPS),
}
#: Rows of which a worker makes something else, and why.
OTHERWISE = {
    # Another connection takes it: the state of no message changes.
    "RSET": ("sent", 1, WORKS),
    # No `send` has refused it, so that it has come into the queue: it was never tried.
    "cannot be rendered": ("failed", 0, WORKS),
}


class Play:
    """Where a scene is played. It may change the bad message, or what is in the queue."""

    def __init__(self, app, stack, monkeypatch, tmp_path):
        self.app, self.stack = app, stack
        self.monkeypatch, self.tmp_path = monkeypatch, tmp_path
        self.server = None
        self.bad = note("bad")
        self.told = []
        self.events = Events()
        self.events.subscribe(self.told.append)
        self.spoil = lambda: None

    def serve(self, **options):
        self.server = self.stack.enter_context(ScriptedServer(**options))
        return self.server

    def transport(self, query="", *, account="", address=None):
        host, port = address or self.server.address
        return self.use(transport_from_url(f"smtp://{account}{host}:{port}?{query}"))

    def use(self, transport):
        self.stack.callback(transport.close)
        return transport

    def work(self, transport):
        return run_once(self.app.queue, transport, events=self.events)

    def work_before(self, transport):
        """Send something over a connection that is kept."""
        put(self.app, note("first"))
        assert self.work(transport) == 1

    def only(self, *kinds):
        return [event for event in self.told if type(event) in kinds]


@pytest.fixture
def play(kind, make_queue, clock, monkeypatch, tmp_path):
    with contextlib.ExitStack() as stack:
        yield Play(make_queue(kind, clock=clock), stack, monkeypatch, tmp_path)


def check_row(play, transport, row, ends):
    """Work with the bad message among others, and see what has become of it and of them."""
    state, attempts, route = ends
    app = play.app
    good = put_many(app, "before", BEFORE)
    put(app, play.bad)
    good += put_many(app, "after", 2)
    play.spoil()
    play.work(transport)
    found = app.deliveries()
    bad, others = found[BAD], [found[recipient] for recipient in good]
    assert (bad.state, bad.attempts) == (state, attempts)
    assert bad.duplicate == (state == "in_doubt")
    assert [a.state for a in app.attempts(BAD)] == ([state] if attempts and state != "sent" else [])

    told = [type(event) for event in play.only(RouteFailed, RouteStopped)]
    assert told == {WORKS: [], FAILS: [RouteFailed], STOPS: [RouteStopped]}[route]
    (known,) = app.read(sa.select(schema.route)) or (None,)
    assert (WORKS if known is None else known.state) == route
    slowed = known is not None and known.rate is not None
    assert slowed == bool(play.only(RouteSlowed)) == ("halve the rate" in row.why)

    wait = (bad.due or 0) / 1000 - play.app.queue.database._clock()
    if state in ("deferred", "in_doubt"):
        assert 300 <= wait <= 900
    elif state == "ready":
        assert wait > 0
    assert {o.state for o in others} <= ({"sent"} if route == WORKS else {"sent", "ready"})
    assert all(o.attempts == (o.state == "sent") for o in others)
    assert not any(o.duplicate for o in others)


def check_received(play, ends):
    """What is said to have been sent has come once, and nothing else has."""
    if play.server is None:
        return
    play.server.stop()
    arrived = [r for m in play.server.messages for r in m.recipients if r != "first@example.net"]
    if ends[0] == "in_doubt":
        arrived = [r for r in arrived if r != BAD]
    sent = [r for r, row in play.app.deliveries().items() if row.state == "sent"]
    assert sorted(arrived) == sorted(r for r in sent if not r.startswith(("first@", "refused@")))


def test_there_is_an_end_for_every_row():
    verdicts = [
        tuple(map(str, (v.status, v.scope, v.action)))
        for v in (parameter.values[2].verdict for parameter in (*replies_at(*STAGES), *events()))
    ]
    assert set(verdicts) <= set(ENDS)


def ends_of(row):
    verdict = row.verdict
    return ENDS[str(verdict.status), str(verdict.scope), str(verdict.action)]


# -- replies

STAGES = (*IN_TRANSACTION, *OPENING)


def say(server, where, said):
    """Have `server` say that to the bad message."""
    if where == "DATA":  # nothing in it says whose it is; a fresh connection is asked once more
        server.on("DATA", said, after=BEFORE, times=2)
        return
    matching = "<bad@" if where in ("MAIL", "RCPT") else BAD_ID
    server.on(VERBS.get(where, where), said, matching=matching, times=None)


@pytest.mark.representative(every=21)
@pytest.mark.parametrize(("where", "said", "row"), replies_at(*IN_TRANSACTION))
@kinds(OWN_SQLITE)
def test_a_reply_about_one_message(play, where, said, row):
    say(play.serve(), where, said)
    check_row(play, play.transport(), row, ends_of(row))
    if ends_of(row)[0] != "sent" or where == "final dot":
        bad = play.app.deliveries()[BAD]
        assert (bad.code, bad.reply) == (int(said[:3]), said)
    check_received(play, ends_of(row))


@pytest.mark.representative(every=27)
@pytest.mark.parametrize(("where", "said", "row"), replies_at("MAIL", "RCPT", "final dot"))
@kinds(OWN_SQLITE)
def test_the_same_in_a_stream(play, where, said, row):
    say(play.serve(extensions=STREAM), where, said)
    check_row(play, play.transport(), row, ends_of(row))
    check_received(play, ends_of(row))


@pytest.mark.representative(every=12)
@pytest.mark.parametrize(("where", "said", "row"), replies_at(*OPENING))
@kinds(OWN_SQLITE)
def test_a_reply_about_the_connection(play, where, said, row):
    account, query, options = "", "", {}
    if where == "HELO":
        options = {"ehlo": False}
    elif where == "STARTTLS":
        options, query = {"tls_context": certificates(play.tmp_path)}, "tls=opportunistic"
    elif where == "AUTH":
        options, query = {"credentials": {"ann": "secret"}}, "auth_in_clear=yes"
        account = "ann:secret@"
    server = play.serve(**options)
    server.on(VERBS.get(where, where), said, times=None)
    if where == "RSET":  # which is said behind a message that was refused
        server.refuse("refused@example.net")
        put(play.app, note("refused"))
    ends = OTHERWISE.get(where) or ends_of(row)
    check_row(play, play.transport(query, account=account), row, ends)
    check_received(play, ends)


# -- events

SCENES = {}


def scene(stages, *events):
    """`function` sets it up, for each of these, and returns the transport."""

    def keep(function):
        for where in stages.split(", "):
            for event in events:
                assert (where, event) not in SCENES
                SCENES[where, event] = function
        return function

    return keep


def test_every_event_of_the_table_has_a_scene():
    assert {parameter.values[:2] for parameter in events()} == set(SCENES)


@pytest.mark.representative(every=19)
@pytest.mark.parametrize(("where", "event", "row"), events())
@kinds(OWN_SQLITE)
def test_an_event(play, where, event, row):
    transport = SCENES[where, event](play, where, event)
    ends = OTHERWISE.get(event) or ends_of(row)
    check_row(play, transport, row, ends)
    check_received(play, ends)


def closed_port():
    with socket.create_server(("127.0.0.1", 0)) as free:
        return free.getsockname()


@scene("connect", "refused")
def _(play, where, event):
    return play.transport(address=closed_port())


@scene("connect", "unreachable")
def _(play, where, event):
    nowhere = ("255.255.255.255", 25)  # no connection can have that end, on any machine
    found = [(socket.AF_INET, socket.SOCK_STREAM, 6, "", nowhere)]
    play.monkeypatch.setattr(socket, "getaddrinfo", lambda *_, **__: found)
    return play.transport(address=("127.0.0.1", 25))


@scene("connect", "time-out")
def _(play, where, event):
    """The queue of the listener is full: a handshake has to wait."""
    listener = play.stack.enter_context(socket.create_server(("127.0.0.1", 0), backlog=0))
    for _ in range(3):
        waiting = play.stack.enter_context(socket.socket())
        waiting.setblocking(False)
        waiting.connect_ex(listener.getsockname())
    return play.transport("timeout=0.5", address=listener.getsockname())


@scene("connect", "temporary DNS failure", "no such host")
def _(play, where, event):
    code = socket.EAI_NONAME if event == "no such host" else socket.EAI_AGAIN

    def fail(*_, **__):
        raise socket.gaierror(code, "it says")

    play.monkeypatch.setattr(socket, "getaddrinfo", fail)
    return play.transport(address=("127.0.0.1", 25))


ACTIONS = {
    "EOF": CLOSE,
    "reset": RESET,
    "time-out": HANG,
    "malformed": b"SSH-2.0-OpenSSH_9.2\r\n",
    "partial line": then(b"25", CLOSE),
}


@scene("greeting", "EOF", "reset", "time-out", "malformed")
@scene("EHLO", "EOF")
def _(play, where, event):
    play.serve().on(VERBS.get(where, where), ACTIONS[event], times=None)
    return play.transport("timeout=0.5")


@scene("EHLO", "500, 502 or 504, HELO will do")
def _(play, where, event):
    play.serve(ehlo=False)
    return play.transport()


@scene("EHLO", "500, 502 or 504, TLS or AUTH needed")
def _(play, where, event):
    play.serve(ehlo=False)
    return play.transport("tls=required")


@scene("EHLO", "500, 502 or 504, SMTPUTF8 needed")
def _(play, where, event):
    play.serve(ehlo=False)
    play.bad = note("bad", sender="söd@example.com")
    return play.transport()


@scene("STARTTLS", "not offered")
def _(play, where, event):
    play.serve()
    return play.transport("tls=required")


TLS_ACTIONS = {
    "EOF": CLOSE,
    "more octets behind the 220": b"220 go\r\n250-injected\r\n250 SIZE\r\n",
    "handshake fails": then(b"220 go\r\n", b"\x15\x03\x03\x00\x02\x02\x28", CLOSE),
}


@scene("STARTTLS", "EOF", "more octets behind the 220")
@scene("TLS", "handshake fails")
def _(play, where, event):
    server = play.serve(tls_context=certificates(play.tmp_path))
    server.on("STARTTLS", TLS_ACTIONS[event], times=None)
    return play.transport("tls=required")


@scene("TLS", "certificate does not verify")
def _(play, where, event):
    play.serve(tls_context=certificates(play.tmp_path))
    return play.transport("tls=required")


@scene("AUTH", "no mechanism that we know", "EOF")
def _(play, where, event):
    server = play.serve(credentials={"ann": "secret"} if event == "EOF" else None)
    server.on("AUTH", CLOSE, times=None)
    return play.transport("auth_in_clear=yes", account="ann:secret@")


@scene("MAIL, RCPT, DATA", "EOF or reset, once", "EOF or reset, again", "time-out", "malformed")
def _(play, where, event):
    server = play.serve()
    action = ACTIONS.get(event, RESET)
    if event.endswith("once"):
        server.on(where, action, after=BEFORE)
    elif where == "DATA":
        server.on(where, action, after=BEFORE, times=None)
    else:
        server.on(where, action, matching="<bad@", times=None)
    return play.transport("timeout=0.5")


#: more than what the kernel takes for a server that does not read
LARGE = b"".join(b"%075d\r\n" % number for number in range(200_000))
EARLY = {
    "connection lost before the final dot": b"",
    "4xx before the final dot": b"452 4.3.1 no space\r\n",
    "5xx before the final dot": b"552 5.3.4 too big\r\n",
}


@scene("content", *EARLY)
def _(play, where, event):
    """A server that says so when it has read a little of the content, and hangs up."""

    def serve(connected, stopping):
        reader = greeted(connected)
        large = False
        for line in reader:
            if line.startswith((b"MAIL", b"QUIT")):
                large = b"<bad@" in line
            connected.sendall(b"354 go\r\n" if line == b"DATA\r\n" else b"250 Ok\r\n")
            if line == b"DATA\r\n" and not large:
                while next(reader) != b".\r\n":
                    pass
                connected.sendall(b"250 Ok\r\n")
            elif line == b"DATA\r\n":
                reader.read(1000)
                connected.sendall(EARLY[event])
                if EARLY[event]:
                    connected.shutdown(socket.SHUT_WR)
                    while reader.read(65536):
                        pass
                break
        reader.close()
        connected.close()

    play.bad = note("bad", body=LARGE)
    server = play.stack.enter_context(RawServer(serve))
    return play.transport("pipelining=no", address=server.address)


FINAL_ACTIONS = {
    **ACTIONS,
    "malformed": then(b"250 2.0.0 Ok\n", CLOSE),
    "more than was due": then(b"250 2.0.0 Ok\r\n550 5.7.1 no\r\n", CLOSE),
}


@scene("final dot", *FINAL_ACTIONS)
def _(play, where, event):
    action = then(NO_REPLY, FINAL_ACTIONS[event])
    play.serve().on(".", action, matching=BAD_ID)
    # With pipelining there is something else that the surplus could answer.
    pipelining = "no" if event == "more than was due" else "yes"
    return play.transport(f"timeout=0.5&pipelining={pipelining}")


@scene("BDAT", "500 to 504, recipients accepted")
def _(play, where, event):
    play.serve(extensions=STREAM).on("BDAT", "502 5.5.1 what?", times=None)
    return play.transport()


@scene("stream", "RSET refused, but not with 421")
def _(play, where, event):
    play.serve(extensions=STREAM).on("RSET", "500 5.5.1 what?", times=None)
    return play.transport("window=2")


@scene("RSET", "EOF")
def _(play, where, event):
    server = play.serve()
    server.refuse("refused@example.net")
    server.on("RSET", CLOSE)
    put(play.app, note("refused"))
    return play.transport()


@scene("NOOP, QUIT", "anything")
def _(play, where, event):
    """Said where a kept connection was idle; QUIT, where it was dirty."""
    play.monkeypatch.setattr(pool, "VERIFY_AFTER", -1.0)
    play.serve().on(where, RESET, times=None)
    transport = play.transport()
    play.work_before(transport)
    if where == "QUIT":
        transport.close()
    return transport


@scene("idle reuse", "421 unasked", "EOF")
def _(play, where, event):
    server, transport = play.serve(), play.transport()
    if event != "EOF":
        server.on(".", then("250 2.0.0 Ok", "421 4.4.2 idle too long", CLOSE))
    play.work_before(transport)
    if event == "EOF":
        server.restart()
    else:
        server.wait_for(lambda: server.connections[0].closed)
    return transport


@scene("local", "cannot be rendered")
def _(play, where, event):
    """Somebody has written to the tables by hand."""
    play.spoil = lambda: change(
        play.app,
        schema.message.update()
        .where(schema.message.c.message_id == BAD_ID)
        .values(sender="not an address"),
    )
    play.serve()
    return play.transport()


LACKING = {
    "SMTPUTF8 not offered": (("PIPELINING", "8BITMIME"), {"sender": "söd@example.com"}),
    "8BITMIME not offered": (("PIPELINING", "SMTPUTF8"), {"body": "süß\r\n".encode()}),
    "larger than the server takes": (("SIZE 1000",), {"body": b"large\r\n" * 1000}),
}


@scene("local", *LACKING)
def _(play, where, event):
    extensions, options = LACKING[event]
    play.bad = note("bad", **options)
    play.serve(extensions=extensions)
    return play.transport()


@scene("local", "memory, disk or database")
def _(play, where, event):
    """The disk, as the transport that writes to one finds it."""

    def full(*_):
        raise OSError(errno.ENOSPC, "No space left on device")

    play.monkeypatch.setattr(os, "fsync", full)
    return play.use(FileTransport(play.tmp_path / "mail"))


def program(play, end):
    path = play.tmp_path / "program"
    path.write_text(f'#!/bin/sh\ncat > /dev/null\ncase "$*" in *{BAD}*) {end};; esac\n')
    path.chmod(0o700)
    return play.use(transport_from_url(f"sendmail://{quote(str(path))}"))


EXITS = {
    "exit 68, 69 or 75": "exit 69",
    "exit 64 or 65": "exit 65",
    "exit 67": "exit 67",
    "any other exit": "exit 70",
    "ended by a signal": "kill -9 $$",
}


@scene("sendmail", *EXITS)
def _(play, where, event):
    return program(play, EXITS[event])
