"""Several connections that are interrupted, fail to open, are kept, replaced or copied."""

from __future__ import annotations

import copy
import itertools
import math
import pickle
import select
import socket
import sys
import time
from collections import deque

import pytest
from authority import Authority
from commits import Ended, check_held, note
from interrupting import may_raise
from many import CHUNKING, check, collect, count, notes, opened

from txmail import transport_from_url
from txmail.exceptions import ConfigurationError, TransportError
from txmail.outcome import Outcome, Status
from txmail.smtp import stream
from txmail.smtp.session import Session
from txmail.smtp.session_poll import SessionPoll
from txmail.smtp.shared_source import SharedSource
from txmail.smtp.stream import Stream
from txmail.testing import CLOSE, RESET, ScriptedServer


@pytest.fixture
def server():
    with ScriptedServer(extensions=CHUNKING) as server:
        yield server


# Interrupts


def interrupted(session, given, begin=lambda: None):
    """All that is said about `given` when it is interrupted: by the iterator, and afterwards."""
    outcomes = {}
    sending = session.send(given)
    begin()
    try:
        for outcome in sending:
            outcomes[outcome.position, outcome.recipient] = outcome
    except KeyboardInterrupt:
        for outcome in session.unsettled():
            outcomes.setdefault((outcome.position, outcome.recipient), outcome)
        assert all(s.closed for s in session._sessions if not s.connection.protocol.idle)
    return list(outcomes.values())


@pytest.mark.parametrize("where", ["before the write", "after the write", "in the wait"])
def test_an_interrupt_leaves_an_account_that_agrees(server, tier, where, monkeypatch):
    name, kind = ("wait", SessionPoll) if where == "in the wait" else ("send", Stream)
    genuine = getattr(kind, name)
    seen = set()
    for nth in range(1, 14):
        numbers = itertools.count(1)

        def fails(*arguments, numbers=numbers, nth=nth):
            if next(numbers) != nth:
                return genuine(*arguments)
            if where == "after the write":
                genuine(*arguments)
            raise KeyboardInterrupt

        with opened(server, 3, tier + "&window=2") as session:
            assert count(session.send(notes(3)), "accepted") == 3
            before, given = len(server.messages), [note(f"i{nth}n{n}") for n in range(9)]
            with monkeypatch.context() as patched:
                patched.setattr(kind, name, fails)
                outcomes = interrupted(session, given)
        server.wait_closed()
        assert len(outcomes) == 9
        check_held(Ended(None, tuple(outcomes), ""), server.messages[before:])
        seen.update(str(o.status) for o in outcomes)
    assert {"accepted", "in_doubt", "unsent"} <= seen


@pytest.mark.representative(every=6)
@pytest.mark.parametrize("step", range(4))
def test_an_interrupt_at_any_line_leaves_an_account_that_agrees(server, tier, step):
    """Wherever it comes while the messages are sent, in the order of our lines."""
    files = {m.__file__ for name, m in sys.modules.items() if name.startswith("txmail.smtp.")}
    lines = 0

    def trace(frame, event, _):
        nonlocal lines
        if event == "line":
            lines -= 1
            if lines <= 0 and may_raise(frame):
                sys.settrace(None)
                raise KeyboardInterrupt
        return trace if frame.f_code.co_filename in files else None

    given = [*notes(4), note("n4", recipients=["x@example.net", "y@example.net"]), note("n5")]
    for after in range(3 + 10 * step, 1600, 40):
        before, known = len(server.messages), len(server.connections)
        with opened(server, 2, tier + "&window=2") as session:
            assert count(session.send(notes(2, name="warm")), "accepted") == 2
            lines = after
            try:
                outcomes = interrupted(session, given, lambda: sys.settrace(trace))
            finally:
                sys.settrace(None)
        server.wait_for(lambda known=known: len(server.connections) == known + 2)
        server.wait_closed()
        assert len(outcomes) == len(given) + 1, after
        messages = [m for m in server.messages[before:] if not m.sender.startswith("warm")]
        check_held(Ended(None, tuple(outcomes), ""), messages)


@pytest.mark.parametrize("where", ["failed", "ended"])
def test_an_interrupt_while_a_connection_is_given_up_leaves_none_open(
    server, tier, where, monkeypatch
):
    genuine, given_up = getattr(Session, where), []

    def fails(session, *arguments):
        given_up.append(session)
        if len(given_up) == 1:
            raise KeyboardInterrupt
        return genuine(session, *arguments)

    server.on(".", CLOSE, connection=2)
    given = notes(6)
    with opened(server, 2, tier + "&window=2") as session:
        monkeypatch.setattr(Session, where, fails)
        outcomes = interrupted(session, given)
        assert given_up[0].closed
    check(outcomes, given, server)


def test_an_outcome_that_comes_twice_around_an_interrupt_does_not_replace_another():
    one = note("one", recipients=["a@example.net", "b@example.net"])
    source, known = SharedSource([one]), deque()
    assert source.take() == (0, one)
    first, second = (Outcome(recipient, Status.ACCEPTED) for recipient in one.recipients)
    for outcome in (first, first, second, second):
        source.settle(outcome, known, again=True)
    assert list(known) == [first, second]


def test_one_whose_time_is_up_is_told_although_others_have_something_to_read():
    busy, sent = socket.socketpair()
    silent, other = socket.socketpair()
    with busy, sent, silent, other:
        sent.send(b"250 Ok")
        busy, silent = (_Waiter(sock, left) for sock, left in ((busy, 9.0), (silent, 0.0)))
        happened = dict(SessionPoll().wait([busy, silent]))
    assert happened == {busy: select.POLLIN, silent: 0}


