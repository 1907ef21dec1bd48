"""Mail into a queue: what it costs the transaction that does it, and how long others wait for that.

Part a: 5000 mails in one transaction. Part b: one mail in each. Part c: 100,000 deliveries in a
transaction that changes a ZODB too, beside neighbours that commit to the same ZODB or enqueue one
mail at a time. ``README.rst`` says how to read the tables.
"""

from __future__ import annotations

import argparse
import contextlib
import gc
import statistics
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

from _django_queues import django_queues
from _harness import Contender, Skip, header, interleave, is_installed, table, timed
from _queues import (
    SENDER,
    TEXT,
    CopyPostgres,
    Queue,
    RawPostgres,
    RawSqlite,
    mailer_for,
    mails,
    make_tables,
    our_queues,
    postgresql,
)

BULK_BASE = "django-mailer, its backend"
SINGLE_BASE = "django-mailer, send_mail"
#: what txmail is to reach in part a, as a multiple of the base
TO_REACH = 1.5
#: messages of the large transaction, and recipients of each
MESSAGES, RECIPIENTS = 1000, 100
#: seconds between two commits of a neighbour, so that it leaves processor and locks to others
PAUSE = 0.005


# Parts a and b


def bulk(queue: Queue, count: int) -> tuple[int, float]:
    """Enqueue `count` mails in one transaction, into an empty queue."""
    made = _prepared(queue, count)
    result = timed(count, lambda: queue.put(made))
    _check(queue, count)
    return result


def single(queue: Queue, count: int) -> tuple[int, float]:
    """Enqueue `count` mails in a transaction each, into an empty queue."""
    made = _prepared(queue, count)

    def run() -> None:
        for one in made:
            queue.put([one])

    result = timed(count, run)
    _check(queue, count)
    return result


def _prepared(queue: Queue, count: int) -> Sequence[Any]:
    queue.clear()
    made = queue.ready(mails(count))
    gc.collect()  # nobody collects within the clock what others have left
    return made


def _check(queue: Queue, count: int) -> None:
    if (found := queue.count()) != count:
        raise RuntimeError(f"{queue.name}: {found} deliveries instead of {count}")


def race(queues: Sequence[Queue], part: str, count: int, rounds: int) -> None:
    """Measure part ``"a"`` or ``"b"``."""
    run, base = (bulk, BULK_BASE) if part == "a" else (single, SINGLE_BASE)
    contenders = [Contender(queue.name, partial(run, queue, count)) for queue in queues]
    interleave(contenders, rounds)
    how = "in one transaction" if part == "a" else "in a transaction each"
    table(f"{count} mails {how}; {rounds} rounds", contenders, (base, "raw executemany"), "mails")
    by_name = {contender.name: contender for contender in contenders}
    for contender in contenders:
        print(f"{contender.name}: {1e6 / contender.rate:.1f} microseconds a mail")
    if part == "a" and BULK_BASE in by_name:
        for name in ("txmail, Messages", "txmail, Envelopes"):
            if name in by_name:
                ratio = by_name[name].ratio_to(by_name[BULK_BASE])
                print(f"{name}: to reach {TO_REACH} x {BULK_BASE}, it is {ratio}")


# Part c


class Zodb:
    """A FileStorage with an object for each writer, so that no commit conflicts with another."""

    def __init__(self, folder: Path) -> None:
        import transaction
        import ZODB
        import ZODB.FileStorage
        from persistent.mapping import PersistentMapping

        self.database = ZODB.DB(ZODB.FileStorage.FileStorage(str(folder / "Data.fs")))
        self._writers: list[Any] = []
        manager = transaction.TransactionManager()
        connection = self.database.open(transaction_manager=manager)
        for name in ("application", "neighbour"):
            connection.root()[name] = PersistentMapping()
        manager.commit()
        connection.close()

    def writer(self, name: str, manager: Any) -> Callable[[], None]:
        """Changes the object `name`, within the current transaction of `manager`."""
        connection = self.database.open(transaction_manager=manager)
        self._writers.append(connection)

        def write() -> None:
            connection.root()[name]["time"] = time.perf_counter()

        return write

    def close(self) -> None:
        """End all writers, none of whom is in a transaction."""
        for connection in self._writers:
            connection.close()
        self.database.close()


