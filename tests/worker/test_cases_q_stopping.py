"""Q7: a worker that is told to stop while a server says nothing."""

from __future__ import annotations

import socket
import threading

import pytest
from commits import note
from queues import OWN_QUEUES, OWN_SQLITE, kinds
from zope.interface import directlyProvides

sa = pytest.importorskip("sqlalchemy")

from workers import PATIENCE, put, put_many, received, wait_for, working  # noqa: E402

from txmail import transport_from_url  # noqa: E402
from txmail.interfaces import ITransport  # noqa: E402
from txmail.testing import Callback, ScriptedServer  # noqa: E402
from txmail.worker import Route, run_once  # noqa: E402
from txmail.worker import worker as loop  # noqa: E402

#: Where a server can say nothing before a content has left; it has no CHUNKING.
VERBS = ["connect", "EHLO", "MAIL", "RCPT", "DATA"]


@pytest.fixture(autouse=True)
def no_grace(monkeypatch):
    """Nothing is over because time is: a worker that waits for the server fails the test."""
    monkeypatch.setattr(loop, "GRACE", PATIENCE * 20)


@pytest.fixture
def server():
    """One in which a content leaves when the server has asked for it."""
    with ScriptedServer(extensions=("PIPELINING", "8BITMIME", "ENHANCEDSTATUSCODES")) as server:
        yield server


@pytest.fixture
def hangs():
    """Have a server say nothing to a verb until the end of the test."""
    opened = threading.Event()

    def hang(server, verb, *, skip=0, matching=""):
        reached = threading.Event()
        held = Callback(lambda: (reached.set(), opened.wait(PATIENCE * 4)))
        server.on(verb, held, matching=matching, after=skip)
        return reached

    hang.open = opened.set
    yield hang
    opened.set()


def stopped(app, transport, reached, **options):
    """Have a worker stop when something has `reached` the server; it has ended by itself."""
    with working(app.queue, transport, **options) as worker:
        assert reached.wait(PATIENCE)
        worker.stop()
        worker.thread.join(PATIENCE)
        assert not worker.thread.is_alive(), "it waits for the server"


def untouched(app, recipients):
    rows = app.deliveries()
    assert {(rows[r].state, rows[r].attempts, rows[r].duplicate) for r in recipients} == {
        ("ready", 0, 0)
    }


@pytest.mark.representative(every=3)
@pytest.mark.parametrize("verb", VERBS)
@kinds(*OWN_QUEUES)
def test_q7_what_has_not_reached_its_content_goes_back_at_once(
    kind, make_queue, server, hangs, verb
):
    """Kind: whoever stops waits for somebody who may never answer, although nothing is at stake."""
    app = make_queue(kind)
    wanted = put_many(app, "n", 100)
    smtp = transport_from_url(server.url)
    stopped(app, smtp, hangs(server, verb))
    untouched(app, wanted)
    hangs.open()
    server.clear()
    assert run_once(app.queue, smtp) == 100
    smtp.close()
    assert sorted(received(server)) == sorted(wanted)


@pytest.mark.parametrize("verb", ["MAIL", "RCPT"])
@kinds(OWN_SQLITE)
def test_q7_over_several_connections(kind, make_queue, server, hangs, verb):
    app = make_queue(kind)
    wanted = put_many(app, "n", 100)
    smtp = transport_from_url(f"{server.url}?connections=3")
    reached, opened = threading.Event(), threading.Event()
    held = Callback(lambda: (reached.set(), opened.wait(PATIENCE * 4)))
    server.on(verb, held, times=None)
    try:
        stopped(app, smtp, reached)
        untouched(app, wanted)
    finally:
        opened.set()
        smtp.close()


@kinds(*OWN_QUEUES)
def test_q7_a_server_that_takes_connections_and_is_not_there(kind, make_queue):
    app = make_queue(kind)
    wanted = put_many(app, "n", 10)
    with socket.create_server(("127.0.0.1", 0)) as listener:
        smtp = transport_from_url(f"smtp://127.0.0.1:{listener.getsockname()[1]}")
        reached = threading.Event()

        def accept():
            connected, _ = listener.accept()
            with connected:
                reached.set()
                connected.recv(1)

        threading.Thread(target=accept, daemon=True).start()
        stopped(app, smtp, reached)
        smtp.close()
    untouched(app, wanted)


