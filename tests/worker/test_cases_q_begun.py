"""What is begun runs ahead of the wire by about the window: see Q2."""

from __future__ import annotations

import threading

import pytest
from commits import note
from queues import OWN_QUEUES, kinds

sa = pytest.importorskip("sqlalchemy")

from workers import put, put_many, wait_for, working  # noqa: E402

from txmail import transport_from_url  # noqa: E402
from txmail.queue import schema  # noqa: E402
from txmail.testing import Callback, ScriptedServer, then  # noqa: E402
from txmail.testing.server import EXTENSIONS  # noqa: E402
from txmail.worker.router import Route  # noqa: E402

STREAM = (*EXTENSIONS, "CHUNKING")


class Wire:
    """A server that says nothing more once so many messages have left."""

    def __init__(self, extensions, after):
        self.server = ScriptedServer(extensions=extensions).start()
        self.open = threading.Event()
        hold = then(Callback(lambda: self.open.wait(20)))
        self.server.on(".", hold, after=after, times=None)

    def stop(self):
        self.open.set()
        self.server.stop()


@pytest.fixture
def make_wire():
    made = []

    def make(extensions=EXTENSIONS, after=2):
        made.append(Wire(extensions, after))
        return made[-1]

    yield make
    for wire in made:
        wire.stop()


def begun(app):
    """How many deliveries are begun, and not settled."""
    d = schema.delivery.c
    rows = app.read(sa.select(d.id).where(d.state == "sending", d.begun == 1))
    return len(rows)


def check(app, wire, query="", *, window, most, **rule):
    transport = transport_from_url(wire.server.url + query)
    route = Route.to("default", transport, window=rule.pop("window_of_route", None), **rule)
    with working(app.queue, [route]) as worker:
        wire.server.wait_for(lambda: len(wire.server.messages) >= 2)
        wait_for(lambda: app.queue.counts().get("sent", 0) >= 2, "nothing is settled")
        worker.wait_rounds(5)
        found = begun(app)
        wire.open.set()
    transport.close()
    assert window <= found <= most


@pytest.mark.parametrize("extensions", [EXTENSIONS, STREAM], ids=["one by one", "stream"])
@kinds(*OWN_QUEUES)
def test_q2_with_a_window_of_one_little_more_is_begun_than_has_left(
    kind, make_queue, make_wire, extensions
):
    """It was 46, of which two had left.

    Without a stream, the commands of the next message go with the content of the one before.
    """
    app = make_queue(kind)
    put_many(app, "n", 60)
    check(app, make_wire(extensions), "?window=1", window=1, most=4)


@pytest.mark.parametrize("window", [4, 16])
@kinds(*OWN_QUEUES)
def test_q2_a_larger_window_is_the_bound(kind, make_queue, make_wire, window):
    app = make_queue(kind)
    put_many(app, "n", 100)
    wire = make_wire(STREAM)
    check(app, wire, f"?window={window}", window=window, most=2 * window)


@kinds(*OWN_QUEUES)
def test_q2_the_window_of_a_route_is_the_bound(kind, make_queue, make_wire):
    app = make_queue(kind)
    put_many(app, "n", 60)
    check(app, make_wire(STREAM), window_of_route=2, window=2, most=5)


@kinds(*OWN_QUEUES)
def test_q2_what_is_urgent_has_the_same_bound(kind, make_queue, make_wire):
    app = make_queue(kind)
    put_many(app, "n", 60, priority="high")
    check(app, make_wire(STREAM), "?window=2", window=2, most=5)


@kinds(*OWN_QUEUES)
def test_q2_several_connections_have_a_window_each(kind, make_queue, make_wire):
    app = make_queue(kind)
    put_many(app, "n", 60)
    check(app, make_wire(STREAM), "?window=2&connections=2", window=2, most=9)


@kinds(*OWN_QUEUES)
def test_q2_a_program_gets_one_message_at_a_time(kind, make_queue, tmp_path):
    app = make_queue(kind)
    put(app, *[note(f"n{n}") for n in range(20)])
    program, reached = tmp_path / "sendmail", tmp_path / "reached"
    go_on = tmp_path / "go-on"
    program.write_text(
        f"#!/bin/sh\ncat > /dev/null\ntouch {reached}\nuntil test -e {go_on}; do sleep 0.05; done\n"
    )
    program.chmod(0o755)
    with working(app.queue, transport_from_url(f"sendmail://{program}")) as worker:
        wait_for(reached.exists, "the program does not run")
        worker.wait_rounds(3)
        found = begun(app)
        go_on.touch()
    assert found <= 2
