"""A queue with much in it: what is claimed is read while others may write; nothing is lost."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta

import pytest
import transaction

sa = pytest.importorskip("sqlalchemy")

from txmail import Message, transport_from_url  # noqa: E402
from txmail.exceptions import QueueUnavailable  # noqa: E402
from txmail.mailer import Mailer  # noqa: E402
from txmail.queue.queue import Queue  # noqa: E402
from txmail.queue.schema import delivery, message  # noqa: E402
from txmail.worker import Worker, active, dispatcher  # noqa: E402

#: more than are claimed at once
MANY = 3 * active.BATCH


@pytest.fixture
def queue(tmp_path, clock):
    queue = Queue(f"sqlite:///{tmp_path}/mail.db", clock=clock)
    yield queue
    queue.close()


@pytest.fixture
def enqueue(queue):
    manager = transaction.TransactionManager()
    mailer = Mailer(transport_from_url("memory:"), queue=queue, transaction_manager=manager)

    def put(count, name="r", **options):
        with manager:
            for number in range(count):
                mailer.enqueue(
                    Message("News", [f"{name}{number}@example.com"], "x", sender="app@example.com"),
                    **options,
                )

    return put


@pytest.fixture
def worker(queue, server):
    return Worker(queue, transport_from_url(server.url))


def arrived(server):
    return sorted(m.recipients[0] for m in server.messages)


@pytest.fixture
def reading(monkeypatch):
    """Have something happen before each reading of more than half a batch."""
    read = dispatcher.read

    def arrange(before):
        def other(connection, found, token):
            if len(found) > active.BATCH // 2:
                before()
            return read(connection, found, token)

        monkeypatch.setattr(dispatcher, "read", other)

    return arrange


def test_each_of_many_is_sent_once(worker, enqueue, queue, server):
    enqueue(MANY)
    assert worker.run_once() == MANY
    assert queue.counts() == {"sent": MANY}
    assert arrived(server) == sorted(f"r{number}@example.com" for number in range(MANY))


def test_what_cannot_be_read_fails_and_the_others_are_sent(worker, enqueue, queue, server):
    enqueue(MANY)
    with queue.database.write() as connection:
        ids = connection.scalars(sa.select(delivery.c.id).order_by(delivery.c.id)).all()
        for number in (3, MANY // 2, MANY - 1):
            connection.execute(
                delivery.update().where(delivery.c.id == ids[number]).values(recipient="no address")
            )
        lost = sa.select(delivery.c.message).where(delivery.c.id == ids[10])
        connection.execute(message.delete().where(message.c.id.in_(lost.scalar_subquery())))
    worker.run_once()
    assert queue.counts() == {"sent": MANY - 4, "failed": 4}
    assert len(server.messages) == MANY - 4
    with queue.database.read() as connection:
        replies = connection.scalars(
            sa.select(delivery.c.reply).where(delivery.c.state == "failed")
        ).all()
    assert all(reply.startswith("it cannot be read: ") for reply in replies)


def test_what_could_not_be_read_for_a_moment_is_read_later(worker, enqueue, queue, server, reading):
    failures = [QueueUnavailable("gone"), QueueUnavailable("still gone")]

    def fail():
        if failures:
            raise failures.pop()

    enqueue(MANY)
    reading(fail)
    assert worker.run_once() == MANY
    assert failures == []
    assert queue.counts() == {"sent": MANY}
    assert len(server.messages) == MANY


def test_what_is_read_when_the_worker_is_told_to_stop_is_given_back(
    worker, enqueue, queue, server, reading
):
    enqueue(MANY)
    reading(worker.stop)
    worker.run()
    sent = len(server.messages)
    assert sent < MANY
    assert queue.counts() == {"ready": MANY - sent} | ({"sent": sent} if sent else {})


def test_what_has_expired_is_not_read_at_all(worker, enqueue, queue, server, clock):
    enqueue(MANY)
    enqueue(MANY, "late", expires=datetime.fromtimestamp(clock.now, UTC) + timedelta(days=1))
    clock.now += 2 * 86400
    worker.run_once()
    assert queue.counts() == {"sent": MANY, "expired": MANY}
    assert not any(recipient.startswith("late") for recipient in arrived(server))


def test_a_limit_counts_what_is_claimed_before_it_is_read(worker, enqueue, queue, server):
    enqueue(MANY)
    limited = Worker(queue, transport_from_url(server.url), limit=active.BATCH + 5)
    assert limited.run_once() == active.BATCH + 5
    assert queue.counts() == {"sent": active.BATCH + 5, "ready": MANY - active.BATCH - 5}
