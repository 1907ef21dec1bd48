"""Q6: a clock that was ahead for a while. Clocks are injected, or written into the rows."""

from __future__ import annotations

import os
import threading
from datetime import UTC, datetime

import pytest
from commits import note
from letters import letter
from queues import IN_POSTGRESQL, IN_SQLITE, OWN_QUEUES, OWN_SQLITE, kinds

sa = pytest.importorskip("sqlalchemy")

from dying import change_process, forked, hold, killed  # noqa: E402
from workers import (  # noqa: E402
    another,
    change,
    change_delivery,
    claim,
    in_write,
    put,
    put_many,
    working,
)

from txmail import transport_from_url  # noqa: E402
from txmail.queue import schema  # noqa: E402
from txmail.queue.sql import connection_slots, times  # noqa: E402
from txmail.testing import Callback  # noqa: E402
from txmail.worker import Route, dispatcher, run_once  # noqa: E402

MINUTE, HOUR, DAY = 60.0, 3600.0, 86400.0
AHEAD = [15 * MINUTE, 3 * HOUR, 30 * DAY]

ahead = pytest.mark.parametrize("by", AHEAD, ids=["15 minutes", "3 hours", "30 days"])


def sent(memory):
    return sorted(r for envelope in memory.envelopes for r in envelope.recipients)


@pytest.mark.representative(every=3)
@ahead
@kinds(*OWN_QUEUES, IN_SQLITE, IN_POSTGRESQL)
def test_q6_what_was_committed_while_the_clock_was_ahead_is_due(app, clock, memory, by):
    """Kind: a time that a wrong clock has written is believed when the clock is right again."""
    clock.advance(by)
    mailer = app.mailer("memory:")
    with app._tm:
        app.database.write("order")
        for number, priority in enumerate(("high", "normal", "bulk")):
            mailer.enqueue(letter("n", f"n{number}@example.com"), priority=priority)
        mailer.enqueue(letter("k", "k@example.com"), idempotency_key="k")
    assert app.queue.flush(20)
    clock.advance(-by)
    assert run_once(app.queue, memory) == 4


@pytest.mark.representative(every=3)
@ahead
@kinds(*OWN_QUEUES)
def test_q6_what_is_not_to_be_sent_before_a_moment_is_not(app, clock, memory, by):
    """Neither before that moment, although the clock has been behind it, nor much after."""
    right = clock.now
    at = datetime.fromtimestamp(right + 10 * MINUTE, UTC)
    later = datetime.fromtimestamp(right + by + DAY, UTC)
    clock.advance(by)
    put(app, note("a"), not_before=at)
    put(app, note("b"), not_before=later)
    clock.advance(-by)
    assert run_once(app.queue, memory) == 0
    clock.advance(9 * MINUTE)
    assert run_once(app.queue, memory) == 0
    clock.advance(2 * MINUTE)
    assert run_once(app.queue, memory) == 1
    clock.now = right + by + DAY + 1
    assert run_once(app.queue, memory) == 1
    assert [e.recipients for e in memory.envelopes] == [("a@example.net",), ("b@example.net",)]


@pytest.mark.representative(every=3)
@ahead
@kinds(*OWN_QUEUES)
def test_q6_what_was_put_off_while_it_was_ahead_waits_no_longer_than_it_was_to(
    app, clock, server, by
):
    clock.advance(by)
    put(app, note("a"))
    server.refuse("a@example.net", "450 4.2.0 later")
    smtp = transport_from_url(server.url)
    assert run_once(app.queue, smtp) == 1
    row = app.deliveries()["a@example.net"]
    assert row.state == "deferred"
    clock.advance(-by)
    server.clear()
    assert run_once(app.queue, smtp) == 0
    clock.advance((row.due - row.changed) / 1000 + 1)
    assert run_once(app.queue, smtp) == 1
    smtp.close()


@pytest.mark.representative(every=3)
@ahead
@kinds(*OWN_QUEUES)
def test_q6_a_lease_that_ends_later_than_any_lease_is_over(app, clock, memory, by):
    wanted = put_many(app, "n", 6)
    clock.advance(by)
    claim(app, 2, token=7, lease=300, begun=True)
    claim(app, 4, token=8, lease=300)
    clock.advance(-by)
    assert run_once(app.queue, memory) == 4
    assert sent(memory) == wanted[2:]
    assert app.queue.counts() == {"sent": 4, "in_doubt": 2}


@kinds(OWN_SQLITE)
def test_q6_who_cannot_be_looked_at_has_a_moment_to_renew_such_a_lease(app, clock, memory):
    put_many(app, "n", 3)
    clock.advance(HOUR)
    pid = killed(hold(app, ready=3))
    change_process(app, pid, host="elsewhere")
    clock.advance(-HOUR)
    assert run_once(app.queue, memory) == 0
    clock.advance(dispatcher.UNSEEN / 1000 + 1)
    assert run_once(app.queue, memory) == 3


