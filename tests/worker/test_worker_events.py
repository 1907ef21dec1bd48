"""What workers tell their subscribers, and the log."""

from __future__ import annotations

import logging

import pytest
import transaction
from clocks import Clock

sa = pytest.importorskip("sqlalchemy")

from txmail import transport_from_url  # noqa: E402
from txmail.events import (  # noqa: E402
    DeliverySettled,
    Events,
    ResultsRefused,
    RouteFailed,
    RouteRecovered,
    RouteStopped,
    WorkerStarted,
    WorkerStopped,
)
from txmail.mailer import Mailer  # noqa: E402
from txmail.queue.schema import delivery  # noqa: E402
from txmail.testing import Callback  # noqa: E402
from txmail.worker import Worker, start_worker  # noqa: E402

BODY = "what only Ann may read"


@pytest.fixture
def mailer(queue, server):
    mailer = Mailer(
        transport_from_url(server.url),
        queue=queue,
        transaction_manager=transaction.TransactionManager(),
    )
    yield mailer
    mailer.close()


@pytest.fixture
def work(queue, mailer, told):
    """Have a worker send what is due."""

    def once(**options):
        events = Events()
        events.subscribe(told.append)
        worker = Worker(queue, mailer.transport, events=events, **options)
        worker.run_once()
        return worker

    return once


def only(told, kind):
    return [event for event in told if type(event) is kind]


def test_each_recipient_is_told_with_its_state_and_outcome(work, enqueue, told, server, queue):
    enqueue("a@example.com", "b@example.com", "c@example.com")
    server.refuse("b@example.com")
    server.refuse("c@example.com", "450 4.2.0 greylisted")
    work()
    settled = {event.outcome.recipient: event for event in only(told, DeliverySettled)}
    assert {name: event.state for name, event in settled.items()} == {
        "a@example.com": "sent",
        "b@example.com": "failed",
        "c@example.com": "deferred",
    }
    sent, deferred = settled["a@example.com"], settled["c@example.com"]
    assert (sent.queue, sent.route, sent.attempts, sent.again) == (queue.name, "default", 1, None)
    assert sent.outcome.reply.code == 250
    assert sent.age >= 0
    assert 300 <= deferred.again <= 375
    assert settled["b@example.com"].again is None


def test_a_worker_says_when_it_begins_and_ends(work, enqueue, told, queue):
    enqueue("a@example.com")
    work()
    assert told[0] == WorkerStarted(queue.name)
    assert told[-1] == WorkerStopped(queue.name, 1, True)


def test_what_is_told_is_written(queue, mailer, enqueue):
    found = []

    def look(event):
        if isinstance(event, DeliverySettled):
            with queue.database.read() as connection:
                found.append(connection.scalar(sa.select(delivery.c.state)))

    enqueue("a@example.com")
    events = Events()
    events.subscribe(look)
    Worker(queue, mailer.transport, events=events).run_once()
    assert found == ["sent"]


def test_a_subscriber_that_raises_loses_no_result(queue, mailer, enqueue, caplog):
    def broken(event):
        raise RuntimeError("broken subscriber")

    enqueue("a@example.com", "b@example.com")
    events = Events()
    events.subscribe(broken)
    Worker(queue, mailer.transport, events=events).run_once()
    assert queue.counts() == {"sent": 2}
    assert "a subscriber failed" in caplog.text


def test_a_route_that_fails_is_told_once_and_costs_no_try(work, enqueue, told, server, queue):
    enqueue("a@example.com", "b@example.com", "c@example.com")
    server.on("connect", "421 4.3.2 later", times=None)
    work()
    (failed,) = only(told, RouteFailed)
    assert failed.route == "default"
    assert "421 4.3.2 later" in failed.reason
    assert failed.pause > 0
    assert {event.attempts for event in only(told, DeliverySettled)} <= {0}
    assert queue.counts() == {"ready": 3}


def test_a_route_that_needs_a_person_is_told_as_stopped(work, enqueue, told, server):
    enqueue("a@example.com")
    server.on("connect", "554 5.7.1 not you", times=None)
    work()
    (stopped,) = only(told, RouteStopped)
    assert "554 5.7.1 not you" in stopped.reason
    assert only(told, RouteFailed) == []


def test_a_route_that_works_again_is_told(queue, mailer, enqueue, server, told):
    wall, boot = Clock(), Clock()
    queue.database._clock = wall
    events = Events()
    events.subscribe(told.append)
    enqueue("a@example.com")
    server.on("connect", "421 4.3.2 later")
    worker = Worker(queue, mailer.transport, events=events, clock=boot)
    recovered = []

    def later(event):
        if isinstance(event, RouteRecovered):
            recovered.append(event)
            worker.stop()
        else:  # that the route has failed, and that its mail waits
            wall.now += 60
            boot.now += 60

    events.subscribe(later)
    worker.run()
    assert recovered == [RouteRecovered("default")]
    assert queue.counts() == {"sent": 1}


def test_results_that_came_after_the_lease_are_told(work, enqueue, told, server, queue):
    def steal():
        with queue.database.write() as connection:
            connection.execute(delivery.update().values(token=1))

    enqueue("a@example.com")
    server.on(".", Callback(steal))
    work()
    assert only(told, ResultsRefused) == [ResultsRefused(queue.name, 1)]


def test_the_log_has_a_line_for_each_and_no_text_of_a_message(work, enqueue, server, caplog):
    caplog.set_level(logging.INFO, logger="txmail")
    enqueue("a@example.com", "b@example.com")
    server.refuse("b@example.com", "550 5.1.1 no \x1b[2Jsuch user")
    work()
    lines = [r for r in caplog.records if " via default to " in r.getMessage()]
    assert {r.levelname: r.getMessage().split()[0] for r in lines} == {
        "INFO": "sent",
        "WARNING": "failed",
    }
    assert all(r.getMessage().isprintable() for r in caplog.records)
    assert BODY not in caplog.text


def test_a_worker_of_the_application_tells_the_subscribers_of_its_mailer(mailer, enqueue, server):
    told = []
    mailer.events.subscribe(told.append)
    running = start_worker(mailer)
    try:
        enqueue("a@example.com")
        server.wait_for(lambda: server.messages, 30)
    finally:
        running.stop()
    assert not running.running
    assert [event.state for event in only(told, DeliverySettled)] == ["sent"]
