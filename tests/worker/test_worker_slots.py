"""Routes that may have so many connections, of all workers on all hosts together."""

from __future__ import annotations

import threading

import pytest
from commits import note
from queues import OWN_QUEUES, OWN_SQLITE, kinds

sa = pytest.importorskip("sqlalchemy")

from workers import (  # noqa: E402
    PATIENCE,
    another,
    change,
    in_write,
    put,
    put_many,
    received,
    wait_for,
    working,
)

from txmail.exceptions import ConfigurationError  # noqa: E402
from txmail.queue import schema  # noqa: E402
from txmail.queue.sql import connection_slots  # noqa: E402
from txmail.testing import CLOSE, Callback, then  # noqa: E402
from txmail.worker import active, dispatcher, run_once  # noqa: E402
from txmail.worker.router import Route  # noqa: E402

HOUR = 3600.0


@pytest.fixture
def make_route(make_transport):
    """The same route as each host has it: with a transport of its own."""

    def make(connections, query=""):
        return [Route.to("default", make_transport(query=query), connections=connections)]

    return make


@pytest.fixture
def hosts(app):
    """The queue as so many hosts have it."""
    made = []

    def make(count):
        made.extend(another(app) for _ in range(count))
        return made

    yield make
    for queue in made:
        queue.close()


@pytest.fixture
def peaks(server):
    """How many connections were open whenever there was a new one."""
    counts = []

    def count():
        # Who has said QUIT has gone, whether or not the server has noticed.
        counts.append(sum(not (c.closed or c.ended_by_quit) for c in server.connections))

    server.on("connect", Callback(count), times=None)
    return counts


def seats(app):
    """Who holds which connection now."""
    rows = app.read(sa.select(schema.slot).order_by(schema.slot.c.route, schema.slot.c.number))
    return {(row.route, row.number): row.holder for row in rows if row.holder}


# -- the store


def take(app, count=1, *, numbers=(0, 1, 2), seconds=60.0, **options):
    options.setdefault("holder", 1)
    return in_write(
        app,
        lambda connection, now: connection_slots.take(
            connection,
            "r",
            numbers,
            count,
            now_ms=now,
            until_ms=now + int(seconds * 1000),
            **options,
        ),
    )


@kinds(*OWN_QUEUES)
def test_each_has_some_of_its_own_and_who_comes_when_all_are_gone_has_none(app):
    assert take(app, holder=1) == (0,)
    assert take(app, holder=2) == (1,)
    assert take(app, 2, holder=3) == ()
    assert take(app, holder=3) == (2,)
    assert take(app, holder=4) == ()
    assert seats(app) == {("r", 0): 1, ("r", 1): 2, ("r", 2): 3}


@kinds(*OWN_QUEUES)
def test_they_are_taken_from_the_end_by_who_wants_it_so(app):
    assert take(app, 2, last=True) == (2, 1)
    assert take(app, 2, holder=2) == ()
    assert take(app, holder=2) == (0,)


@kinds(*OWN_QUEUES)
def test_what_was_given_back_is_free_and_what_nobody_renews_is_in_the_end(app, clock):
    assert take(app, 3, holder=1) == (0, 1, 2)
    in_write(app, lambda c, now: connection_slots.give_back(c, "r", (1,), holder=1))
    assert take(app, 3, holder=2) == ()
    assert take(app, holder=2) == (1,)
    clock.advance(59)
    assert in_write(
        app, lambda c, now: connection_slots.renew(c, "r", (1,), holder=2, until_ms=now + 60_000)
    )
    assert take(app, holder=3) == ()
    clock.advance(1)
    assert take(app, 2, holder=3) == (0, 2)
    assert not in_write(
        app, lambda c, now: connection_slots.renew(c, "r", (0, 2), holder=1, until_ms=now)
    )
    assert seats(app) == {("r", 0): 3, ("r", 1): 2, ("r", 2): 3}


@kinds(*OWN_QUEUES)
def test_what_somebody_took_and_did_not_hear_of_it_is_found_again(app):
    """A commit of which nobody knew whether it was one; the rest is not given twice."""
    assert take(app, holder=1) == (0,)
    assert take(app, holder=1) == (0,)
    assert take(app, holder=1, held=(0,)) == (1,)


@kinds(*OWN_QUEUES)
def test_who_leaves_gives_back_all_it_has_and_nothing_of_others(app):
    take(app, 2, holder=1)
    take(app, holder=2)
    in_write(app, lambda c, now: connection_slots.release_all(c, 1))
    assert seats(app) == {("r", 2): 2}


