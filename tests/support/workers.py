"""Workers in tests: what they send from, ways to watch them."""

from __future__ import annotations

import contextlib
import logging
import threading
import time
from collections.abc import Callable, Iterator

import sqlalchemy as sa
import transaction
from claiming import claim_and_load
from commits import note

from txmail import Mailer, transport_from_url
from txmail.queue import schema
from txmail.queue.queue import Queue
from txmail.queue.sql import claim as claims
from txmail.worker import Worker

#: Seconds after which a test gives up.
PATIENCE = 30.0


class Watched(Worker):
    """A worker in a thread of its own, of which one can wait for a round."""

    def __init__(self, *args, **options) -> None:
        super().__init__(*args, **options)
        self._told = threading.Condition()
        self._rounds = 0
        self._cycle, self._ledger.cycle = self._ledger.cycle, self._do_cycle
        self.thread = threading.Thread(target=self.run, daemon=True)

    def _do_cycle(self) -> None:
        self._cycle()
        with self._told:
            self._rounds += 1
            self._told.notify_all()

    def start(self) -> Watched:
        self.thread.start()
        return self

    def wait_rounds(self, count: int = 2) -> None:
        """Until it has looked so many times from now on; the first may be under way."""
        with self._told:
            wanted = self._rounds + count
        self._ledger.wake()
        with self._told:
            while self._rounds < wanted:
                assert self._told.wait(PATIENCE), "the worker looks no more"
                self._ledger.wake()

    def end(self) -> None:
        self.stop()
        self.thread.join(PATIENCE)
        assert not self.thread.is_alive()


@contextlib.contextmanager
def working(*args, **options) -> Iterator[Watched]:
    """A worker, as long as the block takes."""
    worker = Watched(*args, **options).start()
    try:
        yield worker
    finally:
        worker.end()


def put(app, *envelopes, **options) -> None:
    """One transaction that enqueues them."""
    mailer = Mailer(transport_from_url("memory:"), queue=app.queue, transaction_manager=app._tm)
    with app._tm:
        for envelope in envelopes:
            mailer.enqueue(envelope, **options)


def put_many(app, name: str, count: int, **options) -> list[str]:
    """So many messages of one recipient each; their recipients, in order."""
    envelopes = [note(f"{name}{n}") for n in range(count)]
    put(app, *envelopes, **options)
    return [envelope.recipients[0] for envelope in envelopes]


def wait_for(predicate: Callable[[], object], what: str) -> None:
    """Until it is true of what another process or the database has, which tell nobody."""
    end = time.monotonic() + PATIENCE
    while not predicate():
        assert time.monotonic() < end, what
        time.sleep(0.01)


def change(app, statement) -> None:
    """What a person or a broken disk does to the rows."""
    with app.engine.begin() as connection:
        connection.execute(statement)


def change_delivery(app, recipient: str, **values) -> None:
    change(
        app,
        schema.delivery.update().where(schema.delivery.c.recipient == recipient).values(**values),
    )


def another(app, **options) -> Queue:
    """The same queue, as another process has it."""
    url = app.engine.url.render_as_string(hide_password=False)
    return Queue(url, clock=app.queue.database._clock, **options)


def claim(app, limit: int = 64, *, token: int = 1, lease: float = 60.0, begun=False, **options):
    """Claim as a worker does, in a transaction of its own."""
    database = app.queue.database
    with database.write() as connection:
        now = database.now_ms(connection)
        works = claim_and_load(
            connection,
            token=token,
            now_ms=now,
            lease_ms=now + int(lease * 1000),
            limit=limit,
            **options,
        )
        if begun:
            claims.begin(connection, works)
    return works


def in_write(app, work: Callable[[sa.Connection, int], object]):
    """What `work` returns, in a transaction that writes; it gets the connection and the time."""
    database = app.queue.database
    with database.write() as connection:
        return work(connection, database.now_ms(connection))


def received(server) -> list[str]:
    """The recipients that a server has accepted mail for, in order."""
    return [recipient for message in server.messages for recipient in message.recipients]


class Heard(logging.Handler):
    """Waits for words in the log."""

    def __init__(self, name: str = "txmail.worker") -> None:
        super().__init__()
        self._logger = logging.getLogger(name)
        self._condition = threading.Condition()
        self.lines: list[str] = []

    def emit(self, record: logging.LogRecord) -> None:
        with self._condition:
            self.lines.append(record.getMessage())
            self._condition.notify_all()

    def wait_for(self, words: str) -> None:
        with self._condition:
            assert self._condition.wait_for(
                lambda: any(words in line for line in self.lines), PATIENCE
            ), self.lines

    def __enter__(self) -> Heard:
        self._logger.addHandler(self)
        return self

    def __exit__(self, *_: object) -> None:
        self._logger.removeHandler(self)


def commit_many(queue, key, *, threads, each, meanwhile=None) -> list[Exception]:
    """Commit so many mails in each of several threads; the errors.

    `key` makes idempotency keys of the numbers of thread and mail. `meanwhile` is called until the
    threads have ended.
    """
    errors = []

    def work(number):
        tm = transaction.TransactionManager()
        mailer = Mailer(transport_from_url("memory:"), queue=queue, transaction_manager=tm)
        for turn in range(each):
            try:
                mailer.enqueue(note(f"n{number}x{turn}"), idempotency_key=key(number, turn))
                tm.commit()
            except Exception as error:
                errors.append(error)
                tm.abort()

    working = [threading.Thread(target=work, args=(number,)) for number in range(threads)]
    for one in working:
        one.start()
    while meanwhile and any(one.is_alive() for one in working):
        meanwhile()
    for one in working:
        one.join()
    return errors
