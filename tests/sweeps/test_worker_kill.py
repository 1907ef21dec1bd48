"""Workers that are killed or told to end at any moment: nothing is lost, and a duplicate says so.

Four workers, and every half second one of them is killed, for 10 seconds and 350 messages; with
``TXMAIL_FULL_SWEEP=1`` for a minute and 2,000.
"""

from __future__ import annotations

import logging
import os
import random
import signal
import subprocess
import sys
import threading
import time
from collections import Counter
from contextlib import ExitStack, closing, contextmanager, suppress
from pathlib import Path

import pytest
from commits import note
from queues import OWN_POSTGRESQL, OWN_QUEUES, kinds

sa = pytest.importorskip("sqlalchemy")

import workers_storm  # noqa: E402
from clocks import Clock  # noqa: E402
from killing import Zygote, stop, wait_idle  # noqa: E402
from workers import PATIENCE, put_many, received  # noqa: E402
from workers_storm import IN_FLIGHT, Storming  # noqa: E402

import txmail  # noqa: E402
from txmail import transport_from_url  # noqa: E402
from txmail.queue import schema  # noqa: E402
from txmail.queue.queue import Queue  # noqa: E402
from txmail.testing import Callback  # noqa: E402
from txmail.worker import run_once  # noqa: E402

log = logging.getLogger(__name__)

ROOT = Path(txmail.__file__).parents[1]
FULL = bool(os.environ.get("TXMAIL_FULL_SWEEP"))
SECONDS, MESSAGES = (60.0, 2000) if FULL else (10.0, 350)
WORKERS = 4
#: Seconds between two kills.
PACE = 0.5
#: Seconds that the server takes for a message, so that there is always something on its way.
SLOWNESS = 0.15
#: Part of the messages that are there at first; the others come while workers die, in the same
#: time as if all did.
AT_FIRST = 0.4
HOUR = 3600.0

pytestmark = pytest.mark.timeout(300)


class Slot:
    """The place of one worker: when it is killed, there is another at once."""

    def __init__(self, app, server, folder: Path, number: int) -> None:
        self._name = f"txmail-storm-{number}"
        self._zygote = Zygote(workers_storm.__file__, name=self._name)
        self._app = app
        folder.mkdir()
        url = app.engine.url.render_as_string(hide_password=False)
        self._job = Storming(folder=str(folder), queue=url, server=server.url)
        self.replace()

    def kill(self) -> int:
        """How many deliveries it had begun with and not written what became of them.

        They are counted while it is stopped: once it is dead, others decide about them at once.
        """
        pid = self._zygote.pid
        assert pid is not None
        with suppress(ProcessLookupError):  # `Zygote.kill` tells why
            stop(pid)
        if self._app.kind == OWN_POSTGRESQL:
            wait_idle(self._app.engine, self._name)
        d, p = schema.delivery.c, schema.process.c
        mine = sa.select(p.id).where(p.pid == pid)
        held = sa.select(sa.func.count()).where(d.begun == 1, d.process.in_(mine))
        begun = self._app.read(held)[0][0]
        assert self._zygote.kill() == -signal.SIGKILL
        return begun

    def replace(self) -> None:
        """Have another one begin."""
        self._zygote.start(self._job)

    def close(self) -> None:
        self._zygote.close()


def rows(app):
    d = schema.delivery.c
    return app.read(sa.select(d.recipient, d.state, d.begun, d.duplicate))


def storm(app, slots, wanted):
    """Kill them at random, while more mail comes; how much each had begun with."""
    chosen = random.Random(4711)
    wanted += put_many(app, "first", int(MESSAGES * AT_FIRST))
    begun = []
    start = time.monotonic()
    for number in range(int(SECONDS / PACE)):
        # The moments are nobody's choice, and no event of theirs.
        spent = (number + chosen.random()) * PACE
        time.sleep(max(0.0, start + spent - time.monotonic()))
        victim = chosen.choice(slots)
        begun.append(victim.kill())
        victim.replace()
        missing = int(MESSAGES * min(1.0, AT_FIRST + spent / SECONDS)) - len(wanted)
        if missing > 0:
            priority = chosen.choice(["high", "normal", "normal", "bulk"])
            wanted += put_many(app, f"more{number}-", missing, priority=priority)
    return begun


