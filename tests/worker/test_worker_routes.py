"""Which mail goes which way, what a way that is closed does to the others, and how workers end."""

from __future__ import annotations

import threading
from collections import Counter

import pytest
from commits import note
from letters import letter, subjects
from queues import OWN_QUEUES, OWN_SQLITE, kinds

sa = pytest.importorskip("sqlalchemy")

from clocks import Clock  # noqa: E402
from workers import (  # noqa: E402
    PATIENCE,
    another,
    change,
    change_delivery,
    put,
    put_many,
    received,
    wait_for,
    working,
)

from txmail import Mailer, start_worker, transport_from_url  # noqa: E402
from txmail.exceptions import ConfigurationError  # noqa: E402
from txmail.queue import schema  # noqa: E402
from txmail.queue.inspect import count_waiting, read_health  # noqa: E402
from txmail.queue.sql import parked as parked_mail  # noqa: E402
from txmail.reply import Reply  # noqa: E402
from txmail.testing import CLOSE, HANG, Callback, then  # noqa: E402
from txmail.worker import dispatcher, run_once  # noqa: E402
from txmail.worker.router import FIRST_PAUSE, LONGEST_PAUSE, Circuit, Route, route_of  # noqa: E402

HOUR = 3600.0


def memory():
    return transport_from_url("memory:")


def took(transport):
    return sorted(r for e in transport.envelopes for r in e.recipients)


# -- the rules


def test_a_route_takes_what_all_its_rules_are_true_of():
    route = Route.to(
        "r",
        memory(),
        senders=["Shop.example", "ann@example.org"],
        domains=["Example.NET"],
        priorities=["bulk", "normal"],
    )

    def takes(sender, *recipients, priority=1):
        return all(route.takes(sender, recipient, priority) for recipient in recipients)

    assert takes("x@SHOP.example", "b@example.net")
    assert takes("Ann@Example.org", "b@EXAMPLE.net")
    assert takes("ann@example.org", "b@example.net", priority=2)
    assert not takes("ann@example.org", "b@example.net", priority=0)
    assert not takes("bob@example.org", "b@example.net")
    assert not takes("x@sub.shop.example", "b@example.net")
    assert not takes("x@shop.example", "b@example.net", "c@example.com")
    assert not takes("x@shop.example", "b@notexample.net")


EXAMPLE = ("shop@example.com", "a@example.net", 1)


def test_without_rules_everything_goes_that_way_and_the_first_that_fits_is_taken():
    narrow, wide = Route.to("n", memory(), domains=["example.net"]), Route.to("w", memory())
    assert route_of([narrow, wide], *EXAMPLE) is narrow
    assert route_of([wide, narrow], *EXAMPLE) is wide
    assert route_of([narrow], "shop@example.com", "a@example.com", 1) is None


@pytest.mark.parametrize(
    "options", [{"priorities": ["urgent"]}, {"rate": 0}, {"rate": -1}, {"transport": object()}]
)
def test_a_route_with_nonsense_is_refused(options):
    with pytest.raises(ConfigurationError):
        Route.to("r", **{"transport": memory(), **options})


@kinds(*OWN_QUEUES)
def test_mail_goes_the_way_its_sender_its_domain_or_its_priority_says(app):
    routes = [
        Route.to("shop", memory(), senders=["shop.example"]),
        Route.to("partner", memory(), domains=["partner.example"]),
        Route.to("news", memory(), priorities=["bulk"]),
        Route.to("rest", memory()),
    ]
    put(app, note("a", sender="a@shop.example"))
    put(app, note("b", recipients=["b@partner.example"]))
    put(app, note("c"), priority="bulk")
    put(app, note("d"), note("e", recipients=["e@partner.example", "e@example.net"]))
    assert run_once(app.queue, routes) == 6  # of one message, each recipient has a way
    assert [took(route.transport) for route in routes] == [
        ["a@example.net"],
        ["b@partner.example", "e@partner.example"],
        ["c@example.net"],
        ["d@example.net", "e@example.net"],
    ]


