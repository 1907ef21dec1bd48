"""A worker that was held up for too long, clocks that jump, forks: no harm comes of them."""

from __future__ import annotations

import os
import shutil
import signal
import subprocess
import sys
import threading
import time
from collections import Counter

import pytest
from commits import note
from forking import in_child
from queues import OWN_QUEUES, OWN_SQLITE, kinds

sa = pytest.importorskip("sqlalchemy")

from clocks import Clock  # noqa: E402
from workers import PATIENCE, another, change_delivery, put, put_many, received, wait_for, working  # noqa: E402

from txmail import transport_from_url  # noqa: E402
from txmail.queue import schema  # noqa: E402
from txmail.testing import Callback, then  # noqa: E402
from txmail.worker import Worker, dispatcher, run_once  # noqa: E402

LEASE = 300.0
JUMPS = [3600.0, -3600.0, 86400.0, -86400.0]


@pytest.fixture
def rounds(monkeypatch):
    """Everything that is due from time to time is done whenever a worker looks."""
    monkeypatch.setattr(dispatcher, "ROUND", 0.0)


class Gate:
    """Holds a server's answer until it is opened."""

    def __init__(self, server, verb, matching="", reply=None):
        self.reached, self._open = threading.Event(), threading.Event()
        steps = [Callback(self._hold)] + ([] if reply is None else [reply])
        server.on(verb, then(*steps), matching=matching)

    def _hold(self):
        self.reached.set()
        self._open.wait(PATIENCE)

    def wait(self):
        assert self.reached.wait(PATIENCE)

    def open(self):
        self._open.set()


# -- held past the lease


@pytest.mark.representative(every=12)
@pytest.mark.parametrize("verb", ["MAIL", "RCPT", "DATA"])
@pytest.mark.parametrize("looks", [True, False], ids=["keeper first", "lane first"])
@kinds(*OWN_QUEUES)
def test_who_was_held_past_his_lease_sends_nothing_any_more(
    app, server, smtp, clock, rounds, verb, looks
):
    """Another has it by then, and sends it: the first one's final dot must not leave."""
    wanted = put_many(app, "n", 5)
    gate = Gate(server, verb)
    own = Clock(1000.0)
    others = transport_from_url("memory:")
    queue = another(app)

    def advance(seconds):
        own.advance(seconds)
        clock.advance(seconds)

    with working(app.queue, smtp, clock=own, lease=LEASE) as worker:
        gate.wait()
        advance(LEASE + 1)
        if looks:
            worker.wait_rounds(3)
        run_once(queue, others, clock=own)
        advance(LEASE * 2)
        run_once(queue, others, clock=own)
        gate.open()
        worker.wait_rounds(3)
    for _ in range(3):  # what is in doubt, or was given back
        advance(LEASE * 4)
        run_once(queue, others, clock=own)
    queue.close()
    assert app.queue.counts() == {"sent": 5}
    arrived = received(server) + [r for e in others.envelopes for r in e.recipients]
    assert sorted(arrived) == sorted(wanted)


@kinds(*OWN_QUEUES)
def test_a_result_that_comes_after_the_lease_went_to_another_is_not_written(
    app, server, smtp, clock, rounds
):
    """The dot had left in time; what is written is the other's, and it says possible duplicate."""
    put(app, note("a"))
    gate = Gate(server, ".")
    own = Clock(1000.0)
    others = transport_from_url("memory:")
    queue = another(app)
    with working(app.queue, smtp, clock=own, lease=LEASE) as worker:
        gate.wait()
        own.advance(LEASE + 1)
        worker.wait_rounds()  # what had begun before would renew it
        clock.advance(LEASE + 1)
        run_once(queue, others)
        ((before,),) = [app.deliveries().values()]
        assert (before.state, before.duplicate) == ("in_doubt", 1)
        gate.open()
        server.wait_for(lambda: len(server.messages) == 1)
        worker.wait_rounds(5)
        ((after,),) = [app.deliveries().values()]
        assert after == before
        assert len(app.attempts("a@example.net")) == 1
    queue.close()


@kinds(OWN_SQLITE)
def test_a_result_that_comes_late_is_written_if_nobody_else_has_it(app, server, smtp, clock):
    put(app, note("a"))
    gate = Gate(server, ".")
    own = Clock(1000.0)
    with working(app.queue, smtp, clock=own, lease=LEASE) as worker:
        gate.wait()
        own.advance(LEASE + 1)
        worker.wait_rounds()
        gate.open()
        server.wait_for(lambda: len(server.messages) == 1)
        wait_for(lambda: app.states() == {"a@example.net": "sent"}, "it is not written")
    assert app.deliveries()["a@example.net"].duplicate == 0


