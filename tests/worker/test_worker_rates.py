"""Servers that want less: what a route carries then, on all hosts, and how that grows again."""

from __future__ import annotations

import threading

import pytest
from commits import note
from queues import OWN_QUEUES, OWN_SQLITE, kinds

sa = pytest.importorskip("sqlalchemy")

from clocks import Clock  # noqa: E402
from workers import another, in_write, put, put_many, received, wait_for, working  # noqa: E402

from txmail import transport_from_url  # noqa: E402
from txmail.cli import main  # noqa: E402
from txmail.events import Events, RouteFailed, RouteRecovered, RouteSlowed  # noqa: E402
from txmail.exceptions import QueueUnavailable  # noqa: E402
from txmail.outcome import Action, Outcome, Scope, Status  # noqa: E402
from txmail.queue import schema  # noqa: E402
from txmail.queue.inspect import read_health  # noqa: E402
from txmail.queue.sql import route_state  # noqa: E402
from txmail.reply import Reply  # noqa: E402
from txmail.testing import CLOSE, ScriptedServer, then  # noqa: E402
from txmail.testing.server import EXTENSIONS  # noqa: E402
from txmail.transports.resend import send_all  # noqa: E402
from txmail.worker import run_once  # noqa: E402
from txmail.worker.router import Circuit, Route, wants_less  # noqa: E402

NOW = 1_900_000_000_000
MINUTE, HOUR = 60_000, 3_600_000
STREAM = (*EXTENSIONS, "CHUNKING")
TOO_FAST = "451 4.7.0 slowly"
GREY = "451 4.7.1 Greylisting in action, please try later"


@pytest.fixture
def server(request):
    with ScriptedServer(extensions=getattr(request, "param", EXTENSIONS)) as server:
        yield server


both_ways = pytest.mark.parametrize(
    "server", [EXTENSIONS, STREAM], indirect=True, ids=["one by one", "stream"]
)


def only(told, kind):
    return [event for event in told if type(event) is kind]


def known(app):
    """What is known of the only route."""
    (row,) = app.read(sa.select(schema.route)) or (None,)
    return row


def slow(app, *, rate=None, pace=8.0, pause=0.0, after=0):
    """A server wants less, so many milliseconds later than it is; what is left."""
    return in_write(
        app,
        lambda connection, now: route_state.slow(
            connection, "default", now + after, rate=rate, pace=pace, pause=pause
        ),
    )


# -- the arithmetic


@pytest.mark.parametrize(
    ("minutes", "rate", "expected"),
    [
        (0, None, 2.0),
        (5, None, 4.0),
        (10, None, 8.0),
        (5, 3.0, 3.0),
        (0, 3.0, 2.0),
        (-5, None, 2.0),
        (-60 * 24, None, None),
        (-60 * 24, 3.0, 3.0),
        (44, None, 2.0 * 2**8.8),
        (45, None, None),
        (10**9, None, None),
        (10**9, 3.0, 3.0),
    ],
)
def test_what_a_route_may_carry_doubles_every_five_minutes_until_there_is_no_limit(
    minutes, rate, expected
):
    found = route_state.limit(rate, 2.0, NOW, NOW + minutes * MINUTE)
    assert found == (None if expected is None else pytest.approx(expected))


@pytest.mark.parametrize("rate", [None, 0.5])
def test_a_route_whose_server_is_content_carries_what_it_was_told_to(rate):
    assert route_state.limit(rate, None, None, NOW) == rate


@kinds(*OWN_QUEUES)
def test_the_first_time_it_is_half_of_what_it_was_told_to_or_of_what_it_carried(app):
    assert slow(app, rate=6.0) == 3.0
    assert slow(app, pace=8.0, after=HOUR) == 4.0


@kinds(OWN_SQLITE)
def test_it_is_halved_again_and_again_but_once_in_30_s_and_never_to_nothing(app):
    left = [slow(app, pace=1.0, after=n * 15_000) for n in range(20)]
    assert left[1::2] == [None] * 10
    assert left[0] == 0.5
    assert left[2] == pytest.approx(0.25)
    assert left[-2] == route_state.SLOWEST
    assert all(later <= sooner for sooner, later in zip(left[::2], left[2::2], strict=False))