@kinds(*OWN_QUEUES)
def test_q6_who_is_seen_to_live_keeps_what_is_his(app, clock, memory):
    put_many(app, "n", 3)
    clock.advance(HOUR)
    with forked(hold(app, ready=3)):
        clock.advance(-HOUR)
        assert run_once(app.queue, memory) == 0


@kinds(OWN_SQLITE)
def test_q6_workers_of_one_process_leave_each_other_what_they_have(
    app, clock, server, memory, monkeypatch
):
    monkeypatch.setattr(dispatcher, "ROUND", 1000.0)
    put_many(app, "n", 3)
    reached, opened = threading.Event(), threading.Event()
    server.on(".", Callback(lambda: (reached.set(), opened.wait(30))))
    queue = another(app)
    clock.advance(HOUR)
    with working(app.queue, transport_from_url(server.url)):
        assert reached.wait(30)
        clock.advance(-HOUR)
        assert run_once(queue, memory) == 0
        opened.set()
    queue.close()
    assert app.queue.counts() == {"sent": 3}
    assert not any(row.duplicate for row in app.deliveries().values())


@kinds(*OWN_QUEUES)
def test_q6_a_lease_as_long_as_that_of_the_worker_itself_is_none_of_those(app, clock, memory):
    put_many(app, "n", 3)
    claim(app, 3, lease=3600)
    assert run_once(app.queue, memory, lease=3600.0) == 0
    assert app.queue.counts() == {"sending": 3}


@kinds(*OWN_QUEUES)
def test_q6_a_slot_that_is_taken_for_longer_than_any_is_free(app, clock):
    put_many(app, "n", 2)
    route = Route.to("default", transport_from_url("memory:"), connections=1)
    in_write(
        app,
        lambda c, now: connection_slots.take(
            c, "default", (0,), 1, holder=1, now_ms=now, until_ms=now + int(DAY * 1000)
        ),
    )
    assert run_once(app.queue, [route]) == 0  # this process lives
    clock.advance(dispatcher.UNSEEN / 1000 + 1)
    assert run_once(app.queue, [route]) == 2


@kinds(OWN_SQLITE)
def test_q6_a_slot_of_a_process_that_nobody_knows_is_free_at_once(app, clock):
    put_many(app, "n", 2)
    route = Route.to("default", transport_from_url("memory:"), connections=1)
    until = int((clock.now + DAY) * 1000)
    in_write(
        app,
        lambda c, now: connection_slots.take(
            c, "default", (0,), 1, holder=1, now_ms=now, until_ms=until
        ),
    )
    change(app, schema.slot.update().values(process="0" * 32))
    assert run_once(app.queue, [route]) == 2


@pytest.mark.skipif(not os.path.exists("/proc/self/ns/pid"), reason="it needs /proc")
@kinds(*OWN_QUEUES)
def test_q1_the_connections_of_a_dead_worker_are_free_at_once(app):
    """With ``connections = 1`` all mail stood still for five minutes."""
    put_many(app, "n", 5)

    def take():
        queue = another(app)
        with queue.database.write() as connection:
            now = queue.database.now_ms(connection)
            queue.store.beat(connection, now, "worker")
            until = queue.database.lease_now_ms(connection) + 300_000
            connection_slots.take(
                connection, "default", (0,), 1, holder=1, now_ms=now, until_ms=until
            )
        queue.close()

    route = Route.to("default", transport_from_url("memory:"), connections=1)
    with forked(take):
        assert run_once(app.queue, [route]) == 0
    assert run_once(app.queue, [route]) == 5


@kinds(OWN_SQLITE)
def test_q6_what_waits_for_a_route_that_is_gone_is_found_by_any_clock(app, clock, memory):
    clock.advance(HOUR)
    put(app, note("a"))
    late = int(clock.now * 1000)
    clock.advance(-HOUR)
    change_delivery(app, "a@example.net", route="gone", changed=late, due=late)
    assert run_once(app.queue, memory) == 0
    clock.advance(11 * MINUTE)
    assert run_once(app.queue, memory) == 1


@kinds(OWN_SQLITE)
def test_q6_however_much_is_to_be_sent_later_all_of_it_is_looked_at(
    app, clock, memory, monkeypatch
):
    monkeypatch.setattr(times, "STEP", 3)
    at = datetime.fromtimestamp(clock.now + HOUR, UTC)
    for number in range(10):
        put(app, note(f"later{number}"), not_before=at)
    clock.advance(DAY)
    put(app, note("a"))
    clock.advance(-DAY)
    mender = times.Mender()
    mended = sum(in_write(app, lambda c, now: mender.step(c, now, 10_000)) for _ in range(8))
    assert mended == 1
    assert run_once(app.queue, memory) == 1


@kinds(*OWN_QUEUES)
def test_q6_clocks_that_differ_by_a_moment_change_nothing(app, clock, memory):
    clock.advance(2.0)
    put(app, note("a"))
    before = app.deliveries()
    clock.advance(-2.0)
    assert run_once(app.queue, memory) == 0
    assert app.deliveries() == before
    clock.advance(2.0)
    assert run_once(app.queue, memory) == 1
