"""What a worker holds and how long a run takes, however much there is and whatever others do."""

from __future__ import annotations

import contextlib
import subprocess
import sys
import threading
import tracemalloc

import pytest
import transaction
from commits import note
from queues import OWN_POSTGRESQL, OWN_QUEUES, OWN_SQLITE, kinds
from zope.interface import implementer

sa = pytest.importorskip("sqlalchemy")

from workers import (  # noqa: E402
    PATIENCE,
    another,
    put,
    put_many,
    received,
    working,
)

from txmail import transport_from_url  # noqa: E402
from txmail.envelope import Envelope  # noqa: E402
from txmail.interfaces import ISession, ITransport  # noqa: E402
from txmail.outcome import Outcome, Status  # noqa: E402
from txmail.queue.sql.claimed import SMALL  # noqa: E402
from txmail.testing import HANG, Callback  # noqa: E402
from txmail.worker import Worker, active, dispatcher, lane, run_once  # noqa: E402
from txmail.worker.router import Route  # noqa: E402

KIB, MIB = 1024, 1024 * 1024


@implementer(ITransport, ISession)
class Sink:
    """A transport, and its one session, that takes everything and keeps nothing."""

    name = host = "sink"
    asks_server = fresh = True
    restartable = False

    def __init__(self):
        self.count = 0

    def open(self, **options):
        return self

    def send(self, envelopes, **options):
        for position, envelope in enumerate(envelopes):
            self.count += 1
            for recipient in envelope.recipients:
                yield Outcome(recipient, Status.ACCEPTED, position=position)

    def preflight(self, envelopes, **options):
        return []

    def unsettled(self):
        return []

    def close(self, **options):
        pass


