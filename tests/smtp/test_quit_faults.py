"""What happens at QUIT is nobody's loss: the message was accepted before."""

from __future__ import annotations

import time

import pytest
from commits import check_error, check_held, commit, note

from txmail import Mailer, transport_from_url
from txmail.smtp import pool
from txmail.testing import CLOSE, HANG, RESET, ScriptedServer, then

FAULTS = {
    "drop": CLOSE,
    "reset": RESET,
    "421": then("421 4.3.2 shutting down", CLOSE),
    "500": "500 5.5.2 what",
    "hang": HANG,
    "partial reply": then(b"22", CLOSE),
    "nonsense": b"\0\xff\r\n",
}


@pytest.fixture
def mailer(server, tm):
    """A mailer that says QUIT after each transaction: it keeps no connection between them."""
    mailer = Mailer(transport_from_url(server.url), transaction_manager=tm)
    yield mailer
    mailer.close()


@pytest.mark.parametrize("fault", FAULTS)
def test_a_fault_at_quit_after_the_250(server, mailer, tm, fault, monkeypatch):
    monkeypatch.setattr(pool, "QUIT_TIMEOUT", 0.1)
    server.on("QUIT", FAULTS[fault], times=None)
    for number in range(6):
        before = time.monotonic()
        ended = commit(tm, mailer, note(f"n{number}"))
        mailer.close()
        assert time.monotonic() - before < 5
        assert ended.statuses == ["accepted"]
        check_error(ended)
        assert len(server.messages) == number + 1  # once, and not again at the next
        check_held(ended, server.messages[number:])
        server.wait_for(lambda n=number: server.connections[n].ended_by_quit)
    assert len(server.connections) == 6
    assert [m.sender for m in server.messages] == [f"n{n}@example.com" for n in range(6)]


@pytest.mark.parametrize("fault", ["drop", "reset", "421"])
def test_a_server_that_ends_the_connection_after_each_250(server, mailer, tm, fault):
    """Without having been told QUIT: the kept connection is gone when the next one wants it."""
    end = FAULTS[fault]
    server.on(".", then("250 2.0.0 Ok: queued", end), times=None)
    for number in range(6):
        ended = commit(tm, mailer, note(f"n{number}"))
        if fault != "reset" or ended.error is None:  # a reset may overtake the 250
            assert ended.statuses == ["accepted"]
        check_error(ended)
        check_held(ended, server.messages[number:])
        server.wait_for(lambda n=number: server.connections[n].closed)
    assert len(server.connections) == 6
    assert len(server.messages) == 6


def test_two_messages_and_a_fault_between_their_server_and_our_quit(server, mailer, tm):
    """The last 250 is the end of what matters."""
    server.on(".", then("250 2.0.0 Ok: queued", "421 4.3.2 bye", CLOSE), after=1)
    ended = commit(tm, mailer, note("one"), note("two"))
    assert ended.statuses == ["accepted", "accepted"]
    check_error(ended)
    check_held(ended, server.messages)
    for number in range(5):
        assert commit(tm, mailer, note(f"n{number}")).error is None
    assert len(server.messages) == 7
    assert len(server.connections) == 2


def test_a_server_that_is_gone_at_quit(tm):
    """It has stopped: closing has nobody to talk to, and does not mind."""
    with ScriptedServer() as server:
        mailer = Mailer(transport_from_url(server.url), transaction_manager=tm)
        assert commit(tm, mailer, note("one")).error is None
        server.kill()
        mailer.close()
        server.start()
        for number in range(5):
            assert commit(tm, mailer, note(f"n{number}")).error is None
        mailer.close()
        assert len(server.messages) == 6
