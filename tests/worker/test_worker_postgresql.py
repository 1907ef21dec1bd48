"""A PostgreSQL that is restarted under workers and applications, and ends their connections."""

from __future__ import annotations

import random
import signal
import threading
import time

import pytest
from commits import note
from queues import OWN_POSTGRESQL

sa = pytest.importorskip("sqlalchemy")

import transaction  # noqa: E402
from hosts import (  # noqa: E402
    IMPATIENT,
    Claims,
    application,
    check_copies,
    cluster,
    settled,
)
from workers import put, put_many, received, wait_for, working  # noqa: E402

from txmail import Mailer, transport_from_url  # noqa: E402
from txmail.exceptions import QueueUnavailable  # noqa: E402
from txmail.queue.sql import claim  # noqa: E402
from txmail.testing import Callback, then  # noqa: E402

MESSAGES = 1500
#: A worker that is told of mail by nobody does not look for it within any test.
DEAF = "dispatcher.POLL = 10_000.0"


@pytest.fixture(scope="module")
def postgresql():
    with cluster() as own:
        yield own


@pytest.fixture
def app(postgresql, server, tm):
    with application(postgresql.new_database(), server, tm) as app:
        yield app


def url_of(app):
    return app.engine.url.render_as_string(hide_password=False)


def slow_down(server, seconds):
    """So that there is something to interrupt: so long for each message, on each connection."""
    server.on("MAIL", then(Callback(lambda: time.sleep(seconds))), times=None)


@pytest.mark.sweep
def test_workers_go_on_by_themselves_when_the_server_was_restarted(
    postgresql, app, server, workers
):
    slow_down(server, 0.002)
    wanted = put_many(app, "mail", MESSAGES)
    for _ in range(2):
        workers.start(url_of(app), server.url, options="{'lease': 20.0}")
    chosen = random.Random(4711)
    for number, mode in enumerate(["immediate", "fast", "immediate", "fast"]):
        server.wait_for(lambda n=number: len(server.messages) >= 50 + 300 * n, timeout=60)
        time.sleep(chosen.random() / 10)
        postgresql.restart(mode)
    assert len(server.messages) < MESSAGES, "all was over before the last restart"
    wait_for(settled(app), "they do not go on")
    workers.check()
    workers.stop()
    check_copies(app, wanted, server)


@pytest.mark.sweep
def test_workers_go_on_by_themselves_when_their_connections_are_ended(
    postgresql, app, server, workers
):
    slow_down(server, 0.002)
    wanted = put_many(app, "mail", MESSAGES)
    for _ in range(2):
        workers.start(url_of(app), server.url, options="{'lease': 20.0}")
    chosen = random.Random(4711)
    ended = 0
    while len(server.messages) < MESSAGES - 100 and ended < 40:
        for pid in postgresql.backends():
            if chosen.random() < 0.3:
                postgresql.end_backend(pid)
                ended += 1
        before = len(server.messages)
        server.wait_for(lambda n=before: len(server.messages) >= min(n + 10, MESSAGES))
        time.sleep(chosen.random() / 50)
    assert ended >= 10
    wait_for(settled(app), "they do not go on")
    workers.check()
    workers.stop()
    check_copies(app, wanted, server)


@pytest.mark.sweep
@pytest.mark.parametrize("mode", ["immediate", "fast"])
def test_a_worker_is_told_of_mail_again_after_a_restart(postgresql, app, server, workers, mode):
    workers.start(url_of(app), server.url, setup=DEAF)
    wait_for(lambda: postgresql.listening() == 1, "it does not listen")
    put(app, note("first"))
    server.wait_for(lambda: received(server) == ["first@example.net"])
    postgresql.restart(mode)
    wait_for(lambda: postgresql.listening() == 1, "it listens no more")
    put(app, note("second"))
    server.wait_for(lambda: received(server) == ["first@example.net", "second@example.net"])


@pytest.mark.sweep
def test_mail_that_came_while_nobody_listened_is_found(postgresql, app, server, workers):
    """What is told while the connection is broken, nobody hears."""
    workers.start(url_of(app), server.url, setup=f"{DEAF}; listener.AGAIN = 3.0")
    wait_for(lambda: postgresql.listening() == 1, "it does not listen")
    put(app, note("first"))
    server.wait_for(lambda: received(server) == ["first@example.net"])
    (pid,) = postgresql.backends("query LIKE 'LISTEN%'")
    postgresql.end_backend(pid)
    wait_for(lambda: postgresql.listening() == 0, "it has not ended")
    put(app, note("second"))
    server.wait_for(lambda: received(server) == ["first@example.net", "second@example.net"])