@kinds(OWN_SQLITE)
def test_the_history_says_which_way_was_tried(app):
    routes = [Route.to("one", memory(), domains=["one.example"]), Route.to("two", memory())]
    for route in routes:
        route.transport.refuse("*", Reply(550, ("5.1.1 no",)))
    put(app, note("a", recipients=["a@one.example"]), note("b"))
    run_once(app.queue, routes)
    assert [a.route for a in app.attempts("a@one.example")] == ["one"]
    assert [a.route for a in app.attempts("b@example.net")] == ["two"]


@kinds(OWN_SQLITE)
def test_what_no_route_takes_waits_says_so_and_stops_nothing(app, clock):
    route = Route.to("one", memory(), domains=["one.example"])
    put(app, note("a"), note("b", recipients=["b@one.example"]))
    assert run_once(app.queue, [route]) == 1
    row = app.deliveries()["a@example.net"]
    assert (row.state, row.attempts, row.reply) == ("ready", 0, "no route takes it")
    assert row.due > clock() * 1000
    clock.advance(HOUR)
    assert run_once(app.queue, [route, Route.to("rest", memory())]) == 1


# -- a route that is closed


def test_a_circuit_stays_open_for_longer_each_time_and_closes_with_the_first_success():
    clock = Clock(0.0)
    circuit = Circuit(clock, _jitter=float)
    pauses = []
    for _ in range(12):
        assert not circuit.open
        circuit.failed("no")
        assert circuit.open
        pauses.append(circuit.left)
        clock.advance(circuit.left)
    assert pauses[:3] == [FIRST_PAUSE, FIRST_PAUSE * 2, FIRST_PAUSE * 4]
    assert pauses == sorted(pauses)
    assert pauses[-1] == LONGEST_PAUSE
    circuit.succeeded()
    assert (circuit.open, circuit.left, circuit.reason, circuit.failures) == (False, 0.0, "", 0)
    circuit.failed("no")
    assert circuit.left == FIRST_PAUSE


def test_a_circuit_that_needs_a_person_is_open_for_the_longest_time_at_once():
    circuit = Circuit(Clock(0.0), _jitter=float)
    circuit.failed("535 no", stop=True)
    assert (circuit.left, circuit.stopped) == (LONGEST_PAUSE, True)
    circuit.succeeded()
    assert not circuit.stopped


def test_what_other_workers_know_keeps_a_circuit_open_but_not_for_ever():
    clock = Clock(0.0)
    circuit = Circuit(clock)
    circuit.adopt(60.0, 3, "down")
    assert (circuit.left, circuit.failures, circuit.reason) == (60.0, 3, "down")
    circuit.adopt(30.0, 1, "down")
    assert (circuit.left, circuit.failures) == (60.0, 3)
    circuit.adopt(30 * 24 * HOUR, 1, "by a clock that has jumped")
    assert circuit.left <= LONGEST_PAUSE * 1.25


@kinds(OWN_SQLITE)
def test_a_route_that_fails_is_left_alone_and_then_tried_with_what_is_there(
    app, server, smtp, clock, monkeypatch
):
    """Open, half open, closed: by the clock of the worker, which does all of it itself."""
    monkeypatch.setattr(dispatcher, "ROUND", 0.0)
    own = Clock(1000.0)
    server.on("connect", then("421 4.3.2 busy", CLOSE), times=2)
    wanted = put_many(app, "n", 100)

    def advance(seconds):
        own.advance(seconds)
        clock.advance(seconds)

    with working(app.queue, smtp, clock=own) as worker:
        server.wait_for(lambda: len(server.connections) == 1)
        wait_for(lambda: app.queue.counts() == {"ready": 100}, "it gives nothing back")
        worker.wait_rounds(5)
        assert len(server.connections) == 1  # open: nobody tries
        advance(FIRST_PAUSE * 1.3)
        server.wait_for(lambda: len(server.connections) == 2)
        wait_for(lambda: app.queue.counts() == {"ready": 100}, "it gives nothing back")
        worker.wait_rounds(5)
        advance(FIRST_PAUSE * 1.3)
        worker.wait_rounds(5)
        assert len(server.connections) == 2  # for longer than the first time
        advance(FIRST_PAUSE * 1.3)
        wait_for(lambda: app.queue.counts() == {"sent": 100}, "it is not closed again")
    assert sorted(received(server)) == sorted(wanted)
    assert {row.attempts for row in app.deliveries().values()} == {1}