def lanes():
    return {thread for thread in threading.enumerate() if thread.name == "txmail default"}


class Hanging:
    """A transport that connects when it is told to."""

    def __init__(self, transport):
        self._transport = transport
        self.reached, self.opened, self.ended = (threading.Event() for _ in range(3))

    def open(self, **options):
        self.reached.set()
        self.opened.wait(PATIENCE * 4)
        try:
            return self._transport.open(**options)
        finally:
            self.ended.set()

    def __getattr__(self, name):
        return getattr(self._transport, name)


@kinds(*OWN_QUEUES)
def test_q7_a_connection_that_comes_after_the_end_is_not_used(kind, make_queue, server):
    """As with a host that swallows everything, or a resolver that does not answer."""
    app = make_queue(kind)
    wanted = put_many(app, "n", 3)
    smtp = transport_from_url(server.url)
    hanging, before = Hanging(smtp), lanes()
    directlyProvides(hanging, ITransport)
    stopped(app, [Route.to("default", hanging)], hanging.reached)
    untouched(app, wanted)
    hanging.opened.set()
    assert hanging.ended.wait(PATIENCE)
    wait_for(lambda: not lanes() - before, "who has connected does not end")
    assert not any(command.startswith("MAIL") for command in server.commands)
    untouched(app, wanted)
    smtp.close()


@kinds(*OWN_QUEUES)
def test_q7_what_has_left_is_waited_for_and_the_rest_is_not(kind, make_queue, server, hangs):
    app = make_queue(kind)
    wanted = put_many(app, "n", 100)
    smtp = transport_from_url(server.url)
    reached = hangs(server, ".", skip=2)
    with working(app.queue, smtp) as worker:
        assert reached.wait(PATIENCE)
        worker.stop()
        wait_for(lambda: app.queue.counts().get("ready", 0) >= 90, "nothing goes back")
        assert app.queue.counts()["sending"] >= 1
        hangs.open()
        worker.thread.join(PATIENCE)
        assert not worker.thread.is_alive()
    smtp.close()
    counts = app.queue.counts()
    assert set(counts) == {"sent", "ready"}
    assert counts["sent"] == len(received(server)) >= 3
    assert {r for r, s in app.states().items() if s == "sent"} == set(received(server))
    assert sum(counts.values()) == len(wanted)


@kinds(OWN_SQLITE)
def test_q7_of_a_message_to_several_those_who_have_it_have_it(kind, make_queue, server, hangs):
    """After a first part was accepted, the server hangs at the second."""
    app = make_queue(kind)
    several = [f"r{n}@example.net" for n in range(5)]
    put(app, note("a", recipients=several), note("b"))
    server.refuse("r4@example.net", "452 4.5.3 too many recipients")
    reached = hangs(server, "MAIL", skip=1)
    smtp = transport_from_url(server.url)
    stopped(app, smtp, reached)
    smtp.close()
    states = app.states()
    assert set(states.values()) <= {"sent", "ready", "deferred"}
    assert sorted(r for r, s in states.items() if s == "sent") == sorted(received(server))
    assert not any(row.duplicate for row in app.deliveries().values())


@kinds(OWN_SQLITE)
def test_q7_a_run_that_is_told_by_an_event_does_not_wait_either(kind, make_queue, server, hangs):
    app = make_queue(kind)
    wanted = put_many(app, "n", 10)
    reached, stop = hangs(server, "connect"), threading.Event()
    smtp = transport_from_url(server.url)
    done = threading.Thread(target=lambda: run_once(app.queue, smtp, stop=stop), daemon=True)
    done.start()
    assert reached.wait(PATIENCE)
    stop.set()
    done.join(PATIENCE)
    assert not done.is_alive()
    untouched(app, wanted)
    smtp.close()