@kinds(OWN_SQLITE)
def test_after_a_lost_lease_a_worker_goes_on_with_what_it_claims_anew(
    app, server, smtp, clock, rounds
):
    wanted = put_many(app, "n", 40)
    gate = Gate(server, "RCPT")
    own = Clock(1000.0)
    with working(app.queue, smtp, clock=own, lease=LEASE) as worker:
        gate.wait()
        own.advance(LEASE + 1)
        clock.advance(LEASE + 1)
        worker.wait_rounds(3)
        gate.open()
        clock.advance(LEASE * 2)
        wait_for(lambda: app.queue.counts() == {"sent": 40}, "it does not go on")
    assert sorted(received(server)) == sorted(wanted)


@kinds(OWN_SQLITE)
def test_nothing_is_left_on_its_way_for_ever_by_a_lane_that_was_held(
    app, server, smtp, clock, rounds
):
    """While the worker lives and has its lease, nobody else takes what it has lost sight of."""
    put_many(app, "n", 20)
    gate = Gate(server, "RCPT")
    own = Clock(1000.0)
    with working(app.queue, smtp, clock=own, lease=LEASE) as worker:
        gate.wait()
        # Only the lane notices: the keeper does not look until it is over.
        own.advance(LEASE + 1)
        gate.open()
        server.wait_for(lambda: all(c.closed for c in server.connections))
        own.now = 1000.0
        worker.wait_rounds(3)
        wait_for(lambda: "sending" not in app.queue.counts(), "something is on its way for ever")
    assert set(app.queue.counts()) <= {"ready", "in_doubt", "sent"}


@kinds(OWN_SQLITE)
def test_leases_are_renewed_as_long_as_a_worker_lives(app, server, smtp, clock, rounds):
    put_many(app, "n", 10)
    gate = Gate(server, ".")
    own = Clock(1000.0)
    others = transport_from_url("memory:")
    queue = another(app)
    with working(app.queue, smtp, clock=own, lease=LEASE) as worker:
        gate.wait()
        for _ in range(10):
            own.advance(LEASE / 2)
            clock.advance(LEASE / 2)
            worker.wait_rounds(2)
            assert run_once(queue, others, clock=own) == 0
        gate.open()
        wait_for(lambda: app.queue.counts() == {"sent": 10}, "it does not go on")
    queue.close()
    assert others.envelopes == []
    assert len(server.messages) == 10


WORKER = """
import sys
from txmail import transport_from_url
from txmail.queue.queue import Queue
from txmail.worker import Worker
queue, transport = Queue(sys.argv[1]), transport_from_url(sys.argv[2])
worker = Worker(queue, transport, lease=float(sys.argv[3]))
import threading
threading.Thread(target=lambda: (sys.stdin.readline(), worker.stop()), daemon=True).start()
print(worker.run())
"""


@pytest.fixture
def child(server):
    """Start a worker in a process of its own."""
    started = []

    def start(app, *, lease=300.0, wrapper=(), environment=None):
        url = app.engine.url.render_as_string(hide_password=False)
        child = subprocess.Popen(
            [*wrapper, sys.executable, "-c", WORKER, url, server.url, str(lease)],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
            env=environment,
        )
        started.append(child)
        return child

    yield start
    for child in started:
        if child.poll() is None:
            child.send_signal(signal.SIGCONT)
            child.kill()
        child.communicate()


def stop_between_transactions(process, app):
    """Stop it while it holds no lock: with one, everybody has to wait for it to go on."""
    busy = "SELECT 1 FROM pg_stat_activity WHERE state = 'idle in transaction'"
    while True:
        process.send_signal(signal.SIGSTOP)
        with app.engine.connect() as connection:
            try:
                if app.kind == OWN_SQLITE:
                    connection.exec_driver_sql("PRAGMA busy_timeout = 100")
                    connection.exec_driver_sql("BEGIN IMMEDIATE")
                    return
                if not connection.exec_driver_sql(busy).first():
                    return
            except sa.exc.OperationalError:
                pass
        process.send_signal(signal.SIGCONT)