@kinds(*OWN_QUEUES)
def test_a_worker_hears_from_others_that_a_route_fails(app, server, make_transport, clock):
    server.on("connect", then("421 4.3.2 busy", CLOSE), times=None)
    put_many(app, "n", 10)
    queue = another(app)
    with working(app.queue, make_transport()) as worker:
        server.wait_for(lambda: len(server.connections) == 1)
        wait_for(lambda: app.queue.counts() == {"ready": 10}, "it gives nothing back")
        worker._ledger._next_round = 0.0
        worker.wait_rounds(3)
    put_many(app, "more", 10)
    run_once(queue, make_transport())
    assert len(server.connections) == 1
    clock.advance(HOUR)
    server.clear()
    assert run_once(queue, make_transport()) == 20
    queue.close()


@pytest.mark.sweep
@kinds(*OWN_QUEUES)
def test_a_black_hole_with_a_thousand_messages_holds_up_no_other_route(
    kind, make_queue, server, other_server, make_transport
):
    app = make_queue(kind)
    other_server.on("connect", HANG, times=None)
    routes = [
        Route.to("hole", make_transport(other_server.url), domains=["hole.example"]),
        Route.to("rest", make_transport()),
    ]
    put(app, *[note(f"h{n}", recipients=[f"h{n}@hole.example"]) for n in range(1000)])
    wanted = put_many(app, "n", 100)
    with working(app.queue, routes):
        server.wait_for(lambda: len(server.messages) == 100, PATIENCE)
        assert not any(c.closed for c in other_server.connections)
        other_server.kill()
    assert sorted(received(server)) == sorted(wanted)
    counts = app.queue.counts()
    assert counts == {"sent": 100, "ready": 1000}
    assert not any(row.attempts for row in app.deliveries().values() if row.state == "ready")


@kinds(OWN_SQLITE)
def test_run_once_goes_on_with_what_a_busy_route_could_not_take(
    kind, make_queue, server, other_server, make_transport
):
    app = make_queue(kind)
    routes = [
        Route.to("slow", make_transport(other_server.url), domains=["slow.example"]),
        Route.to("rest", make_transport()),
    ]
    put(app, *[note(f"s{n}", recipients=[f"s{n}@slow.example"]) for n in range(400)])
    put_many(app, "n", 50)
    others = lambda: server.wait_for(lambda: len(server.messages) == 50)  # noqa: E731
    other_server.on(".", then(Callback(others)))
    assert run_once(app.queue, routes) == 450
    assert app.queue.counts() == {"sent": 450}


# -- a route that has no room


@pytest.fixture
def slow_and_fast(other_server, make_transport):
    """Two routes, as each worker has them: what is for slow.example takes the other server."""

    def make():
        slow = make_transport(other_server.url)
        return [
            Route.to("slow", slow, domains=["slow.example"]),
            Route.to("rest", make_transport()),
        ]

    return make


def slow(count):
    return [note(f"s{n}", recipients=[f"s{n}@slow.example"]) for n in range(count)]


def parked(app):
    """What waits for a route to have room, with all that is written of it."""
    return app.read(sa.select(schema.delivery).where(schema.IS_PARKED).order_by("id"))


@pytest.mark.representative(every=2)
@kinds(*OWN_QUEUES)
def test_what_a_worker_has_no_room_for_is_sent_by_another_that_has(
    app, server, other_server, slow_and_fast
):
    put(app, *slow(500))
    wanted = put_many(app, "n", 20)
    held = threading.Event()
    other_server.on(".", Callback(lambda: held.wait(PATIENCE)), connection=1)
    queue = another(app)
    with working(app.queue, slow_and_fast()) as busy:
        server.wait_for(lambda: len(server.messages) == 20, PATIENCE)
        wait_for(lambda: len(parked(app)) > 300, "it holds what it cannot send")
        assert run_once(queue, slow_and_fast()) > 300
        assert parked(app) == []
        held.set()
        other_server.wait_for(lambda: len(other_server.messages) == 500, PATIENCE)
        busy.wait_rounds(3)
    queue.close()
    assert sorted(received(server)) == sorted(wanted)
    assert app.queue.counts() == {"sent": 520}
    assert {row.attempts for row in app.deliveries().values()} == {1}