class Took(NamedTuple):
    """Seconds that a transaction took."""

    #: the calls of `enqueue`
    calls: float
    #: staging, before any database was locked
    staging: float
    #: from the first `tpc_begin` to the end of the last vote: FileStorage is locked
    locked: float
    #: our `tpc_finish`
    publishing: float


class Watch:
    """When our manager's part in a two-phase commit began and ended."""

    def __init__(self, manager: Any) -> None:
        self.began: dict[str, float] = {}
        self.ended: dict[str, float] = {}
        for name in ("tpc_begin", "tpc_vote", "tpc_finish"):
            setattr(manager, name, partial(self._timed, name, getattr(manager, name)))

    def _timed(self, name: str, method: Callable[[Any], None], transaction: Any) -> None:
        self.began[name] = time.perf_counter()
        method(transaction)
        self.ended[name] = time.perf_counter()


def large(mailer: Any, manager: Any, write: Callable[[], None], made: Sequence[Any]) -> Took:
    """Enqueue `made` beside a change of the ZODB, and commit."""
    manager.begin()
    write()
    started = time.perf_counter()
    for envelope in made:
        mailer.enqueue(envelope)
    watch = Watch(max(manager.get()._resources, key=lambda m: m.sortKey()))
    committing = time.perf_counter()
    manager.commit()
    return Took(
        committing - started,
        watch.began["tpc_begin"] - committing,
        watch.ended["tpc_vote"] - watch.began["tpc_begin"],
        watch.ended["tpc_finish"] - watch.began["tpc_finish"],
    )


@contextlib.contextmanager
def beside(act: Callable[[], None]) -> Iterator[list[float]]:
    """Call `act` again and again in a thread; the seconds that each call took."""
    seconds: list[float] = []
    errors: list[Exception] = []
    over = threading.Event()

    def run() -> None:
        try:
            while not over.wait(PAUSE):
                started = time.perf_counter()
                act()
                seconds.append(time.perf_counter() - started)
        except Exception as error:
            errors.append(error)

    thread = threading.Thread(target=run)
    thread.start()
    try:
        yield seconds
    finally:
        over.set()
        thread.join()
    if errors:
        raise errors[0]


def neighbours(mailer: Any, zodb: Zodb) -> dict[str, Callable[[], None]]:
    """What others do meanwhile, a transaction each time."""
    import transaction

    manager = transaction.TransactionManager(explicit=True)
    write = zodb.writer("neighbour", manager)
    bound = mailer.bind(transaction_manager=manager)
    one = envelopes(1, 1)[0]

    def in_transaction(function: Callable[[], object]) -> None:
        manager.begin()
        function()
        manager.commit()

    return {
        "commits to the ZODB": partial(in_transaction, write),
        "enqueues one mail": partial(in_transaction, partial(bound.enqueue, one)),
    }


def envelopes(messages: int, recipients: int) -> list[Any]:
    """Messages to so many people each."""
    from txmail import Envelope, Message

    content = Message("news", ["l@example.com"], TEXT, sender=SENDER).to_envelope().content
    people = [f"r{number}@example.com" for number in range(recipients)]
    return [Envelope(SENDER, people, content) for _ in range(messages)]