def finish(app, server):
    """One worker does the rest; what was in doubt is tried again, as it is later by its clock."""
    url = app.engine.url.render_as_string(hide_password=False)
    clock = Clock(time.time())
    for _ in range(5):
        clock.advance(HOUR)
        with closing(Queue(url, clock=clock)) as queue:
            run_once(queue, transport_from_url(server.url))
        if {row.state for row in rows(app)} == {"sent"}:
            break


@pytest.mark.sweep
@kinds(*OWN_QUEUES)
def test_workers_that_are_killed_again_and_again_lose_nothing(make_queue, server, kind, tmp_path):
    app = make_queue(kind)
    never = threading.Event()
    server.on(".", Callback(lambda: never.wait(SLOWNESS)), times=None)
    wanted: list[str] = []
    with ExitStack() as end:
        slots = [Slot(app, server, tmp_path / f"slot{n}", n) for n in range(WORKERS)]
        for slot in slots:
            end.callback(slot.close)
        begun = storm(app, slots, wanted)
        begun += [slot.kill() for slot in slots]
    never.set()
    finish(app, server)
    copies = Counter(received(server))
    found = rows(app)
    assert sorted(row.recipient for row in found) == sorted(wanted)
    assert len(wanted) == MESSAGES
    assert copies.keys() == set(wanted)
    for row in found:
        assert (row.state, row.begun) == ("sent", 0), row
        assert row.duplicate or copies[row.recipient] == 1, (row, copies[row.recipient])
    for message in server.messages:
        assert message.content == note(message.sender.partition("@")[0]).content
    doubtful = sum(row.duplicate for row in found)
    more = sum(count - 1 for count in copies.values())
    words = "%d kills, %d begun (at most %d at once), %d flagged, %d copies too many"
    log.info(words, len(begun), sum(begun), max(begun), doubtful, more)
    assert max(begun) <= IN_FLIGHT
    assert more <= sum(begun)
    assert doubtful <= sum(begun)
    # Some were killed in the middle of something, and not while they were starting.
    assert sum(map(bool, begun)) > len(begun) / 10


@contextmanager
def killed(process):
    """At the end of the block, if it has not ended by itself."""
    try:
        yield
    finally:
        process.kill()


@pytest.mark.sweep
@kinds(*OWN_QUEUES)
def test_a_worker_that_is_told_to_end_under_load_leaves_nothing_in_doubt(make_queue, server, kind):
    app = make_queue(kind)
    wanted = put_many(app, "mail", 1000)
    url = app.engine.url.render_as_string(hide_password=False)
    command = [sys.executable, "-m", "txmail", "worker", "-q", "--url", server.url]
    environment = {**os.environ, "TXMAIL_QUEUE_URL": url}
    chosen = random.Random(4711)
    never = threading.Event()
    server.on(".", Callback(lambda: never.wait(0.002)), times=None)
    for _ in range(10 if FULL else 4):
        before = len(server.messages)
        wait = chosen.randrange(1, 60)
        with subprocess.Popen(command, cwd=ROOT, env=environment) as process, killed(process):
            server.wait_for(lambda n=before + wait: len(server.messages) >= n, PATIENCE)
            process.send_signal(signal.SIGTERM)
            assert process.wait(PATIENCE) == 0
        server.wait_closed(PATIENCE)
        copies = Counter(received(server))
        assert not any(count > 1 for count in copies.values())
        for row in rows(app):
            state = "sent" if copies[row.recipient] else "ready"
            assert (row.state, row.begun, row.duplicate) == (state, 0, 0), row
    assert len(copies) < len(wanted), "all was over before the last was told"
    never.set()
    subprocess.run([*command, "--once"], cwd=ROOT, env=environment, check=True, timeout=PATIENCE)
    assert Counter(received(server)) == Counter(wanted)
    assert {(row.state, row.duplicate) for row in rows(app)} == {("sent", 0)}