@kinds(*OWN_QUEUES)
def test_what_waits_for_room_is_not_touched_until_there_is_some(
    app, server, other_server, slow_and_fast
):
    """However often others are claimed meanwhile; and it keeps its place by when it was due."""
    put(app, *slow(300))
    held = threading.Event()
    other_server.on(".", Callback(lambda: held.wait(PATIENCE)))
    due = {row.due for row in app.deliveries().values()}
    with working(app.queue, slow_and_fast()) as busy:
        wait_for(lambda: len(parked(app)) > 100, "it holds what it cannot send")
        busy.wait_rounds(3)
        before = parked(app)
        assert {row.route for row in before} == {"slow"}
        assert {row.due for row in before} == due
        for number in range(5):
            put(app, note(f"n{number}"))
            server.wait_for(lambda n=number: len(server.messages) == n + 1, PATIENCE)
        assert parked(app) == before
        held.set()
        other_server.wait_for(lambda: len(other_server.messages) == 300, PATIENCE)
    assert sorted(received(other_server)) == sorted(f"s{n}@slow.example" for n in range(300))


@kinds(*OWN_QUEUES)
def test_what_waits_for_a_route_that_is_none_any_more_goes_another_way_in_the_end(app, clock):
    put_many(app, "n", 3)
    change(app, schema.delivery.update().values(route="renamed"))
    memory_ = memory()
    assert run_once(app.queue, memory_) == 0
    clock.advance(parked_mail.PARKED_MS / 1000)
    run_once(app.queue, memory_)
    clock.advance(1)
    run_once(app.queue, memory_)
    assert took(memory_) == ["n0@example.net", "n1@example.net", "n2@example.net"]
    assert {row.route for row in app.deliveries().values()} == {None}


@kinds(*OWN_QUEUES)
def test_what_waits_for_room_is_counted_as_ready_and_as_due(app, clock):
    put_many(app, "n", 2)
    put(app, note("a"))
    change_delivery(app, "a@example.net", route="slow")
    change_delivery(app, "n0@example.net", state="sending")
    change_delivery(app, "n1@example.net", state="sending")
    clock.advance(60)
    health = read_health(app.queue.database)
    assert (health.deliveries["ready"], health.oldest_due) == (1, 60.0)
    with app.queue.database.read() as connection:
        assert count_waiting(connection, 4) == 3


# -- who goes first, and the end


@kinds(*OWN_QUEUES)
def test_a_password_reset_does_not_wait_for_the_bulk(kind, make_queue, server, smtp):
    """By order, not by time: the bulk is not at its end when the reset has arrived."""
    app = make_queue(kind)
    app_mailer = app.mailer("memory:")
    count = 5000 if kind == OWN_SQLITE else 1000
    put_many(app, "bulk", count, priority="bulk")
    with working(app.queue, smtp):
        server.wait_for(lambda: len(server.messages) > 100)
        with app._tm:
            app_mailer.enqueue(note("reset"), priority="high")
        server.wait_for(lambda: "reset@example.net" in received(server)[100:], PATIENCE)
        arrived = received(server)
    place = arrived.index("reset@example.net")
    assert place < count * 0.9
    counts = app.queue.counts()
    assert sum(counts.values()) == count + 1
    assert counts["sent"] == len(server.messages)


@kinds(OWN_SQLITE)
def test_what_is_urgent_has_a_connection_of_its_own(kind, make_queue, server, smtp):
    app = make_queue(kind)
    put_many(app, "n", 5)
    held = threading.Event()
    server.on(".", then(Callback(lambda: held.wait(PATIENCE))), connection=1)
    with working(app.queue, smtp):
        server.wait_for(lambda: any(c.commands[-1:] == ["DATA"] for c in server.connections))
        put(app, note("urgent"), priority="high")
        server.wait_for(lambda: received(server) == ["urgent@example.net"])
        held.set()
        server.wait_for(lambda: len(server.messages) == 6)


