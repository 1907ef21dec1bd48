"""Mail out of a queue: how fast workers drain it, and what others notice of it.

Part a: 5000 mails from SQLite to a sink, against django-mailer and django-post_office, and what a
worker grows by. Part b: 1, 2, 4 and 8 workers on PostgreSQL. Part c: what a claim takes beside
finished deliveries. Part d: an application's commits while a worker drains. Part e: from the commit
to the server. Part f: what is urgent, behind 50,000 that are not; and a route beside one that leads
nowhere. ``README.rst`` says how to read the tables.
"""

from __future__ import annotations

import argparse
import contextlib
import gc
import logging
import statistics
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from functools import partial
from pathlib import Path
from typing import Any

from _django_queues import DjangoMailer, PostOffice, django_queues
from _harness import HERE, Contender, Skip, header, interleave, postfix_sink, sink, table, timed
from _queues import (
    TABLES,
    Mail,
    Postgres,
    SqliteFile,
    TxmailEnvelopes,
    mailer_for,
    mails,
    make_tables,
    postgres_connection,
    postgresql,
)

MAILER, POST_OFFICE, OURS = "django-mailer", "django-post_office", "txmail, one worker"
#: what txmail is to reach in part a, by base
TO_REACH = {MAILER: 20, POST_OFFICE: 4}
#: django-mailer opens a connection for each mail: it gets this part of them
SHARE = 5
#: seconds between two commits of an application
PAUSE = 0.005
#: what has been written by a queue, and is emptied between rounds
WRITTEN = (*TABLES, "txmail_attempt")


class Ours:
    """A queue of txmail, which is filled through a mailer, and emptied."""

    def __init__(self, url: str) -> None:
        make_tables(url)
        path = url.removeprefix("sqlite:///")
        store: Any = (
            SqliteFile(Path(path), TABLES[0], WRITTEN)
            if path != url
            else Postgres(url, TABLES[0], WRITTEN)
        )
        self.url = url
        self.mailer, self._manager = mailer_for(url)
        self._queue = TxmailEnvelopes("", self.mailer, self._manager, store)

    def fill(self, count: int, **options: Any) -> None:
        """Have `count` mails in it, and nothing else; `options` are those of `Mailer.enqueue`."""
        self._queue.clear()
        self._queue.put(self._queue.ready(mails(count)), **options)
        # A large transaction is made ready in steps, behind its commit.
        if not self.mailer.queue.flush(60):
            raise RuntimeError("the queue is not filled yet")
        gc.collect()

    def put(self, *recipients: str, **options: Any) -> None:
        """Commit a mail to each of `recipients`."""
        made = [Mail("now", recipient) for recipient in recipients]
        self._queue.put(self._queue.ready(made), **options)

    def left(self) -> int:
        """How many deliveries have not been sent."""
        counts = self.mailer.queue.counts()
        return sum(number for state, number in counts.items() if state != "sent")

    def put_one(self) -> None:
        """Commit one mail."""
        self._queue.put(self._queue.ready(mails(1)))


# Part a


def drained(ours: Ours, url: str, count: int) -> tuple[int, float]:
    """Send `count` mails by one worker in this process."""
    from txmail import transport_from_url
    from txmail.worker import run_once

    ours.fill(count)
    transport = transport_from_url(url)
    result = timed(count, lambda: run_once(ours.mailer.queue, transport))
    transport.close()
    if ours.left():
        raise RuntimeError(f"txmail: {ours.left()} of {count} were not sent")
    return result


def drained_by(queue: Any, port: int, count: int) -> tuple[int, float]:
    """Send `count` mails by a worker of Django's."""
    queue.clear()
    queue.put(queue.ready(mails(count)))
    gc.collect()
    return timed(count, lambda: queue.drain(port))