def part_c(folder: Path, postgresql_url: str | None, messages: int, rounds: int) -> None:
    """Large transactions and their neighbours. Raises `Skip` without ZODB."""
    if not is_installed("ZODB"):
        raise Skip("ZODB is not installed")
    zodb = Zodb(folder)
    urls = {"SQLite": f"sqlite:///{folder / 'large.sqlite'}"}
    if postgresql_url is not None:
        urls["PostgreSQL"] = postgresql_url
    made = envelopes(messages, RECIPIENTS)
    for name, url in urls.items():
        make_tables(url)
        mailer, manager = mailer_for(url)
        write = zodb.writer("application", manager)
        print(f"\n{name}: {messages} messages to {RECIPIENTS} people each; {rounds} rounds")
        for what, act in neighbours(mailer, zodb).items():
            with beside(act) as alone:
                time.sleep(1)
            with beside(act) as waited:
                took = [large(mailer, manager, write, made) for _ in range(rounds)]
            report(what, took, alone, waited)
        one = [large(mailer, manager, write, made[:1]) for _ in range(10 * rounds)]
        report(f"beside nobody, and one message to {RECIPIENTS}", one, [], [])
        mailer.close()
    zodb.close()


def report(what: str, took: Sequence[Took], alone: list[float], waited: list[float]) -> None:
    """Print the medians of what transactions took, and what became of the neighbour."""
    medians = [f"{name} {_ms([getattr(t, name) for t in took])}" for name in Took._fields]
    print(f"a neighbour {what}: " if alone else f"{what}: ", ", ".join(medians), sep="")
    for when, times in (("alone", alone), ("beside it", waited)):
        if len(times) > 1:
            p99 = statistics.quantiles(times, n=100, method="inclusive")[98]
            worst = f"p99 {p99 * 1000:.1f}, at most {max(times) * 1000:.1f} ms"
            print(f"    the neighbour {when}: {len(times)} commits, {_ms(times)}, {worst}")
    sys.stdout.flush()


def _ms(seconds: Sequence[float]) -> str:
    return f"{statistics.median(seconds) * 1000:.2f} ms"


# All of them


def queues(folder: Path, postgresql_url: str | None, clients: Sequence[str]) -> list[Queue]:
    """All that can run here and whose name has one of `clients` in it; names the others."""
    bare: list[Queue] = [RawSqlite(folder / "raw.sqlite")]
    if postgresql_url is not None:
        bare += [RawPostgres(postgresql_url), CopyPostgres(postgresql_url)]
    theirs: list[Queue] = []
    try:
        theirs = django_queues(folder, postgresql_url)
    except Skip as skip:
        print(f"skipped: {skip}")
    ours = our_queues(folder, postgresql_url)
    return [q for q in (*theirs, *bare, *ours) if any(client in q.name for client in clients)]


def main() -> None:
    """Run it."""
    parser = argparse.ArgumentParser(description="Mail into a queue.")
    parser.add_argument("--quick", action="store_true", help="fewer mails; ends in seconds")
    parser.add_argument("--part", choices=("a", "b", "c"), action="append", help="only this one")
    parser.add_argument("--rounds", type=int, default=5, help="counted rounds, at least 3")
    parser.add_argument("--clients", default="", help="those with one of these in their names")
    parser.add_argument("--no-postgresql", action="store_true", help="SQLite only")
    arguments = parser.parse_args()
    if not 3 <= arguments.rounds <= 100:
        parser.error("--rounds: 3 to 100")
    header(("txmail", "django-mailer", "django-post_office", "SQLAlchemy", "psycopg", "ZODB"))
    parts = arguments.part or ["a", "b", "c"]
    rounds, quick = arguments.rounds, arguments.quick
    with contextlib.ExitStack() as stack:
        folder = Path(stack.enter_context(tempfile.TemporaryDirectory()))
        url = None
        if not arguments.no_postgresql:
            try:
                url = stack.enter_context(postgresql())
            except Skip as skip:
                print(f"PostgreSQL: skipped: {skip}")
        if "a" in parts or "b" in parts:
            found = queues(folder, url, arguments.clients.split(","))
            gc.collect()
            gc.freeze()  # what has been imported until here is nobody's garbage
            if "a" in parts:
                race(found, "a", 500 if quick else 5000, rounds)
            if "b" in parts:
                race([q for q in found if "COPY" not in q.name], "b", 50 if quick else 300, rounds)
        if "c" in parts:
            try:
                part_c(folder, url, 50 if quick else MESSAGES, 3)
            except Skip as skip:
                print(f"\npart c: skipped: {skip}")


if __name__ == "__main__":
    main()