@pytest.mark.sweep
def test_what_applications_have_committed_during_restarts_arrives_and_nothing_else(
    postgresql, app, server, workers
):
    committed: list[str] = []
    refused: list[str] = []
    said: set[bool] = set()
    ends = threading.Event()

    def work(name):
        manager = transaction.TransactionManager()
        mailer = Mailer(transport_from_url("memory:"), queue=app.queue, transaction_manager=manager)
        number = 0
        while not ends.is_set():
            number += 1
            envelope = note(f"{name}{number}")
            try:
                with manager:
                    mailer.enqueue(envelope)
            except QueueUnavailable as error:
                said.add(error.temporary)
                manager.abort()
                refused.append(envelope.recipients[0])
                ends.wait(0.05)
            else:
                committed.append(envelope.recipients[0])
        mailer.close()

    for _ in range(2):
        workers.start(url_of(app), server.url, options="{'lease': 20.0}")
    threads = [threading.Thread(target=work, args=(name,)) for name in "abc"]
    for thread in threads:
        thread.start()
    try:
        for number, mode in enumerate(["immediate", "fast", "immediate"]):
            wait_for(lambda n=number: len(committed) > 100 * (n + 1), "nobody commits any more")
            postgresql.restart(mode)
    finally:
        ends.set()
        for thread in threads:
            thread.join(60)
    assert not any(thread.is_alive() for thread in threads)
    assert refused, "no restart was noticed by anybody"
    assert said == {True}, "it is not said that another try may do better"
    assert app.queue.flush(30)
    app.queue.resolve()
    wait_for(lambda: len(app.deliveries()) == len(committed), "something was published, or not")
    wait_for(settled(app), "they do not go on")
    workers.stop()
    check_copies(app, committed, server)


def test_a_claim_of_which_nobody_knows_whether_it_was_committed_delays_and_doubts_nothing(
    make_queue, server, monkeypatch
):
    """The connection ends after COMMIT: what was claimed waits for no lease to end."""
    app = make_queue(OWN_POSTGRESQL, door=True)
    take, taken = claim.take, []

    def take_and_lose(connection, **options):
        rows = take(connection, **options)
        taken.append(len(rows))
        if sum(taken) == 20 and rows:
            app.door.swallow = b"COMMIT"
        return rows

    with working(app.queue, transport_from_url("memory:")) as worker:
        worker.wait_rounds()
        assert app.queue.flush(10)  # nobody else commits in the next moment
        taken.clear()
        monkeypatch.setattr(claim, "take", take_and_lose)
        put_many(app, "n", 20)
        # Not through the door: it may shut behind whoever comes next.
        states = lambda: {row.state for row in app.deliveries().values()}  # noqa: E731
        wait_for(lambda: states() == {"sent"}, "it waits for the lease")
    assert sum(taken) == 40, "no claim was lost"
    assert not any(row.duplicate for row in app.deliveries().values())


@pytest.mark.sweep
def test_who_was_stopped_in_the_middle_of_a_claim_keeps_nothing_locked(
    postgresql, app, server, workers
):
    """Its rows are locked, until the server ends what has been idle for too long."""
    audit = Claims(app)
    wanted = put_many(app, "n", 80)
    with audit.held() as somebody_waits:
        stopped = workers.start(url_of(app), server.url, setup=IMPATIENT)
        wait_for(somebody_waits, "it does not claim")
        stopped.send_signal(signal.SIGSTOP)
    workers.start(url_of(app), server.url, setup=IMPATIENT)
    server.wait_for(lambda: len(server.messages) == 80, timeout=30)
    stopped.send_signal(signal.SIGCONT)
    wait_for(settled(app), "they do not go on")
    wanted += put_many(app, "more", 200)
    server.wait_for(lambda: len(server.messages) == 280)
    workers.stop()
    audit.check()
    check_copies(app, wanted, server)
    assert not any(row.duplicate for row in app.deliveries().values())
