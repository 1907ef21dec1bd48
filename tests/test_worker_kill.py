"""Workers that are killed at any moment: nothing is lost, and what may come twice says so."""

from __future__ import annotations

import random
import signal
import subprocess
import sys
import time
from collections import Counter
from pathlib import Path

import pytest
from queues import OWN_QUEUES, kinds

sa = pytest.importorskip("sqlalchemy")

from workers import PATIENCE, put_many, received  # noqa: E402

import txmail  # noqa: E402
from txmail.queue import schema  # noqa: E402

ROOT = Path(txmail.__file__).parents[1]
MESSAGES = 1000
KILLS = 8
#: Seconds; what a dead worker had is free for others after it.
LEASE = 2.0
#: At most so many are on their way or not yet written, by one worker on two connections.
IN_FLIGHT = 256

PROGRAM = f"""
import sys
from txmail import transport_from_url
from txmail.queue.queue import Queue
from txmail.worker import Worker, ledger
ledger.ROUND = 0.3
queue, transport = Queue(sys.argv[1]), transport_from_url(sys.argv[2])
worker = Worker(queue, transport, lease={LEASE})
print("begins", flush=True)
if sys.argv[3] == "once":
    worker.run_once()
else:
    worker.run()
"""


def start(url, server, how="forever"):
    process = subprocess.Popen(
        [sys.executable, "-c", PROGRAM, url, server.url, how], stdout=subprocess.PIPE, cwd=ROOT
    )
    assert process.stdout.readline() == b"begins\n"
    return process


def kill(process):
    process.send_signal(signal.SIGKILL)
    process.wait(PATIENCE)
    process.stdout.close()


def rows(app):
    d = schema.delivery.c
    with app.queue.database.read() as connection:
        return connection.execute(sa.select(d.recipient, d.state, d.duplicate)).all()


@kinds(*OWN_QUEUES)
def test_workers_that_are_killed_again_and_again_lose_nothing(make_queue, server, kind):
    app = make_queue(kind)
    wanted = put_many(app, "mail", MESSAGES)
    url = app.engine.url.render_as_string(hide_password=False)
    chosen = random.Random(4711)
    workers = [start(url, server) for _ in range(2)]
    kills = 0
    deadline = time.monotonic() + PATIENCE
    try:
        while kills < KILLS and time.monotonic() < deadline:
            before = len(server.messages)
            # Killed when it has done something, at a moment that nobody has chosen.
            while len(server.messages) < min(before + 20, MESSAGES) and time.monotonic() < deadline:
                time.sleep(chosen.random() / 50)
            victim = workers.pop(chosen.randrange(len(workers)))
            kill(victim)
            kills += 1
            workers.append(start(url, server))
            if len(server.messages) >= MESSAGES:
                break
        for worker in workers:
            kill(worker)
        kills += len(workers)
        while time.monotonic() < deadline:
            last = start(url, server, "once")
            workers.append(last)
            assert last.wait(PATIENCE) == 0
            # What dead workers had begun with is told when their leases end.
            if {state for _, state, _ in rows(app)} <= {"sent", "in_doubt"}:
                break
    finally:
        for worker in workers:
            kill(worker)
    assert kills > 2, "all was over before anybody was killed"
    copies = Counter(received(server))
    found = rows(app)
    assert sorted(recipient for recipient, _, _ in found) == sorted(wanted)
    for recipient, state, duplicate in found:
        if state == "sent" and not duplicate:
            assert copies[recipient] == 1, f"{recipient}: {copies[recipient]} copies, and no flag"
        elif state == "sent":
            assert copies[recipient] >= 1
        else:
            assert (state, duplicate) == ("in_doubt", 1), recipient
    assert sum(count - 1 for count in copies.values()) <= kills * IN_FLIGHT
    doubtful = [recipient for recipient, _, duplicate in found if duplicate]
    assert len(doubtful) <= kills * IN_FLIGHT