def part_a(folder: Path, count: int, rounds: int) -> None:
    """The race on SQLite."""
    ours = Ours(f"sqlite:///{folder / 'ours.sqlite'}")
    theirs: dict[str, Any] = {}
    try:
        django_queues(folder, None)
        theirs = {MAILER: DjangoMailer(MAILER), POST_OFFICE: PostOffice(POST_OFFICE)}
        logging.disable(logging.INFO)  # nobody has to write a line for each mail
    except Skip as skip:
        print(f"skipped: {skip}")
    with contextlib.ExitStack() as stack:
        running = stack.enter_context(sink(chunking=True))
        race("our sink", ours, theirs, running.port, count, rounds, running.messages)
        try:
            port = stack.enter_context(postfix_sink())
        except Skip as skip:
            print(f"skipped: {skip}")
        else:
            race("smtp-sink", ours, theirs, port, count, rounds, None)
    ours.mailer.close()


def race(
    server: str,
    ours: Ours,
    theirs: dict[str, Any],
    port: int,
    count: int,
    rounds: int,
    counted: Callable[[], int] | None,
) -> None:
    """Drain to the server at `port`; `counted` is how many messages it has had, if it can tell."""
    shares = {name: count // SHARE if name == MAILER else count for name in theirs}
    contenders = [
        Contender(name, partial(drained_by, queue, port, shares[name]))
        for name, queue in theirs.items()
    ]
    contenders.append(Contender(OURS, partial(drained, ours, f"smtp://127.0.0.1:{port}", count)))
    before = counted() if counted is not None else 0
    interleave(contenders, rounds)
    expected = (sum(shares.values()) + count) * (rounds + 1)
    if counted is not None and counted() - before != expected:
        raise RuntimeError(f"{counted() - before} messages have come instead of {expected}")
    table(f"{count} mails from SQLite to {server}; {rounds} rounds", contenders,
          (MAILER, POST_OFFICE), "mails")  # fmt: skip
    by_name = {contender.name: contender for contender in contenders}
    for base in theirs:
        ratio = by_name[OURS].ratio_to(by_name[base])
        print(f"to reach {TO_REACH[base]} x {base}: it is {ratio}")


# Workers in processes of their own


@contextlib.contextmanager
def workers(url: str, server: str, count: int) -> Iterator[list[subprocess.Popen[str]]]:
    """`count` of `_worker.py`, ready."""
    with contextlib.ExitStack() as stack:
        started = [stack.enter_context(process("_worker.py", url, server)) for _ in range(count)]
        for each in started:
            answer(each)
        yield started


@contextlib.contextmanager
def process(program: str, *arguments: str) -> Iterator[subprocess.Popen[str]]:
    """`program`, until the end of the block; its first line is still to be read."""
    with subprocess.Popen(
        [sys.executable, str(HERE / program), *arguments],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
    ) as started:
        yield started
        assert started.stdin is not None
        started.stdin.close()


def tell(process: subprocess.Popen[str], line: str) -> None:
    """Write `line` to a worker."""
    assert process.stdin is not None
    process.stdin.write(line + "\n")
    process.stdin.flush()


def answer(process: subprocess.Popen[str]) -> list[str]:
    """The words of its next line."""
    assert process.stdout is not None
    return process.stdout.readline().split()


# Part b


def part_b(url: str, count: int, rounds: int) -> None:
    """Several workers on one PostgreSQL."""
    ours = Ours(url)
    with contextlib.ExitStack() as stack:
        running = stack.enter_context(sink(chunking=True))
        server = f"smtp://127.0.0.1:{running.port}"
        contenders = []
        for number in (1, 2, 4, 8):
            found = stack.enter_context(workers(url, server, number))
            contenders.append(
                Contender(f"{number} worker(s)", partial(together, ours, found, count))
            )
        interleave(contenders, rounds)
    table(f"{count} mails from PostgreSQL to our sink; {rounds} rounds", contenders,
          ("1 worker(s)",), "mails")  # fmt: skip
    ours.mailer.close()


def together(ours: Ours, found: Sequence[subprocess.Popen[str]], count: int) -> tuple[int, float]:
    """Drain `count` mails by all of `found`."""
    ours.fill(count)
    started = time.perf_counter()
    for worker in found:
        tell(worker, "drain")
    told = [answer(worker) for worker in found]
    seconds = time.perf_counter() - started
    if ours.left() or sum(int(words[0]) for words in told) != count:
        raise RuntimeError(f"{ours.left()} of {count} were not sent, or some twice: {told}")
    return count, seconds


def memory(folder: Path, count: int) -> None:
    """How much workers grow while they drain, each in a process of its own."""
    ours = Ours(f"sqlite:///{folder / 'memory.sqlite'}")
    with sink(chunking=True) as running:
        ours.fill(500)
        started = process("_worker.py", ours.url, f"smtp://127.0.0.1:{running.port}")
        print(f"\nwhat a worker that has sent 500 mails grows by\n    {OURS}:"
              f" {grown(started, ours.fill, count)}")  # fmt: skip
        for name, kind in ((MAILER, DjangoMailer), (POST_OFFICE, PostOffice)):
            try:
                queue = kind(name)
                refill(queue, 500)
            except Exception as error:  # Django was not configured: it is not installed
                print(f"    {name}: skipped: {error}")
                continue
            started = process("_django_worker.py", name, str(folder), str(running.port))
            some = count // SHARE if kind is DjangoMailer else count
            print(f"    {name}: {grown(started, partial(refill, queue), some)}")
    ours.mailer.close()


def refill(queue: Any, count: int) -> None:
    """Have `count` mails in a queue of Django's, and nothing else."""
    queue.clear()
    queue.put(queue.ready(mails(count)))


def grown(
    started: contextlib.AbstractContextManager[subprocess.Popen[str]],
    fill: Callable[[int], object],
    count: int,
) -> str:
    """What the worker `started` tells of `count` mails."""
    with started as worker:
        answer(worker)
        fill(count)
        tell(worker, "drain")
        sent, seconds, kilobytes = answer(worker)
    if int(sent) != count:
        raise RuntimeError(f"{sent} of {count} were sent")
    return (f"{int(kilobytes) / 1024:.1f} MB for {count} more"
            f" ({count / float(seconds):,.0f} mails/s)")  # fmt: skip


# Part c

_RAW = """
UPDATE txmail_delivery
SET state = 'sending', process = 'x', token = 1, lease = 2, begun = 0, changed = 3
WHERE id IN (SELECT id FROM txmail_delivery WHERE state = 'ready' AND route IS NULL AND due <= %s
             ORDER BY priority, due, id LIMIT 100 FOR UPDATE SKIP LOCKED)
RETURNING id, message, recipient, priority, attempts, expires
"""
_CONTENTS = "SELECT id, sender, created, content FROM txmail_message WHERE id = ANY(%s)"
_FINISHED = """
INSERT INTO txmail_delivery
    (message, recipient, state, priority, due, attempts, begun, duplicate, changed)
SELECT 1, 'r@example.com', 'sent', 1, 1, 1, 0, 0, 1 FROM """
_SERIES = "generate_series(1, %s)"
_SERIES_SQLITE = """
(WITH RECURSIVE s(n) AS (SELECT 1 UNION ALL SELECT n + 1 FROM s WHERE n < ?) SELECT n FROM s)"""
BATCH = 100


def raw(connection: Any, count: int, contents: bool) -> tuple[int, float]:
    """Claim `count` deliveries in batches, by psycopg alone."""
    connection.execute("UPDATE txmail_delivery SET state = 'ready' WHERE state = 'sending'")
    connection.execute("VACUUM txmail_delivery")
    now, taken = int(time.time() * 1000), 0
    started = time.perf_counter()
    while taken < count:
        with connection.transaction():
            rows = connection.execute(_RAW, (now,)).fetchall()
            if contents:
                connection.execute(_CONTENTS, ([row[1] for row in rows],)).fetchall()
        taken += len(rows)
    return taken, time.perf_counter() - started


def claimed(
    ours: Ours, reset: Callable[[], object], count: int, contents: bool
) -> tuple[int, float]:
    """Claim `count` deliveries in batches, by txmail."""
    from txmail.queue.sql import claim
    from txmail.queue.sql import claimed as work

    reset()
    database, taken = ours.mailer.queue.database, 0
    started = time.perf_counter()
    while taken < count:
        with database.write() as connection:
            now = database.now_ms(connection)
            found = claim.take(
                connection,
                token=taken + 1,
                now_ms=now,
                lease_ms=now + 60_000,
                limit=BATCH,
            )
        taken += len(found)
        if contents:  # as a worker does it: when others may write again
            with database.read() as connection:
                work.load(connection, work.read(connection, found, taken)[0])
    return taken, time.perf_counter() - started


def part_c(folder: Path, url: str | None, count: int, rounds: int, levels: Sequence[int]) -> None:
    """Claims beside finished deliveries."""
    urls = {"SQLite": f"sqlite:///{folder / 'claims.sqlite'}"}
    if url is not None:
        urls["PostgreSQL"] = url
    for name, where in urls.items():
        ours = Ours(where)
        ours.fill(count)
        connection = sqlite_store(where) if name == "SQLite" else postgres_connection(where)
        there = 0
        for level in levels:
            add_finished(connection, name, level - there)
            there = level
            reset = partial(again, connection, name)
            contenders = [
                Contender("txmail", partial(claimed, ours, reset, count, False)),
                Contender("txmail, contents", partial(claimed, ours, reset, count, True)),
            ]
            if name == "PostgreSQL":
                for what, contents in (("raw", False), ("raw, contents", True)):
                    contenders.append(Contender(what, partial(raw, connection, count, contents)))
            interleave(contenders, rounds)
            what = f"{name}: claims in batches of {BATCH} beside {level:,} finished deliveries"
            table(f"{what}; {rounds} rounds", contenders, ("raw", "raw, contents"), "deliveries")
            print(f"a claim takes {1000 * BATCH / contenders[0].rate:.2f} ms")
        connection.close()
        ours.mailer.close()


def sqlite_store(url: str) -> Any:
    """A connection of the standard library, to what txmail has in a file."""
    from _queues import sqlite_connection

    return sqlite_connection(Path(url.removeprefix("sqlite:///")))


def again(connection: Any, name: str) -> None:
    """Make what was claimed ready."""
    connection.execute("UPDATE txmail_delivery SET state = 'ready' WHERE state = 'sending'")
    if name == "PostgreSQL":
        connection.execute("VACUUM txmail_delivery")
    else:
        connection.execute("PRAGMA wal_checkpoint(TRUNCATE)")


def add_finished(connection: Any, name: str, number: int) -> None:
    """Have so many more deliveries that were sent."""
    if number and name == "SQLite":
        connection.execute(_FINISHED + _SERIES_SQLITE, (number,))
    elif number:
        connection.execute(_FINISHED + _SERIES, (number,))
    if name == "PostgreSQL":
        connection.execute("VACUUM ANALYZE txmail_delivery")


# Parts d and e


def percentiles(seconds: Sequence[float]) -> str:
    """Median, p99 and the worst, in milliseconds."""
    p99 = statistics.quantiles(seconds, n=100, method="inclusive")[98]
    return (f"median {statistics.median(seconds) * 1000:.1f}, p99 {p99 * 1000:.1f},"
            f" at most {max(seconds) * 1000:.1f} ms ({len(seconds)} commits)")  # fmt: skip


def part_d(folder: Path, url: str | None, count: int) -> None:
    """An application enqueues one mail after the other while a worker drains."""
    urls = {"SQLite": f"sqlite:///{folder / 'beside.sqlite'}"}
    if url is not None:
        urls["PostgreSQL"] = url
    for name, where in urls.items():
        ours = Ours(where)
        with sink(chunking=True) as running:
            server = f"smtp://127.0.0.1:{running.port}"
            ours.fill(10)
            with workers(where, server, 1) as (worker,):
                alone = [commit(ours) for _ in range(200)]
                ours.fill(count)
                before = running.messages()
                tell(worker, "run")
                answer(worker)
                beside = []
                while running.messages() - before < count:
                    beside.append(commit(ours))
                    time.sleep(PAUSE)
                tell(worker, "stop")
                answer(worker)
        print(f"\n{name}: an application commits a mail at a time"
              f"\n    alone: {percentiles(alone)}"
              f"\n    while a worker drains {count}: {percentiles(beside)}")  # fmt: skip
        ours.mailer.close()


def commit(ours: Ours) -> float:
    """Seconds that enqueueing one mail and committing it took."""
    started = time.perf_counter()
    ours.put_one()
    return time.perf_counter() - started


def part_e(folder: Path, url: str | None, count: int) -> None:
    """From the end of the commit until the server has the message; the worker was idle."""
    from txmail import start_worker, transport_from_url
    from txmail.testing import ScriptedServer
    from txmail.worker import Worker
    from txmail.worker.worker import RunningWorker

    urls = {"SQLite": f"sqlite:///{folder / 'latency.sqlite'}"}
    if url is not None:
        urls["PostgreSQL"] = url
    for name, where in urls.items():
        ours = Ours(where)
        ours.fill(0)
        with ScriptedServer() as server:
            transport = transport_from_url(server.url)
            running = RunningWorker(Worker(ours.mailer.queue, transport))
            print(f"\n{name}: from the commit to the server, a thread of the application:"
                  f"\n    {percentiles(latencies(ours, server, count))}")  # fmt: skip
            running.stop()
            with workers(where, server.url, 1) as (worker,):
                tell(worker, "run")
                answer(worker)
                print(f"  a process of its own:\n    {percentiles(latencies(ours, server, count))}")
                tell(worker, "stop")
                answer(worker)
        ours.mailer.close()
    assert start_worker is not None


def latencies(ours: Ours, server: Any, count: int) -> list[float]:
    """Seconds until the server has each of `count` mails."""
    seconds = []
    for _ in range(count):
        time.sleep(0.03)  # until the worker has nothing to do again
        before = len(server.messages)
        ours.put_one()
        started = time.perf_counter()
        if not server.wait_for(lambda before=before: len(server.messages) > before, 30):
            raise RuntimeError("a mail has not come")
        seconds.append(time.perf_counter() - started)
    return seconds


# Part f

#: who wants a new password, and how often somebody does while bulk mail runs
URGENT, URGENTS = "ann@urgent.example", 20
#: seconds between two of them
BETWEEN = 0.3
#: the domain whose route leads nowhere
NOWHERE = "nowhere.example"


def part_f(folder: Path, url: str | None, bulk: int, beside: int) -> None:
    """What must not wait, behind and beside what waits."""
    urls = {"SQLite": f"sqlite:///{folder / 'urgent.sqlite'}"}
    if url is not None:
        urls["PostgreSQL"] = url
    for name, where in urls.items():
        ours = Ours(where)
        urgent(name, ours, bulk)
        nowhere(name, ours, beside)
        ours.mailer.close()


def urgent(name: str, ours: Ours, bulk: int) -> None:
    """Password resets, each committed while `bulk` mails are being sent."""
    from txmail.testing import Callback, ScriptedServer

    arrived = threading.Event()
    seconds = []
    with ScriptedServer() as server, workers(ours.url, server.url, 1) as (worker,):
        server.on("RCPT", Callback(arrived.set), matching=URGENT, times=None)
        ours.fill(bulk, priority="bulk")
        tell(worker, "run")
        answer(worker)
        for _ in range(URGENTS):
            time.sleep(BETWEEN)
            arrived.clear()
            ours.put(URGENT, priority="high")
            started = time.perf_counter()
            if not arrived.wait(60):
                raise RuntimeError("an urgent mail has not come")
            seconds.append(time.perf_counter() - started)
        left = ours.left()
        tell(worker, "stop")
        answer(worker)
    if not left:
        raise RuntimeError("all bulk mail had been sent before the last urgent one")
    print(f"\n{name}: urgent mail from the commit to the server, behind {bulk} bulk mails"
          f"\n    {percentiles(seconds)}; {left} bulk mails were left")  # fmt: skip


def nowhere(name: str, ours: Ours, count: int) -> None:
    """`count` mails by a good route, alone and behind ten times as many by one that hangs."""
    from txmail import transport_from_url
    from txmail.testing import HANG, ScriptedServer
    from txmail.worker import Route, Worker
    from txmail.worker.worker import RunningWorker

    with ScriptedServer() as good, ScriptedServer() as bad:
        bad.on("connect", HANG, times=None)
        for waiting in (0, 10 * count):
            ours.fill(0)
            if waiting:
                ours.put(*(f"r{number}@{NOWHERE}" for number in range(waiting)))
            ours.put(*(f"r{number}@good.example" for number in range(count)))
            routes = [
                Route.to("nowhere", transport_from_url(bad.url), domains=[NOWHERE]),
                Route.to("good", transport_from_url(good.url)),
            ]
            before = len(good.messages)
            started = time.perf_counter()
            running = RunningWorker(Worker(ours.mailer.queue, routes))
            while len(good.messages) - before < count:
                time.sleep(0.002)
            print(f"{name}: {count} mails behind {waiting} of a route that hangs:"
                  f" {(time.perf_counter() - started) * 1000:.0f} ms")  # fmt: skip
            running.worker.stop()
            for route in routes:
                route.transport.close()
            running.stop(1)


def main() -> None:
    """Run it."""
    parser = argparse.ArgumentParser(description="Mail out of a queue.")
    parser.add_argument("--quick", action="store_true", help="fewer mails; ends in seconds")
    parser.add_argument("--part", choices=tuple("abcdef"), action="append", help="only this one")
    parser.add_argument("--rounds", type=int, default=5, help="counted rounds, at least 3")
    parser.add_argument("--full", action="store_true", help="part c: 5 million finished, too")
    parser.add_argument("--no-postgresql", action="store_true", help="SQLite only")
    arguments = parser.parse_args()
    if not 3 <= arguments.rounds <= 100:
        parser.error("--rounds: 3 to 100")
    header(("txmail", "django-mailer", "django-post_office", "SQLAlchemy", "psycopg"))
    parts = arguments.part or list("abcdef")
    rounds, quick = arguments.rounds, arguments.quick
    levels = [0, 10_000] if quick else [0, 100_000, 1_000_000]
    levels += [5_000_000] if arguments.full else []
    with contextlib.ExitStack() as stack:
        folder = Path(stack.enter_context(tempfile.TemporaryDirectory()))
        url = None
        if not arguments.no_postgresql and parts != ["a"]:
            try:
                url = stack.enter_context(postgresql())
            except Skip as skip:
                print(f"PostgreSQL: skipped: {skip}")
        if "a" in parts:
            part_a(folder, 500 if quick else 5000, rounds)
            memory(folder, 2000 if quick else 20_000)
        if "b" in parts and url is not None:
            part_b(url, 1000 if quick else 10_000, rounds)
        if "c" in parts:
            part_c(folder, url, 500 if quick else 5000, rounds, levels)
        if "d" in parts:
            part_d(folder, url, 1000 if quick else 10_000)
        if "e" in parts:
            part_e(folder, url, 20 if quick else 100)
        if "f" in parts:
            part_f(folder, url, 20_000 if quick else 50_000, 100)


if __name__ == "__main__":
    main()