@kinds("a PostgreSQL of its own")
def test_two_who_ask_at_once_get_different_ones_and_do_not_wait(app):
    take(app, 3)
    in_write(app, lambda c, now: connection_slots.release_all(c, 1))
    database = app.queue.database
    with database.write() as connection:
        now = database.now_ms(connection)
        first = connection_slots.take(
            connection, "r", (0, 1), 1, holder=1, now_ms=now, until_ms=now + 1000
        )
        assert (first, take(app, holder=2)) == ((0,), (1,))
        assert take(app, holder=3, numbers=(0, 1)) == ()


# -- workers


@pytest.mark.representative(every=6)
@pytest.mark.parametrize("connections", [1, 2, 3])
@kinds(*OWN_QUEUES)
def test_there_are_never_more_connections_however_many_workers_there_are(
    app, server, hosts, make_route, peaks, connections
):
    wanted = put_many(app, "n", 300)
    wanted += put_many(app, "high", 20, priority="high")
    done = []
    threads = [
        threading.Thread(target=lambda q=queue: done.append(run_once(q, make_route(connections))))
        for queue in hosts(4)
    ]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(60)
        assert not thread.is_alive()
    run_once(app.queue, make_route(connections))  # what was parked when the last one looked
    assert sorted(received(server)) == sorted(wanted)
    assert max(peaks) <= connections
    assert app.queue.counts() == {"sent": 320}
    assert seats(app) == {}


@kinds(*OWN_QUEUES)
def test_who_gets_none_leaves_the_mail_and_ends(app, server, make_route, clock):
    put_many(app, "n", 200)
    put(app, note("high"), priority="high")
    all_of_them = ("default", (0, 1), 2)
    in_write(
        app,
        lambda c, now: connection_slots.take(
            c, *all_of_them, holder=1, now_ms=now, until_ms=now + 60_000
        ),
    )
    assert run_once(app.queue, make_route(2)) == 0
    assert server.connections == []
    assert app.queue.counts() == {"ready": 201}
    assert {row.attempts for row in app.deliveries().values()} == {0}


@kinds(*OWN_QUEUES)
def test_of_a_worker_that_is_gone_they_are_free_when_its_lease_ends(
    app, server, make_route, clock, monkeypatch
):
    """Somebody who waits for them finds it out without being told."""
    monkeypatch.setattr(dispatcher, "POLL", 0.05)
    wanted = put_many(app, "n", 50)
    in_write(
        app,
        lambda c, now: connection_slots.take(
            c, "default", (0,), 1, holder=1, now_ms=now, until_ms=now + 60_000
        ),
    )
    with working(app.queue, make_route(1)) as worker:
        worker.wait_rounds(5)
        assert server.connections == []
        assert "sending" not in app.queue.counts()
        clock.advance(61)
        server.wait_for(lambda: len(server.messages) == 50, PATIENCE)
    assert received(server) == wanted


@kinds(*OWN_QUEUES)
def test_who_has_the_connection_sends_what_others_have_no_room_for(
    app, server, hosts, make_route, peaks, monkeypatch
):
    """All of it, though another worker has claimed and left it again and again."""
    monkeypatch.setattr(dispatcher, "POLL", 0.05)
    first, second = hosts(2)
    wanted = put_many(app, "n", 20)
    held = threading.Event()
    server.on(".", then(Callback(lambda: held.wait(PATIENCE))))
    with working(first, make_route(1)):
        server.wait_for(lambda: "DATA" in server.commands)
        with working(second, make_route(1)) as idle:
            wanted += put_many(app, "m", 300)
            idle.wait_rounds(10)
            held.set()
            server.wait_for(lambda: len(server.messages) == 320, PATIENCE)
    assert max(peaks) == 1
    assert sorted(received(server)) == sorted(wanted)


@kinds(OWN_SQLITE)
def test_one_of_two_is_left_to_what_is_urgent(app, server, hosts, make_route, peaks):
    put_many(app, "n", 5)
    held = threading.Event()
    server.on(".", then(Callback(lambda: held.wait(PATIENCE))), connection=1)
    first, second = hosts(2)
    with working(first, make_route(2)), working(second, make_route(2)) as other:
        server.wait_for(lambda: any(c.commands[-1:] == ["DATA"] for c in server.connections))
        put_many(app, "more", 100)
        other.wait_rounds(5)
        assert len(server.connections) == 1
        put(app, note("urgent"), priority="high")
        server.wait_for(lambda: "urgent@example.net" in received(server), PATIENCE)
        held.set()
        server.wait_for(lambda: len(server.messages) == 106, PATIENCE)
    assert max(peaks) == 2