@pytest.mark.representative(every=3)
@pytest.mark.parametrize("after", [0, 1, 30])
@kinds(*OWN_QUEUES)
def test_who_is_told_to_stop_finishes_what_is_on_the_wire_and_gives_back_the_rest(
    kind, make_queue, server, smtp, after
):
    app = make_queue(kind)
    wanted = put_many(app, "n", 150)
    reached, go_on = threading.Event(), threading.Event()
    server.on(".", then(Callback(lambda: (reached.set(), go_on.wait(PATIENCE)))), after=after)
    with working(app.queue, smtp) as worker:
        assert reached.wait(PATIENCE)
        worker.stop()
        go_on.set()
    arrived = received(server)
    states = app.states()
    assert Counter(arrived) == dict.fromkeys([r for r in wanted if states[r] == "sent"], 1)
    assert set(states.values()) == {"sent", "ready"}
    assert after < len(arrived) < 150
    rows = app.deliveries().values()
    assert all(
        (r.attempts, r.token, r.lease) == (0, None, None) for r in rows if r.state == "ready"
    )
    assert run_once(app.queue, smtp) == 150 - len(arrived)
    assert sorted(received(server)) == sorted(wanted)


@kinds(OWN_SQLITE)
def test_stopping_twice_or_before_it_began_is_no_harm(kind, make_queue, smtp):
    app = make_queue(kind)
    put_many(app, "n", 3)
    with working(app.queue, smtp) as worker:
        worker.stop()
        worker.stop()
    assert sum(app.queue.counts().values()) == 3
    assert "sending" not in app.queue.counts()


# -- in the application's process


@kinds(*OWN_QUEUES)
def test_a_worker_of_the_application_sends_what_it_enqueues_at_once(
    kind, make_queue, server, smtp, monkeypatch
):
    """It is told: with this pause between two looks it would find nothing by itself."""
    monkeypatch.setattr(dispatcher, "POLL", HOUR)
    monkeypatch.setattr(dispatcher, "ROUND", HOUR)
    app = make_queue(kind)
    mailer = Mailer(smtp, queue=app.queue, transaction_manager=app._tm)
    running = start_worker(mailer)
    try:
        for number in range(3):
            with app._tm:
                mailer.enqueue(letter(number))
            server.wait_for(lambda n=number: len(server.messages) == n + 1)
        assert running.running
    finally:
        running.stop()
    assert not running.running
    assert subjects(server) == ["0", "1", "2"]
    assert app.queue.counts() == {"sent": 3}


@kinds(OWN_SQLITE)
def test_what_wakes_nobody_is_found_when_the_worker_looks(
    kind, make_queue, server, smtp, monkeypatch
):
    monkeypatch.setattr(dispatcher, "POLL", 0.05)
    app = make_queue(kind)
    woken = []
    with working(app.queue, smtp) as worker:
        worker.wait_rounds()
        app.queue.host.notifier.wake = lambda: woken.append(1)
        put(app, note("a"), wake=False)
        server.wait_for(lambda: len(server.messages) == 1)
    assert woken == []


@kinds(OWN_SQLITE)
def test_nothing_of_a_transaction_that_aborts_is_ever_seen_by_a_worker(
    kind, make_queue, server, smtp
):
    app = make_queue(kind)
    mailer = app.mailer("memory:")
    with working(app.queue, smtp) as worker:
        app._tm.begin()
        mailer.enqueue(note("aborted"))
        worker.wait_rounds(3)
        app._tm.abort()
        put(app, note("committed"))
        server.wait_for(lambda: len(server.messages) == 1)
        worker.wait_rounds(3)
    assert received(server) == ["committed@example.net"]


def test_a_mailer_without_a_queue_has_nothing_to_work_on(make_mailer):
    with pytest.raises(ConfigurationError, match="queue"):
        start_worker(make_mailer())
