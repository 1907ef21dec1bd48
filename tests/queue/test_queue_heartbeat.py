"""A process that has not come to its first heartbeat yet is not taken for dead."""

from __future__ import annotations

import pytest

from txmail.queue.queue import Queue
from txmail.queue.schema import batch
from txmail.queue.states import BatchState

#: Milliseconds since 1970 at which the batch is written.
CREATED = 1_800_000_000_000


@pytest.fixture
def queue_at(tmp_path):
    """The queue at a time in seconds after the batch was written."""
    made = []

    def queue_at(seconds):
        queue = Queue(f"sqlite:///{tmp_path}/mail.db", clock=lambda: CREATED / 1000 + seconds)
        made.append(queue)
        return queue

    with queue_at(0).database.write() as connection:
        made[0].store.open_batch(connection, 7, BatchState.SENDING, "{}", CREATED)
    yield queue_at
    for queue in made:
        queue.close()


def give_to_another(queue):
    """Have the batch be that of a process which has never said anything."""
    with queue.database.write() as connection:
        connection.execute(batch.update().values(process="another"))


def resolved(queue):
    return [str(decision.state) for decision in queue.resolve()]


@pytest.mark.parametrize("seconds", [0, 60, 1_000_000])
def test_a_process_knows_that_it_lives(queue_at, seconds):
    assert resolved(queue_at(seconds)) == []


def test_others_take_its_batch_for_a_sign_of_life(queue_at):
    queue = queue_at(290)
    give_to_another(queue)
    assert resolved(queue) == []


def test_but_not_for_ever(queue_at):
    queue = queue_at(310)
    give_to_another(queue)
    assert resolved(queue) == ["published"]


def test_a_batch_that_was_given_up_is_resolved_at_once(queue_at):
    queue = queue_at(0)
    queue.host.abandon(7, [])
    assert resolved(queue) == ["published"]