@kinds(OWN_SQLITE)
def test_if_there_is_but_one_what_is_urgent_goes_before_the_rest(app, server, make_route, peaks):
    put_many(app, "bulk", 500, priority="bulk")
    gate = threading.Semaphore(0)
    server.on(".", Callback(lambda: gate.acquire(timeout=PATIENCE)), times=None)
    with working(app.queue, make_route(1)) as worker:
        server.wait_for(lambda: "DATA" in server.commands)
        put(app, note("urgent"), priority="high")
        worker.wait_rounds(5)
        gate.release(active.BATCH * 3)
        server.wait_for(lambda: "urgent@example.net" in received(server), PATIENCE)
        gate.release(1000)
    assert received(server).index("urgent@example.net") < active.BATCH
    assert max(peaks) == 1


@kinds(OWN_SQLITE)
def test_a_transport_of_several_connections_takes_so_many(app, server, make_route, peaks):
    wanted = put_many(app, "n", 400)
    assert run_once(app.queue, make_route(5, "?connections=3")) == 400
    assert sorted(received(server)) == sorted(wanted)
    assert max(peaks) == 3
    in_write(
        app,
        lambda c, now: connection_slots.take(
            c, "default", (0,), 1, holder=1, now_ms=now, until_ms=now + 60_000
        ),
    )
    put_many(app, "m", 10)
    assert run_once(app.queue, make_route(3, "?connections=3")) == 0


@kinds(OWN_SQLITE)
def test_a_connection_that_is_not_needed_any_more_is_others(
    app, server, hosts, make_route, monkeypatch
):
    """It is closed at once, and free when the worker next says what it needs."""
    monkeypatch.setattr(dispatcher, "POLL", 0.05)
    monkeypatch.setattr(dispatcher, "ROUND", 0.05)
    first, second = hosts(2)
    with working(first, make_route(1)) as idle:
        put(app, note("one"))
        server.wait_for(lambda: len(server.messages) == 1)
        server.wait_closed()
        wait_for(lambda: seats(app) == {}, "it keeps what it does not need")
        with working(second, make_route(1)):
            idle.stop()
            put(app, note("two"))
            server.wait_for(lambda: len(server.messages) == 2)


@kinds(*OWN_QUEUES)
def test_who_has_lost_it_to_another_sends_nothing_more_over_it(
    app, server, make_route, monkeypatch
):
    """By a clock that has jumped, say. What was on its way may have arrived; the rest is left."""
    monkeypatch.setattr(dispatcher, "POLL", 0.05)
    monkeypatch.setattr(dispatcher, "ROUND", 0.05)
    put_many(app, "n", 100)
    gate = threading.Semaphore(0)
    server.on(".", Callback(lambda: gate.acquire(timeout=PATIENCE)), times=None)
    slot = schema.slot
    with working(app.queue, [*make_route(1)]) as worker:
        server.wait_for(lambda: "DATA" in server.commands)
        change(app, slot.update().values(holder=1, until=int(9e12)))
        worker.wait_rounds(5)
        gate.release(1000)
        wait_for(lambda: "sending" not in app.queue.counts(), "it holds on")
        worker.wait_rounds(3)
        arrived = len(server.messages)
        worker.wait_rounds(5)
        assert len(server.messages) == arrived < 100
    assert seats(app) == {("default", 0): 1}
    counts = app.queue.counts()
    assert counts["ready"] + counts.get("sent", 0) + counts.get("in_doubt", 0) == 100


@kinds(OWN_SQLITE)
def test_a_route_that_fails_gives_its_connection_back(app, server, make_route, clock):
    server.on("connect", then("421 4.3.2 busy", CLOSE), times=None)
    put_many(app, "n", 5)
    run_once(app.queue, make_route(1))
    assert seats(app) == {}
    server.clear()
    clock.advance(HOUR)
    assert run_once(app.queue, make_route(1)) == 5


# -- what cannot be


@pytest.mark.parametrize(("connections", "query"), [(0, ""), (-1, ""), (2, "?connections=3")])
def test_a_number_that_cannot_be_is_refused(make_route, connections, query):
    with pytest.raises(ConfigurationError, match="connections"):
        make_route(connections, query)
