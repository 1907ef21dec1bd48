"""Clocks that are wrong, or are set while workers work: of the machine, and of one process.

The wall clock of a process is libfaketime's, read from a file, where it has to be another than
ours. What counts from the machine's start is left alone: nobody can set that.
"""

from __future__ import annotations

import os
import threading
from collections import Counter
from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest
from commits import note
from queues import OWN_POSTGRESQL, OWN_QUEUES, OWN_SQLITE, kinds

sa = pytest.importorskip("sqlalchemy")

from clocks import Clock  # noqa: E402
from hosts import settled  # noqa: E402
from workers import PATIENCE, change_delivery, in_write, put, put_many, received, wait_for, working  # noqa: E402

from txmail.queue import schema  # noqa: E402
from txmail.queue.sql import route_state  # noqa: E402
from txmail.testing import Callback, then  # noqa: E402
from txmail.worker import dispatcher, run_once  # noqa: E402

HOUR, DAY = 3600.0, 86400.0
JUMPS = [HOUR, -HOUR, DAY, -DAY]
#: More than any difference that is not a jump, in milliseconds.
FAR = 1_800_000

jumps = pytest.mark.parametrize("jump", JUMPS, ids=["+1h", "-1h", "+1d", "-1d"])


def kinds_and_jumps(sqlite, postgresql):
    """The clock is that of the process, and that of the server."""
    cases = [(OWN_SQLITE, jump) for jump in sqlite] + [(OWN_POSTGRESQL, j) for j in postgresql]
    return pytest.mark.parametrize(("kind", "jump"), cases)


class WallClock:
    """The wall clock of the processes that get `environment`."""

    def __init__(self, library: Path, file: Path) -> None:
        self._file = file
        self.set(0.0)
        self.environment = {
            **os.environ,
            "LD_PRELOAD": str(library),
            "FAKETIME_TIMESTAMP_FILE": str(file),
            "FAKETIME_NO_CACHE": "1",
            "FAKETIME_DONT_FAKE_MONOTONIC": "1",
        }

    def set(self, seconds: float) -> None:
        """It is so much later there than here."""
        new = self._file.with_suffix(".new")
        new.write_text(f"{seconds:+.0f}\n")
        new.replace(self._file)


@pytest.fixture
def wall(tmp_path):
    found = sorted(Path("/usr/lib").glob("*/faketime/libfaketimeMT.so.1"))
    if not found:
        pytest.skip("libfaketime is not installed")
    return WallClock(found[0], tmp_path / "wall")


@pytest.fixture
def start(workers, server):
    """Start a worker; `wall` is its clock, if it is not ours."""

    def start(app, wall=None, **options):
        url = app.engine.url.render_as_string(hide_password=False)
        environment = None if wall is None else wall.environment
        return workers.start(url, server.url, environment=environment, **options)

    return start


@pytest.fixture
def gate(server):
    """A server that has got a message and does not answer, until it is opened."""
    reached, opened = threading.Event(), threading.Event()
    server.on(".", then(Callback(lambda: (reached.set(), opened.wait(PATIENCE)))))
    opened.reached = lambda: reached.wait(PATIENCE)
    yield opened
    opened.set()


_BEATS = sa.select(schema.process.c.id, schema.process.c.heartbeat).where(
    schema.process.c.kind == "worker"
)


def beats(app):
    """How much later than ours the clocks are that workers have last beaten by, in milliseconds."""
    now = datetime.now(UTC).timestamp() * 1000
    return [row.heartbeat - now for row in app.read(_BEATS)]


def wait_for_beats(app, jump, count):
    """Until so many workers have beaten by a clock that is so much later."""

    def seen():
        return sum(abs(beat - jump * 1000) < FAR for beat in beats(app)) >= count

    wait_for(seen, "they do not work any more")


def wait_for_rounds(app, count=3):
    """Until each worker has looked after what is to be done for all so many times."""
    for _ in range(count):
        before = {row.id: row.heartbeat for row in app.read(_BEATS)}
        wait_for(
            lambda b=before: all(row.heartbeat != b.get(row.id) for row in app.read(_BEATS)),
            "they do not work any more",
        )


def check_once(app, server, wanted):
    assert Counter(received(server)) == dict.fromkeys(wanted, 1)
    rows = app.deliveries()
    assert {row.state for row in rows.values()} == {"sent"}
    assert not any(row.duplicate for row in rows.values())


# -- the machine's clock


@pytest.mark.representative(every=6)
@kinds_and_jumps(JUMPS, [DAY, -DAY])
def test_workers_whose_clock_is_set_send_everything_once(
    make_queue, server, start, wall, gate, kind, jump
):
    """None takes away what another has, and what was due before is due afterwards."""
    app = make_queue(kind)
    wanted = put_many(app, "before", 100)
    for _ in range(2):
        start(app, wall)
    assert gate.reached()
    wall.set(jump)
    if kind == OWN_SQLITE:
        wait_for_beats(app, jump, 2)
    wait_for_rounds(app)
    gate.set()
    wanted += put_many(app, "after", 50)
    if kind == OWN_SQLITE and jump < 0:
        wait_for_rounds(app)
        wall.set(0)  # as time goes by: before, it was not due there
    wait_for(settled(app), "they do not go on")
    check_once(app, server, wanted)