def large(name, size, **options):
    line = b"x" * 76 + b"\r\n"
    return note(name, body=line * (size // len(line)), **options)


# -- contents in memory


@kinds(OWN_SQLITE)
def test_what_is_claimed_is_not_all_in_memory_at_once(app, monkeypatch):
    monkeypatch.setattr(lane, "HOLD", 2 * MIB)
    for number in range(40):
        put(app, large(f"n{number}", MIB))
    sink = Sink()
    tracemalloc.start()
    try:
        assert run_once(app.queue, sink) == 40
        peak = tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()
    assert sink.count == 40
    # What is on its way, what is read next, and the copies of one message that reading makes.
    assert MIB < peak < 10 * MIB


@pytest.fixture
def held(monkeypatch):
    """Have written down how many octets a worker has, each time that it has read some."""
    load = dispatcher.load

    def watch(worker):
        octets = []

        def noting(connection, works):
            failed = load(connection, works)
            waiting = [w for each in worker._lanes for w in (*each.pending, *each.ready)]
            there = {id(w): w.size for w in (*waiting, *works) if w.loaded}
            octets.append(sum(each.flying for each in worker._lanes) + sum(there.values()))
            return failed

        monkeypatch.setattr(dispatcher, "load", noting)
        return octets

    return watch


@pytest.mark.representative(every=6)
@pytest.mark.parametrize("size", [10 * KIB, 100 * KIB, 300 * KIB])
@kinds(*OWN_QUEUES)
def test_contents_are_read_in_steps_that_are_bounded(
    kind, make_queue, server, smtp, monkeypatch, held, size
):
    app = make_queue(kind)
    hold = 256 * KIB
    monkeypatch.setattr(lane, "HOLD", hold)
    wanted = [large(f"n{number}", size) for number in range(30)]
    put(app, *wanted)
    worker = Worker(app.queue, smtp)
    octets = held(worker)
    assert worker.run_once() == 30
    largest = max(envelope.size for envelope in wanted)
    # One that is larger than all that may be held goes alone.
    assert largest <= max(octets) <= max(hold, largest)
    assert sorted(m.content for m in server.messages) == sorted(e.content for e in wanted)


@kinds(OWN_SQLITE)
def test_a_content_is_forgotten_as_soon_as_it_has_its_replies(
    kind, make_queue, server, smtp, monkeypatch
):
    app = make_queue(kind)
    put(app, *[large(f"n{number}", 2 * SMALL) for number in range(20)])
    worker = Worker(app.queue, smtp)
    committed, loaded = worker._ledger._committed, []

    def noting(results, *rest):
        loaded.extend(work.loaded for work, _, _ in results)
        committed(results, *rest)

    worker._ledger._committed = noting
    assert worker.run_once() == 20
    assert loaded == [False] * 20
    assert all(each.flying == 0 for each in worker._lanes)


@kinds(OWN_SQLITE)
def test_large_mail_for_a_route_that_leads_nowhere_takes_no_room_from_others(
    kind, make_queue, server, other_server, make_transport, monkeypatch
):
    app = make_queue(kind)
    monkeypatch.setattr(lane, "HOLD", 64 * KIB)
    other_server.on("connect", HANG, times=None)
    routes = [
        Route.to("hole", make_transport(other_server.url), domains=["hole.example"]),
        Route.to("rest", make_transport()),
    ]
    put(app, *[large(f"h{n}", 60 * KIB, recipients=[f"h{n}@hole.example"]) for n in range(30)])
    put(app, *[large(f"n{n}", 60 * KIB) for n in range(30)])
    with working(app.queue, routes):
        server.wait_for(lambda: len(server.messages) == 30, PATIENCE)
        assert not any(connection.closed for connection in other_server.connections)
        other_server.kill()


@kinds(OWN_SQLITE)
def test_what_is_urgent_does_not_wait_for_large_mail_to_make_room(
    kind, make_queue, server, smtp, monkeypatch
):
    app = make_queue(kind)
    monkeypatch.setattr(lane, "HOLD", 64 * KIB)
    put(app, *[large(f"n{n}", 60 * KIB) for n in range(10)])
    over = threading.Event()
    server.on(".", Callback(lambda: over.wait(PATIENCE)), connection=1)
    server.on("BDAT", Callback(lambda: over.wait(PATIENCE)), connection=1)
    with working(app.queue, smtp):
        server.wait_for(lambda: any("MAIL" in line for line in server.commands))
        put(app, large("urgent", 60 * KIB), priority="high")
        server.wait_for(lambda: received(server) == ["urgent@example.net"], PATIENCE)
        over.set()
        server.wait_for(lambda: len(server.messages) == 11, PATIENCE)


@kinds(*OWN_QUEUES)
def test_a_message_that_is_gone_when_its_turn_comes_fails_and_stops_nothing(app, monkeypatch):
    """It is there when it is claimed, and not when it is read."""
    put_many(app, "n", 3)
    put(app, large("gone", 2 * SMALL))
    put_many(app, "m", 3)
    load = dispatcher.load

    def losing(connection, works):
        for work in works:
            if work.envelope.recipients == ("gone@example.net",):
                work.message = -1
        return load(connection, works)

    monkeypatch.setattr(dispatcher, "load", losing)
    memory = transport_from_url("memory:")
    assert run_once(app.queue, memory) == 6
    assert app.queue.counts() == {"sent": 6, "failed": 1}
    assert app.deliveries()["gone@example.net"].reply == (
        "it cannot be read: its message is missing"
    )


@pytest.mark.parametrize("sender", ["ann@example.com", "<>", "änn@example.com"])
@pytest.mark.parametrize("recipient", ["bob@example.net", "böb@bücher.example"])
@pytest.mark.parametrize("content", [b"", b"A: b\r\n\r\nx\r\n", "A: ä\r\n\r\nö\r\n".encode()])
def test_an_envelope_that_gets_its_content_later_is_as_if_it_had_had_it(sender, recipient, content):
    late = Envelope(sender, [recipient], b"").with_content(content)
    whole = Envelope(sender, [recipient], content)
    for name in Envelope.__slots__:
        assert getattr(late, name) == getattr(whole, name), name


# -- runs that end


@kinds(*OWN_QUEUES)
def test_a_run_ends_however_much_others_enqueue_meanwhile(app, server, smtp, clock):
    put_many(app, "first", 100)
    others = another(app)
    added = []

    def enqueue():
        clock.advance(0.001)
        added.append(f"more{len(added)}@example.net")
        put(_Other(others, app), note(f"more{len(added) - 1}"))

    server.on(".", Callback(enqueue), times=None)
    assert run_once(app.queue, smtp) == 100
    assert len(added) == 100
    assert app.queue.counts() == {"sent": 100, "ready": 100}
    server.clear()
    assert run_once(app.queue, smtp) == 100
    others.close()


class _Other:
    """What `put` needs of an application in a thread of its own."""

    def __init__(self, queue, app):
        self.queue = queue
        self._tm = transaction.TransactionManager()


@kinds(OWN_SQLITE)
def test_a_run_with_a_limit_takes_what_comes_meanwhile(app, server, smtp, clock):
    put_many(app, "first", 3)

    def enqueue():
        clock.advance(0.001)
        put(_Other(app.queue, app), note(f"more{len(server.messages)}"))

    server.on(".", Callback(enqueue), times=None)
    assert run_once(app.queue, smtp, limit=10) == 10
    assert app.queue.counts() == {"sent": 10, "ready": 3}


@kinds(OWN_SQLITE)
def test_a_run_for_some_seconds_takes_what_comes_meanwhile(app, server, smtp, clock):
    put(app, note("first"))
    worker = Worker(app.queue, smtp)

    def enqueue():
        clock.advance(0.001)
        if len(server.messages) == 20:
            worker.stop()
        else:
            put(_Other(app.queue, app), note(f"more{len(server.messages)}"))

    server.on(".", Callback(enqueue), times=None)
    assert worker.run_once(PATIENCE) == 21


@kinds(OWN_SQLITE)
def test_what_was_deferred_before_a_run_and_becomes_due_in_it_is_left_to_the_next(
    app, server, smtp, clock
):
    put(app, note("later"), not_before=clock.at(5))
    put(app, note("now"))
    server.on(".", Callback(lambda: clock.advance(10)))
    assert run_once(app.queue, smtp) == 1
    assert received(server) == ["now@example.net"]
    assert run_once(app.queue, smtp) == 1


# -- what is urgent behind what is not

BULK = 50_000
ENQUEUE = """
import sys, transaction
from txmail import Envelope, Mailer, transport_from_url
from txmail.queue.queue import Queue
head = "From: a@example.com\\r\\nDate: Thu, 1 Jan 2026 00:00:00 +0000\\r\\n"
content = f"{head}Message-ID: <reset@example.com>\\r\\n\\r\\nx\\r\\n".encode()
mailer = Mailer(transport_from_url("memory:"), queue=Queue(sys.argv[1]))
for line in sys.stdin:
    with transaction.manager:
        envelope = Envelope("a@example.com", [line.strip()], content)
        mailer.enqueue(envelope, priority="high")
    print("committed", flush=True)
"""


@pytest.fixture
def elsewhere():
    """Another process that enqueues what is urgent for whom it is told; it is gone at the end."""
    with contextlib.ExitStack() as stack:

        def start(app):
            url = app.engine.url.render_as_string(hide_password=False)
            child = stack.enter_context(
                subprocess.Popen(
                    [sys.executable, "-c", ENQUEUE, url],
                    stdin=subprocess.PIPE,
                    stdout=subprocess.PIPE,
                    text=True,
                )
            )
            stack.callback(child.kill)

            def enqueue(recipient):
                child.stdin.write(recipient + "\n")
                child.stdin.flush()
                assert child.stdout.readline() == "committed\n"

            return enqueue

        yield start


@pytest.mark.sweep
@pytest.mark.parametrize(
    ("kind", "reserve"), [(OWN_SQLITE, True), (OWN_SQLITE, False), (OWN_POSTGRESQL, True)]
)
def test_a_password_reset_overtakes_fifty_thousand(
    kind, make_queue, server, smtp, elsewhere, reserve
):
    """Counted in mail that the server takes between its commit, by another process, and itself.

    What was claimed before the commit may be sent before: two claims that wait, one that is being
    made, and what is on its way. With a connection of its own it waits for none of that, but for
    the keeper to look and a connection to open, while the other goes on.
    """
    app = make_queue(kind)
    put(app, *[note(f"b{number}") for number in range(BULK)], priority="bulk")
    enqueue = elsewhere(app)
    enqueue("first@example.net")  # everything is loaded by now
    with working(app.queue, smtp, reserve=reserve):
        for number in range(1, 4):
            server.wait_for(lambda n=number: len(server.messages) > 500 * n, PATIENCE)
            recipient = f"reset{number}@example.net"
            enqueue(recipient)
            before = len(server.messages)
            server.wait_for(lambda r=recipient: r in received(server), PATIENCE)
            assert received(server).index(recipient) - before < 10 * active.BATCH
    assert len(server.messages) < BULK


@kinds(OWN_SQLITE)
def test_without_a_connection_of_its_own_it_waits_for_no_more_than_is_on_its_way(
    kind, make_queue, server, smtp
):
    """The bulk goes on one message at a time, and only as long as the urgent one is not there."""
    app = make_queue(kind)
    put_many(app, "bulk", 1000, priority="bulk")
    window = 8
    gate = threading.Semaphore(0)
    server.on(".", Callback(lambda: gate.acquire(timeout=PATIENCE)), times=None)
    routes = [Route.to("one", smtp, window=window)]
    with working(app.queue, routes, reserve=False) as worker:
        (only,) = worker._lanes
        server.wait_for(lambda: "DATA" in server.commands)
        worker.wait_rounds(3)
        assert only.waiting >= active.BATCH
        put(app, note("urgent"), priority="high")
        worker.wait_rounds(5)
        assert only.ready[0].envelope.recipients == ("urgent@example.net",)
        # What is on its way, one that was taken and waits for room there, and the urgent one.
        gate.release(window + 2)
        server.wait_for(lambda: "urgent@example.net" in received(server), PATIENCE)
        gate.release(2000)
    assert received(server).index("urgent@example.net") <= window + 1