class _Waiter:
    """What is waited for of a lane: its socket, and its time."""

    buffered = False
    tick = math.inf

    def __init__(self, sock, left):
        self.driver = self.stream = self
        self.fileno, self.left = sock.fileno, left

    def acknowledge(self):
        pass

    def interest(self):
        return False, self.left


def test_after_an_outcome_that_is_enough_nothing_more_leaves(server, tier):
    for number in range(10):
        before = len(server.messages)
        with opened(server, 2, tier + "&window=1") as session:
            sending = session.send(notes(8, name=f"x{number}n"))
            assert next(sending).status == "accepted"
            sending.close()
        server.wait_for(lambda known=2 * number + 2: len(server.connections) == known)
        server.wait_closed()
        assert len(server.messages) - before <= 2


def test_closing_the_iterator_ends_sending_at_once(server, tier):
    given = notes(30)
    with opened(server, 3, tier + "&window=2") as session:
        sending = session.send(given)
        first = [next(sending) for _ in range(5)]
        sending.close()
        assert all(s.closed for s in session._sessions)
        told = {(o.position, o.recipient): o for o in [*session.unsettled(), *first]}
        check(told.values(), given, server)
        assert count(told.values(), "unsent") >= 10
        # What was not handed out then is not said of the next call.
        (outcome,) = session.send(notes(1, name="next"))
        assert outcome.message_id == "<next0@example.com>"


@pytest.mark.parametrize(
    ("bad", "error"),
    [(ValueError("mine"), ValueError), (TransportError("mine"), RuntimeError), (0, TypeError)],
)
def test_envelopes_that_cannot_be_had_end_sending_with_an_error(server, tier, bad, error):
    given = notes(12)

    def failing():
        yield from given
        if isinstance(bad, Exception):
            raise bad
        yield bad

    outcomes = []
    with opened(server, 3, tier + "&window=2") as session:
        with pytest.raises(error):
            collect(session.send(failing()), outcomes)
        told = {(o.position, o.recipient): o for o in [*session.unsettled(), *outcomes]}
    assert len(told) == 12
    check(told.values(), given, server)


@pytest.mark.parametrize("error", [ConfigurationError("no password"), KeyboardInterrupt()])
def test_an_error_while_connections_are_opened_leaves_none_open(server, error, monkeypatch):
    given, transport = notes(4), transport_from_url(f"{server.url}?connections=4")
    session, take, numbers = transport.open(), transport._pool.take, itertools.count()

    def fails(*arguments, **options):
        if next(numbers) == 1:
            raise error
        return take(*arguments, **options)

    monkeypatch.setattr(transport._pool, "take", fails)
    with pytest.raises(type(error)):
        list(session.send(given))
    assert [str(o.status) for o in session.unsettled()] == ["unsent"] * 4
    session.close()
    assert not transport._pool._in_use
    assert len(transport._pool._idle) == 3
    transport.close()
    check([], [], server)


# TLS, the pool, copies


def test_within_tls_nothing_that_has_come_is_waited_for(tmp_path, tier, monkeypatch):
    """Where a record is read in parts, only OpenSSL knows of the rest."""
    authority = Authority(tmp_path)
    given = notes(40)
    with ScriptedServer(extensions=CHUNKING, tls_context=authority.server()) as server:
        query = f"{tier}&tls=required&cafile={authority.cafile}&timeout=10"
        with opened(server, 3, query) as session:
            monkeypatch.setattr(stream, "RECEIVE_SIZE", 7)
            started = time.monotonic()
            outcomes = list(session.send(given))
            assert time.monotonic() - started < 9
        assert all(connection.tls for connection in server.connections)
        assert len(server.connections) == 3
        assert count(outcomes, "accepted") == 40
        check(outcomes, given, server)


@pytest.mark.parametrize(("query", "kept"), [("connections=6", 6), ("connections=6&pool=2", 2)])
def test_connections_are_kept_for_the_next(server, query, kept):
    transport = transport_from_url(f"{server.url}?{query}")
    for expected in (6, 6 + 6 - kept):
        session = transport.open()
        assert count(session.send(notes(12)), "accepted") == 12
        session.close()
        assert (len(transport._pool._idle), transport._pool._in_use) == (kept, set())
        assert len(server.connections) == expected
    transport.close()


def test_one_that_has_died_is_not_kept_and_is_replaced(server):
    transport = transport_from_url(f"{server.url}?connections=3")
    session = transport.open()
    assert count(session.send(notes(6)), "accepted") == 6
    server.on("MAIL", RESET, connection=2)
    assert count(session.send(notes(6)), "accepted") < 6
    assert count(session.send(notes(6)), "accepted") == 6
    assert len(server.connections) == 4
    assert len(transport._pool._in_use) == 3
    session.close()
    session.close()
    assert (len(transport._pool._idle), transport._pool._in_use) == (3, set())
    transport.close()


@pytest.mark.parametrize(
    "copied", [copy.copy, copy.deepcopy, lambda t: pickle.loads(pickle.dumps(t))]
)
def test_a_copy_has_as_many_connections(server, copied):
    transport = copied(transport_from_url(f"{server.url}?connections=5"))
    for _ in range(2):
        session = transport.open()
        assert count(session.send(notes(10)), "accepted") == 10
        session.close()
    assert len(server.connections) == 5
    transport.close()
