"""A worker that waits: for nothing but what there is to do, and it is not held up by accidents."""

from __future__ import annotations

import multiprocessing
import time

import pytest
from commits import note
from queues import OWN_QUEUES, OWN_SQLITE, kinds

pytest.importorskip("sqlalchemy")

from clocks import Clock
from workers import put, put_many, received

from txmail import transport_from_url
from txmail.queue.queue import Queue
from txmail.worker import Worker, run_once

LATER = 100.0


@pytest.fixture
def idle(app):
    """A worker whose next round and look are far off."""

    def make(**options):
        worker = Worker(app.queue, transport_from_url("memory:"), **options)
        ledger = worker._ledger
        ledger._next_round = ledger._next_look = time.monotonic() + LATER
        return ledger

    return make


@kinds(OWN_SQLITE)
def test_what_is_pending_keeps_nobody_awake(idle, kind):
    ledger = idle()
    ledger._lanes[0].pending.append(object())
    assert ledger._next_time(None) > time.monotonic() + LATER / 2


@kinds(OWN_SQLITE)
def test_what_a_rate_holds_back_is_looked_at_when_its_time_comes(idle, kind):
    ledger = idle()
    lane = ledger._lanes[0]
    lane.pending.append(object())
    lane.allowed = time.monotonic() + LATER / 10
    assert ledger._next_time(None) == lane.allowed


@kinds(OWN_SQLITE)
def test_who_may_claim_nothing_more_does_not_look_for_more(idle, kind):
    ledger = idle(limit=1)
    ledger._left, ledger._next_look = 0, 0.0
    assert ledger._next_time(None) > time.monotonic() + LATER / 2


@kinds(*OWN_QUEUES)
def test_what_an_accident_leaves_without_a_result_is_in_doubt_when_its_lease_ends(app, clock):
    wanted = put_many(app, "n", 5)
    worker = Worker(app.queue, transport_from_url("memory:"), lease=60.0, reserve=False)
    record, seen = worker._ledger.record, []

    def failing(results):
        seen.extend(results)
        if len(seen) == 2:
            raise MemoryError
        record(results)

    worker._ledger.record = failing
    worker.run_once()
    states = app.states()
    assert [states[r] for r in wanted].count("sent") == 1
    assert not worker._ledger._held, "nobody renews what will never have a result"
    clock.advance(61)
    run_once(app.queue, transport_from_url("memory:"))
    rows = app.deliveries()
    assert sorted({row.state for row in rows.values()}) == ["in_doubt", "sent"]
    assert all(row.duplicate for row in rows.values() if row.state == "in_doubt")


@kinds(OWN_SQLITE)
def test_who_finds_the_lease_over_renews_it_before_anything_is_claimed(app, server):
    put(app, note("a"))
    own = Clock(1000.0)
    transport = transport_from_url(server.url)
    worker = Worker(app.queue, transport, clock=own, lease=60.0)
    worker._ledger.start()
    worker._ledger.cycle()  # a round, and a claim
    own.advance(3600.0)
    worker._ledger.cycle()
    assert not worker._ledger._held
    assert app.states() == {"a@example.net": "ready"}
    assert worker._ledger.deadline > own()
    run_once(app.queue, transport)
    assert received(server) == ["a@example.net"]
    assert not app.deliveries()["a@example.net"].duplicate
    transport.close()


def _work_in_child(worker, told):
    told.put(worker.run_once())


@kinds(OWN_SQLITE)
def test_a_worker_that_was_made_before_a_fork_works_in_the_child(app, server):
    put_many(app, "n", 10)
    url = app.engine.url.render_as_string(hide_password=False)
    queue, transport = Queue(url, clock=app.queue.database._clock), transport_from_url(server.url)
    worker = Worker(queue, transport)
    context = multiprocessing.get_context("fork")
    told = context.SimpleQueue()
    child = context.Process(target=_work_in_child, args=(worker, told))
    child.start()
    child.join(30)
    assert child.exitcode == 0
    assert told.get() == 10
    assert len(received(server)) == 10
    queue.close()
    transport.close()