@kinds(OWN_SQLITE)
def test_it_does_not_grow_while_the_route_is_left_alone(app):
    assert slow(app, pace=8.0, pause=900.0) == 4.0
    assert slow(app, after=890_000) is None
    row = known(app)
    assert route_state.limit(None, row.rate, row.slowed, row.slowed) == 4.0
    assert slow(app, after=900_000) == 2.0


@kinds(OWN_SQLITE)
def test_a_clock_that_was_a_day_ahead_does_not_keep_it_from_being_halved(app):
    assert slow(app, pace=8.0, after=24 * HOUR) == 4.0
    assert slow(app, pace=6.0) == 3.0
    assert known(app).slowed < NOW + HOUR


@kinds(*OWN_QUEUES)
def test_workers_that_hear_the_same_at_the_same_time_halve_it_once(app):
    slow(app, rate=1.0)
    change = schema.route.update().values(rate=8.0, slowed=NOW - HOUR // 12)
    with app.engine.begin() as connection:
        connection.execute(change)
    found, together = [], threading.Barrier(4)

    def tell(queue):
        together.wait(20)
        with queue.database.write() as connection:
            now = queue.database.now_ms(connection)
            found.append(
                route_state.slow(connection, "default", now, rate=None, pace=1.0, pause=0.0)
            )
        queue.close()

    threads = [threading.Thread(target=tell, args=(another(app),)) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert sorted(found, key=str)[1:] == [None] * 3
    assert known(app).rate == pytest.approx(8.0)  # of 16, to which it had grown


@kinds(*OWN_QUEUES)
def test_other_workers_are_taken_to_send_as_much(app):
    def beat(connection, now):
        for number in range(3):
            values = {"id": f"{number:032}", "kind": "worker", "heartbeat": now - number * 40_000}
            names = {"host": "h", "boot": "b", "pid_namespace": "n", "pid": 1, "started": 1}
            connection.execute(schema.process.insert().values(**values, **names))

    in_write(app, beat)
    assert slow(app, pace=8.0) == 8.0  # of two: the third was last heard of 80 seconds ago


def test_a_pace_is_that_of_the_last_minute():
    clock = Clock(1000.0)
    circuit = Circuit(clock)
    assert circuit.pace == 1.0
    for _ in range(5):
        circuit.carried()
    assert circuit.pace == 5.0
    for _ in range(200):
        clock.advance(1.0)
        for _ in range(3):
            circuit.carried()
    assert circuit.pace == 3.0
    clock.advance(19.0)
    assert circuit.pace == pytest.approx(41 * 3 / 60)
    clock.advance(3600.0)
    circuit.carried()
    assert circuit.pace == 1.0


def outcome(said, status=Status.DEFERRED, scope=Scope.ROUTE, action=Action.DEFER_ROUTE):
    reply = Reply(int(said[:3]), (said[4:],)) if said else None
    return Outcome("a@example.net", status, scope, reply, "<m@example.com>", action)


@pytest.mark.parametrize(
    ("said", "options", "expected"),
    [
        ("450 4.7.1 too much", {}, True),
        ("451 4.7.650 too much", {}, True),
        ("454 4.7.0 too much", {}, True),
        ("421 4.7.0 too much", {}, True),
        ("550 5.4.5 quota", {}, True),
        ("421 4.7.0 too many connections", {"status": Status.UNSENT}, True),
        ("421 4.7.28 too many connections", {"status": Status.UNSENT}, True),
        ("421 closing", {}, True),
        ("421 4.3.2 closing", {}, True),
        ("421 closing", {"status": Status.UNSENT}, False),
        ("421 4.3.2 down", {"status": Status.UNSENT}, False),
        ("454 4.7.0 no TLS, or no login, for now", {"status": Status.UNSENT}, False),
        ("535 5.7.8 no", {"status": Status.UNSENT, "action": Action.STOP_ROUTE}, False),
        ("451 4.3.0 no", {}, False),
        ("451 no", {}, False),
        ("", {}, False),
        ("450 4.7.1 grey", {"scope": Scope.RECIPIENT, "action": Action.DEFER}, False),
    ],
)
def test_what_says_that_it_is_too_much(said, options, expected):
    assert wants_less(outcome(said, **options)) is expected


# -- what a worker does


class Two:
    """The clocks of a worker and of its queue, which go together."""

    def __init__(self, clock):
        self.own, self.queue = Clock(1000.0), clock

    def advance(self, seconds):
        self.own.advance(seconds)
        self.queue.advance(seconds)


@pytest.mark.representative(every=4)
@pytest.mark.parametrize("rate", [None, 4.0], ids=["no limit", "a limit"])
@kinds(*OWN_QUEUES)
def test_a_server_that_wants_less_gets_half_and_then_more_again(
    app, server, smtp, clock, rate, told, listening
):
    server.on(".", TOO_FAST)
    put(app, note("first"))
    clocks = Two(clock)
    route = Route.to("default", smtp, rate=rate)
    with working(app.queue, [route], clock=clocks.own, events=listening) as worker:
        wait_for(lambda: only(told, RouteSlowed), "nothing is learned")
        # Nothing had been accepted: a second is taken for what it carried.
        expected = 2.0 if rate else 0.5
        assert [event.rate for event in only(told, RouteSlowed)] == [expected]
        assert known(app).state == route_state.OPEN
        put_many(app, "n", 20)
        clocks.advance(10.0)
        first = 2 if rate else 1
        server.wait_for(lambda: len(server.messages) == first)
        for number in range(3):
            worker.wait_rounds(5)
            assert len(server.messages) == first + number
            clocks.advance(1 / expected)
            server.wait_for(lambda n=number: len(server.messages) == first + n + 1)
        worker.wait_rounds(5)
        clocks.advance(10 * 3600.0)  # no limit any more, or the one that it was told
        server.wait_for(lambda: len(server.messages) >= (first + 7 if rate else 21))
    (row,) = read_health(app.queue.database).routes
    assert row.rate is None


@pytest.mark.representative(every=2)
@kinds(*OWN_QUEUES)
def test_what_one_worker_has_learned_holds_for_those_on_other_hosts(
    app, server, make_transport, clock
):
    server.on(".", TOO_FAST)
    put(app, note("first"))
    clocks = Two(clock)
    queue = another(app)
    few = {"clock": clocks.own, "batch": 4}  # so that there is something for both
    with working(app.queue, make_transport(), **few) as one:
        wait_for(lambda: known(app) is not None and known(app).rate, "nothing is learned")
        put_many(app, "n", 20)
        clocks.advance(10.0)
        server.wait_for(lambda: len(server.messages) == 1)
        with working(queue, make_transport(), **few) as other:
            for number in range(1, 4):
                one.wait_rounds(5)
                other.wait_rounds(5)
                assert len(server.messages) == number
                clocks.advance(2.0)
                server.wait_for(lambda n=number: len(server.messages) == n + 1)
    queue.close()
    assert len(server.messages) < 20


@kinds(OWN_SQLITE)
def test_that_less_is_wanted_is_not_forgotten_if_it_cannot_be_written_at_once(
    app, server, smtp, monkeypatch
):
    real, tries = route_state.slow, []

    def failing(*arguments, **options):
        tries.append(real(*arguments, **options))
        if len(tries) < 3:
            raise QueueUnavailable("the disk is full")
        return tries[-1]

    monkeypatch.setattr(route_state, "slow", failing)
    server.on(".", TOO_FAST)
    put_many(app, "n", 5)
    run_once(app.queue, smtp)
    assert len(tries) >= 3
    assert known(app).rate == tries[2]
    assert app.queue.counts().keys() <= {"ready", "sent"}


@kinds(OWN_SQLITE)
def test_too_many_connections_are_too_much_as_well(app, server, smtp):
    server.on("connect", then("421 4.7.0 too many connections", CLOSE), times=None)
    put_many(app, "n", 5)
    run_once(app.queue, smtp)
    assert app.queue.counts() == {"ready": 5}
    assert known(app).rate is not None


@both_ways
@kinds(OWN_SQLITE)
def test_what_was_on_its_way_when_a_route_failed_does_not_say_that_it_works(
    app, server, smtp, told, listening
):
    server.on(".", TOO_FAST, matching="<n3@example.com>")
    put_many(app, "n", 10)
    run_once(app.queue, smtp, events=listening)
    assert len(only(told, RouteFailed)) == 1
    assert only(told, RouteRecovered) == []
    assert known(app).state == route_state.OPEN
    assert app.states()["n3@example.net"] == "ready"


# -- greylisting


@kinds(*OWN_QUEUES)
def test_greylisting_is_about_its_recipient_and_nobody_else_waits(
    app, server, smtp, told, listening
):
    server.on("RCPT", GREY, matching="<grey", times=None)
    put(app, note("grey", recipients=["grey@example.net", "ann@example.net"]))
    good = [*put_many(app, "a", 5), "ann@example.net"]
    put(app, note("grey1"), note("grey2"))
    good += put_many(app, "b", 5)
    put(app, note("many", recipients=[f"grey-{n}@example.net" for n in range(9)]))
    run_once(app.queue, smtp, events=listening)
    states = app.states()
    assert {states[r] for r in good} == {"sent"}
    rows = [row for r, row in app.deliveries().items() if r.startswith("grey")]
    assert {(row.state, row.attempts, row.code) for row in rows} == {("deferred", 1, 451)}
    assert only(told, RouteFailed) == only(told, RouteSlowed) == []


@both_ways
@kinds(OWN_SQLITE)
def test_greylisting_of_three_messages_in_a_row_does_not_slow_the_route_down(
    app, server, smtp, told, listening
):
    server.on("RCPT", GREY, matching="<grey", times=None)
    put_many(app, "a", 3)
    put(app, *[note(f"grey{n}") for n in range(3)])
    good = put_many(app, "b", 3)
    run_once(app.queue, smtp, events=listening)
    states = app.states()
    assert {states[f"grey{n}@example.net"] for n in range(3)} == {"deferred"}
    assert {states[r] for r in good} == {"sent"}
    assert only(told, RouteSlowed) == only(told, RouteFailed) == []
    assert known(app) is None


# -- MAIL


LATER = "451 4.3.0 later"


@both_ways
@kinds(*OWN_QUEUES)
def test_a_sender_that_is_put_off_is_about_its_message_and_of_three_in_a_row_about_the_route(
    app, server, make_transport, clock, told, listening
):
    server.on("MAIL", LATER, matching="<bad", times=None)
    put(app, note("bad0"), note("bad1"), note("good0"), *(note(f"bad{n}") for n in range(2, 8)))
    put_many(app, "after", 3)
    run_once(app.queue, make_transport(query="?window=1"), events=listening)
    rows = app.deliveries()
    bad = [(rows[f"bad{n}@example.net"].state, rows[f"bad{n}@example.net"].attempts)
           for n in range(8)]  # fmt: skip
    assert rows["good0@example.net"].state == "sent"
    assert bad == [("deferred", 1)] * 2 + [("ready", 0)] * 6
    (failed,) = only(told, RouteFailed)
    assert failed.reason == f"{LATER} (to 3 messages in a row)"
    assert len(only(told, RouteSlowed)) == 1
    assert known(app).state == route_state.OPEN
    server.clear()
    clock.advance(3600)
    run_once(app.queue, make_transport())
    assert set(app.states().values()) == {"sent"}
    assert len(received(server)) == len(rows)


@both_ways
def test_a_message_to_many_that_is_put_off_in_several_transactions_is_one(server, smtp):
    """A worker claims its recipients in several portions."""
    server.on("MAIL", LATER, matching="<bad", times=None)
    bad = [note("bad", recipients=[f"r{n}-{m}@example.net" for m in range(150)]) for n in range(5)]
    outcomes = list(send_all(smtp, [*bad, note("good")]))
    assert {(o.status, o.scope) for o in outcomes[:-1]} == {(Status.DEFERRED, Scope.MESSAGE)}
    assert len(outcomes) == 5 * 150 + 1
    assert outcomes[-1].status is Status.ACCEPTED


@both_ways
def test_messages_between_which_others_are_accepted_are_not_in_a_row(server, smtp):
    server.on("MAIL", LATER, matching="<bad", times=None)
    given = [note(f"{name}{n}") for n in range(6) for name in ("bad", "good")]
    outcomes = sorted(send_all(smtp, given), key=lambda outcome: outcome.position)
    assert {o.scope for o in outcomes} == {Scope.MESSAGE}
    assert [str(o.status) for o in outcomes] == ["deferred", "accepted"] * 6


# -- who goes first, and what can be seen


@kinds(OWN_SQLITE)
def test_what_is_urgent_is_the_next_that_a_rate_lets_through(app, server, smtp, clock):
    put_many(app, "n", 20)
    with working(app.queue, [Route.to("default", smtp, rate=1.0)]) as worker:
        server.wait_for(lambda: len(server.messages) == 1)
        put_many(app, "urgent", 3, priority="high")
        wait_for(
            lambda: app.deliveries()["urgent2@example.net"].state == "sending", "it is not claimed"
        )
        for number in range(2, 5):
            worker.wait_rounds(3)
            clock.advance(1.0)
            server.wait_for(lambda n=number: len(server.messages) == n)
    assert received(server)[1:] == [f"urgent{n}@example.net" for n in range(3)]


@kinds(OWN_SQLITE)
def test_rows_of_several_routes_are_locked_in_one_order_whatever_is_urgent(
    kind, make_queue, monkeypatch
):
    """Two hosts that took them in orders of their own would wait for each other."""
    app = make_queue(kind)
    real, order = route_state.grant, []

    def grant(connection, name, *arguments):
        order.append(name)
        return real(connection, name, *arguments)

    monkeypatch.setattr(route_state, "grant", grant)
    ways = [
        Route.to(name, transport_from_url("memory:"), domains=[f"{name}.example"], rate=1000.0)
        for name in "bca"
    ]
    for priority, names in (("high", "cb"), ("normal", "abc"), ("bulk", "ca")):
        put(
            app,
            *[note(f"{priority}-{n}", recipients=[f"{priority}@{n}.example"]) for n in names],
            priority=priority,
        )
    assert run_once(app.queue, ways) == 7
    assert order[:3] == ["a", "b", "c"]


@kinds(OWN_SQLITE)
def test_that_a_route_is_slowed_down_can_be_seen(kind, make_queue, server, smtp, caplog, capsys):
    app = make_queue(kind)
    server.on(".", TOO_FAST)
    put_many(app, "n", 2)
    run_once(app.queue, [Route.to("default", smtp, rate=1.0)])
    (route,) = read_health(app.queue.database).routes
    assert route.rate == 0.5
    assert f"route default is slowed down to 30 message(s) a minute: {TOO_FAST}" in caplog.messages
    url = app.engine.url.render_as_string(hide_password=False)
    main(["doctor", "--health", "--queue-url", url])
    assert (
        "route default: its server asked for a lower rate; now at most 30 messages a minute"
        in capsys.readouterr().out
    )


@kinds(OWN_SQLITE)
def test_metrics_have_what_is_left_of_a_route_only_if_it_was_slowed_down(app, server, smtp):
    prometheus = pytest.importorskip("txmail.integrations.prometheus")
    metrics = prometheus.Metrics(app.queue, Events())
    server.on(".", TOO_FAST)
    put_many(app, "n", 1)
    assert b'txmail_route_rate{route="default"}' not in metrics.text()
    run_once(app.queue, smtp)
    assert b'txmail_route_rate{route="default"} 0.5' in metrics.text()