@pytest.mark.representative(every=2)
@kinds(*OWN_QUEUES)
def test_a_process_that_was_stopped_past_its_lease_sends_and_writes_nothing(
    kind, make_queue, server, child, rounds
):
    """By the real clocks, and SIGSTOP."""
    app = make_queue(kind)
    wanted = put_many(app, "n", 80)
    gate = Gate(server, "RCPT")
    process = child(app, lease=2.0)
    gate.wait()
    stop_between_transactions(process, app)
    others = transport_from_url("memory:")
    d = schema.delivery.c
    with working(app.queue, others) as worker:
        del worker
        # What it had claimed and not begun is the other's, what was begun is in doubt.
        wait_for(
            lambda: not app.read(sa.select(d.id).where(d.state.in_(["sending", "ready"]))),
            "nobody takes it over",
        )
        doubt = app.read(sa.select(d.recipient).where(d.state == "in_doubt"))
        assert "n0@example.net" in [row.recipient for row in doubt]
        before = app.deliveries()
        process.send_signal(signal.SIGCONT)
        gate.open()
        server.wait_for(lambda: all(c.closed for c in server.connections))
        process.stdin.write("stop\n")
        process.stdin.flush()
        said, complaint = process.communicate(timeout=PATIENCE)
    assert process.returncode == 0, complaint
    assert received(server) == []
    assert app.deliveries() == before
    taken = [r for e in others.envelopes for r in e.recipients]
    assert sorted(taken + [row.recipient for row in doubt]) == sorted(wanted)
    assert len(said.split()) == 1


# -- clocks that jump


@pytest.mark.representative(every=4)
@pytest.mark.parametrize("jump", JUMPS)
@kinds(*OWN_QUEUES)
def test_a_jump_of_the_stores_clock_loses_nothing_and_sends_nothing_twice(
    app, server, smtp, clock, rounds, jump
):
    wanted = put_many(app, "before", 80)
    gate = Gate(server, ".")
    with working(app.queue, smtp) as worker:
        gate.wait()
        clock.advance(jump)
        worker.wait_rounds(3)
        gate.open()
        wanted += put_many(app, "after", 20)
        worker.wait_rounds(3)
        if jump < 0:
            clock.advance(-jump)  # as time goes by
        wait_for(lambda: app.queue.counts() == {"sent": 100}, "it does not go on")
    assert Counter(received(server)) == dict.fromkeys(wanted, 1)
    assert not any(row.duplicate for row in app.deliveries().values())


@pytest.mark.parametrize("jump", JUMPS)
@kinds(OWN_SQLITE)
def test_a_jump_between_two_workers_may_make_duplicates_and_each_is_flagged(
    app, server, smtp, clock, rounds, jump
):
    wanted = put_many(app, "n", 20)
    gate = Gate(server, ".")
    others = transport_from_url("memory:")
    queue = another(app)
    with working(app.queue, smtp) as worker:
        gate.wait()
        clock.advance(jump)
        run_once(queue, others)
        worker.wait_rounds(3)
        gate.open()
        worker.wait_rounds(3)
        if jump < 0:
            clock.advance(-jump)
        for _ in range(2):
            run_once(queue, others)
            clock.advance(3600)
        wait_for(lambda: app.queue.counts() == {"sent": 20}, "it does not go on")
    queue.close()
    arrived = Counter(received(server) + [r for e in others.envelopes for r in e.recipients])
    assert sorted(arrived) == sorted(wanted)
    flagged = {r for r, row in app.deliveries().items() if row.duplicate}
    assert {r for r, n in arrived.items() if n > 1} <= flagged


@pytest.mark.parametrize("jump", JUMPS)
@kinds(OWN_SQLITE)
def test_what_was_claimed_by_a_worker_that_died_comes_back_whatever_the_clock_did(app, clock, jump):
    from workers import claim

    wanted = put_many(app, "n", 10)
    claim(app, 10, lease=LEASE)
    clock.advance(jump)
    memory = transport_from_url("memory:")
    run_once(app.queue, memory)
    clock.advance(abs(jump) + LEASE + 1)
    run_once(app.queue, memory)
    assert [r for e in memory.envelopes for r in e.recipients] == wanted
    assert app.queue.counts() == {"sent": 10}


@pytest.mark.sweep
@pytest.mark.parametrize("offset", ["+1h", "-1h", "+1d", "-1d"])
@kinds(OWN_SQLITE)
def test_a_worker_with_another_time_than_the_application_sends_all_of_it_once(
    kind, make_queue, server, child, offset
):
    """By libfaketime: SQLite has no clock but that of the process."""
    faketime = shutil.which("faketime")
    if faketime is None:
        pytest.skip("faketime is not installed")
    app = make_queue(kind)
    wanted = put_many(app, "n", 100)
    environment = {**os.environ, "FAKETIME_DONT_FAKE_MONOTONIC": "1"}
    process = child(app, wrapper=(faketime, "-f", offset), environment=environment)
    if offset.startswith("-"):
        # For that worker it is not due yet, and for us it is.
        memory = transport_from_url("memory:")
        assert run_once(app.queue, memory) == 100
        arrived = [r for e in memory.envelopes for r in e.recipients]
    else:
        server.wait_for(lambda: len(server.messages) >= 100)
        arrived = received(server)
    process.stdin.write("stop\n")
    process.stdin.flush()
    _, complaint = process.communicate(timeout=PATIENCE)
    assert process.returncode == 0, complaint
    assert sorted(arrived) == sorted(wanted)
    assert app.queue.counts() == {"sent": 100}
    assert len(received(server)) in (0, 100)