@pytest.mark.sweep
@kinds_and_jumps([HOUR, -DAY], [DAY])
def test_a_worker_whose_clock_is_wrong_takes_nothing_away_from_others(
    make_queue, server, start, wall, gate, kind, jump
):
    app = make_queue(kind)
    wanted = put_many(app, "n", 60)
    start(app)
    assert gate.reached()
    wall.set(jump)
    start(app, wall)
    wait_for(lambda: len(beats(app)) == 2, "it does not work")
    wait_for_rounds(app)
    gate.set()
    wait_for(settled(app), "they do not go on")
    check_once(app, server, wanted)


@pytest.mark.sweep
@kinds_and_jumps([-HOUR, DAY], [-DAY])
def test_what_a_dead_worker_had_is_free_after_its_lease_whatever_the_clock_says(
    make_queue, server, start, wall, gate, kind, jump
):
    """Not after its lease and the jump."""
    app = make_queue(kind)
    wanted = put_many(app, "n", 60)
    dead = start(app, wall, options="{'lease': 3.0}")
    assert gate.reached()
    dead.kill()
    dead.wait(PATIENCE)
    wall.set(jump)
    start(app, wall)
    d = schema.delivery.c
    leased = sa.select(d.id).where(d.state == "sending", d.token.is_not(None))
    first = app.deliveries()[wanted[0]].token
    wait_for(
        lambda: not app.read(leased.where(d.token == first)), "nobody gets what the dead one had"
    )
    gate.set()
    if kind == OWN_SQLITE and jump < 0:
        wall.set(0)
    wait_for(settled(app), "they do not go on")
    rows = app.deliveries()
    copies = Counter(received(server))
    for recipient in wanted:
        row = rows[recipient]
        # What is in doubt may have been tried again: it is, by a clock that was set forward.
        assert (row.state, row.duplicate) in {("sent", 0), ("in_doubt", 1), ("sent", 1)}
        assert copies[recipient] <= (2 if row.duplicate else 1)


@pytest.mark.sweep
@jumps
@kinds(OWN_POSTGRESQL)
def test_with_postgresql_nothing_is_due_or_over_by_the_clock_of_a_worker(
    make_queue, server, start, wall, kind, jump
):
    app = make_queue(kind)
    now = datetime.now(UTC)
    put(app, note("soon"), expires=now + timedelta(minutes=10))
    put(app, note("later"), not_before=now + timedelta(minutes=10))
    put(app, note("over"), expires=now + timedelta(minutes=10))
    change_delivery(app, "over@example.net", expires=int(now.timestamp() * 1000) - 1000)
    put(app, note("deferred"))
    server.on("RCPT", "451 4.7.1 greylisted", matching="deferred@example.net", times=None)
    wall.set(jump)
    start(app, wall)
    wait_for(lambda: app.states()["deferred@example.net"] == "deferred", "it sends nothing")
    wait_for(lambda: app.states()["over@example.net"] == "expired", "it does not work")
    wait_for(lambda: app.states()["soon@example.net"] == "sent", "it sends nothing")
    wait_for_rounds(app)
    assert app.states() == {
        "soon@example.net": "sent",
        "later@example.net": "ready",
        "over@example.net": "expired",
        "deferred@example.net": "deferred",
    }
    assert received(server) == ["soon@example.net"]


# -- what is written of routes


@pytest.mark.parametrize("back", [HOUR, DAY])
@kinds(*OWN_QUEUES)
def test_a_route_that_failed_is_tried_again_though_the_clock_was_set_back(
    make_queue, server, smtp, kind, back
):
    """What others have written of it seems to be about the next day."""
    clock, own = Clock(), Clock(1000.0)
    app = make_queue(kind, clock=clock)
    put(app, note("before"))
    server.stop()
    run_once(app.queue, smtp, clock=own)
    assert [row.state for row in app.read(sa.select(schema.route))] == [route_state.OPEN]
    server.start()
    clock.advance(-back)
    own.advance(60)
    put(app, note("after"))
    run_once(app.queue, smtp, clock=own)
    assert received(server) == ["after@example.net"]
    clock.advance(back + 60)
    run_once(app.queue, smtp, clock=own)
    assert received(server) == ["after@example.net", "before@example.net"]


@jumps
@kinds(*OWN_QUEUES)
def test_a_rate_goes_on_from_where_the_clock_was_set_to(make_queue, kind, jump):
    clock = Clock()
    app = make_queue(kind, clock=clock)

    def granted():
        return in_write(app, lambda c, now: route_state.grant(c, "default", now, 10.0, 100))

    assert granted() == 10
    clock.advance(jump)
    # Forward, it is as if nothing had been sent for so long; one second's worth is the most.
    assert granted() == (10 if jump > 0 else 0)
    clock.advance(0.5)
    assert granted() == 5


@jumps
def test_what_a_server_has_asked_for_is_not_kept_to_for_longer_because_the_clock_was_set(jump):
    now = 1_900_000_000_000
    slowed = now - int(jump * 1000)
    assert route_state.limit(100.0, 1.0, slowed, now) == 100.0
    assert route_state.limit(None, 1.0, slowed, now) is None
    assert route_state.limit(100.0, 1.0, now, now) == 1.0


# -- waiting


@kinds(*OWN_QUEUES)
def test_a_worker_does_not_wait_by_a_clock_that_can_be_set(
    make_queue, server, smtp, kind, monkeypatch
):
    """It looks again after the time it looks after, not after that and a day."""
    clock = Clock()
    app = make_queue(kind, clock=clock)
    monkeypatch.setattr(dispatcher, "POLL", 0.05)
    with working(app.queue, smtp) as worker:
        worker.wait_rounds()
        clock.advance(-DAY)
        worker.wait_rounds()
        put(app, note("a"))
        server.wait_for(lambda: received(server) == ["a@example.net"])