# -- forks


@kinds(OWN_SQLITE)
def test_a_child_that_was_forked_in_the_wrong_moment_can_enqueue(kind, make_queue, server, smtp):
    """The worker's lock is held by a thread that the child does not have."""
    app = make_queue(kind)
    with working(app.queue, smtp) as worker:
        put(app, note("first"))
        server.wait_for(lambda: len(server.messages) == 1)
        worker.wait_rounds()
        with worker._ledger.changed:
            assert in_child(lambda: app.queue.host.notifier.wake()) == "None"
            assert in_child(worker.stop) == "None"
        in_child(lambda: put(app, note("second")))
        server.wait_for(lambda: len(server.messages) == 2)
    assert received(server) == ["first@example.net", "second@example.net"]


@kinds(OWN_SQLITE)
def test_a_child_that_is_forked_while_mail_is_sent_sends_none_of_it(kind, make_queue, server, smtp):
    app = make_queue(kind)
    wanted = put_many(app, "n", 60)
    gate = Gate(server, ".", matching="<n10@example.com>")
    with working(app.queue, smtp) as worker:
        gate.wait()
        assert in_child(lambda: worker.thread.is_alive()) == "False"
        gate.open()
        wait_for(lambda: app.queue.counts() == {"sent": 60}, "it does not go on")
    assert Counter(received(server)) == dict.fromkeys(wanted, 1)


@kinds(OWN_SQLITE)
def test_a_child_can_have_a_worker_of_its_own(kind, make_queue, server):
    app = make_queue(kind)
    put_many(app, "n", 20)

    def work():
        transport = transport_from_url(server.url)
        return run_once(app.queue, transport)

    assert in_child(work) == "20"
    assert len(server.messages) == 20
    assert app.queue.counts() == {"sent": 20}


# -- small leases, and stopping


@pytest.mark.parametrize("lease", [0.5, 1.0, 10.0, 300.0])
@kinds(OWN_SQLITE)
def test_a_short_lease_is_long_enough_to_send(kind, make_queue, server, smtp, lease):
    app = make_queue(kind)
    put_many(app, "n", 20)
    assert run_once(app.queue, smtp, lease=lease) == 20
    assert len(server.messages) == 20


@kinds(OWN_SQLITE)
def test_a_worker_that_stops_waits_without_turning_round_and_round(
    kind, make_queue, server, smtp, monkeypatch
):
    app = make_queue(kind)
    monkeypatch.setattr(dispatcher, "POLL", 0.0)
    put_many(app, "n", 10)
    gate = Gate(server, ".")
    worker = Worker(app.queue, smtp)
    cycles, cycle = [], worker._ledger.cycle
    worker._ledger.cycle = lambda: (cycles.append(1), cycle())
    thread = threading.Thread(target=worker.run)
    thread.start()
    gate.wait()
    worker.stop()
    wait_for(lambda: app.queue.counts().get("ready", 0) >= 5, "it gives nothing back")
    count = len(cycles)
    time.sleep(0.3)
    assert len(cycles) - count < 10
    gate.open()
    thread.join(PATIENCE)
    assert not thread.is_alive()
    counts = app.queue.counts()
    assert counts == {"sent": len(server.messages), "ready": 10 - len(server.messages)}


@kinds(OWN_SQLITE)
def test_a_delivery_that_a_person_has_taken_away_is_not_written_over(app, server, smtp, rounds):
    """A token that is gone is gone, whoever has removed it."""
    put(app, note("a"))
    gate = Gate(server, ".")
    with working(app.queue, smtp) as worker:
        gate.wait()
        change_delivery(app, "a@example.net", state="in_doubt", token=None, lease=None, due=None)
        gate.open()
        server.wait_for(lambda: len(server.messages) == 1)
        worker.wait_rounds(3)
    row = app.deliveries()["a@example.net"]
    assert (row.state, row.attempts) == ("in_doubt", 0)
