"""A process that commits mail and can be killed anywhere, and what has to be true afterwards.

It is made by a `killing.Zygote`, commits `TRANSACTIONS` and says of each how that went.
`Bench.check` opens everything anew and looks at what is left.
"""

from __future__ import annotations

import contextlib
import os
import shutil
import tempfile
import time
from collections import Counter
from dataclasses import dataclass, field
from pathlib import Path

import sqlalchemy as sa
import transaction
import ZODB
import ZODB.FileStorage
import zope.sqlalchemy
from commits import note
from databases import Base, Item
from killing import CALLS, MEMORY, PATIENCE, Ended, Job, Zygote, serve, wait_forgotten
from sqlalchemy.orm import Session, sessionmaker

from txmail import Mailer, transport_from_url
from txmail.integrations.session_queue import session_queue
from txmail.integrations.sqlalchemy import SqlWitness, witness_metadata
from txmail.integrations.zodb import ZodbWitness
from txmail.queue.process_identity import DEAD_AFTER_S
from txmail.queue.queue import Queue
from txmail.queue.schema import batch, delivery, message, metadata

ALONE = "mail alone"
ZODB_KIND = "ZODB"
SQLITE = "SQLite"
SQLITE_SESSION = "SQLite, same database"
POSTGRESQL_QUEUE = "ZODB, queue in PostgreSQL"
TWO_PHASE = "two-phase PostgreSQL"
TWO_PHASE_SESSION = "two-phase PostgreSQL, same database"

POSTGRESQL_KINDS = (POSTGRESQL_QUEUE, TWO_PHASE, TWO_PHASE_SESSION)
SESSION_KINDS = (SQLITE_SESSION, TWO_PHASE_SESSION)
KINDS = (ALONE, ZODB_KIND, SQLITE, SQLITE_SESSION, *POSTGRESQL_KINDS)


@dataclass(frozen=True)
class Mail:
    """One message of a transaction."""

    name: str
    queued: bool
    recipients: int = 1
    key: bool = False

    @property
    def addresses(self) -> list[str]:
        return [f"{self.name}{number}@example.net" for number in range(self.recipients)]


#: In their order; one is refused by somebody who votes before the mail.
TRANSACTIONS: dict[str, tuple[Mail, ...]] = {
    "queued": (Mail("a", True, 2), Mail("b", True)),
    "sent": (Mail("c", False), Mail("d", False, 2)),
    "refused": (Mail("e", False), Mail("f", True)),
    "mixed": (Mail("g", True, key=True), Mail("h", False), Mail("i", True)),
    "one sent": (Mail("j", False),),
    "one queued": (Mail("k", True),),
}
REFUSED = "refused"


@dataclass(frozen=True, kw_only=True)
class Committing(Job):
    """A job: to commit `TRANSACTIONS` in an application."""

    kind: str
    #: of the mail server, and of PostgreSQL where it is needed
    server: str
    database: str = ""
    transactions: tuple[str, ...] = tuple(TRANSACTIONS)
    #: of the queue's own connections
    synchronous: str = ""
    #: True to have the process make the queue
    fresh: bool = False


# -- the application


class Application:
    """The databases, the queue and the mailer of a job, as the process and its restart have them.

    `mark` writes into the application's database within the current transaction, and `marks` is
    what is there; it has none for mail alone. Its clock is `later` seconds ahead.
    """

    def __init__(self, job: Committing, later: float = 0.0) -> None:
        clock = (lambda: time.time() + later) if later else None
        self.job = job
        self.tm = transaction.TransactionManager()
        self._end = contextlib.ExitStack()
        self.engine: sa.Engine | None = None
        own = f"sqlite:///{job.folder}/mail.db"
        if job.kind in (ZODB_KIND, POSTGRESQL_QUEUE):
            self._open_zodb()
            url = own if job.kind == ZODB_KIND else job.database
            self.queue = Queue(url, witnesses=[ZodbWitness(self.db)], clock=clock)
        elif job.kind == ALONE:
            self.queue = Queue(own, clock=clock)
        else:
            self._open_sql()
            if job.kind in SESSION_KINDS:
                self.queue = session_queue(self.session, engine=self.engine, clock=clock)
            else:
                witness = SqlWitness(self.session, engine=self.engine)
                self.queue = Queue(own, witnesses=[witness], clock=clock)
        self._end.callback(self.queue.close)
        self.mailer = Mailer(
            transport_from_url(job.server), queue=self.queue, transaction_manager=self.tm
        )

    def _open_zodb(self) -> None:
        self.db = ZODB.DB(ZODB.FileStorage.FileStorage(f"{self.job.folder}/Data.fs"))
        self._end.callback(self.db.close)
        self.connection = self.db.open(transaction_manager=self.tm)

    def _open_sql(self) -> None:
        two_phase = self.job.kind in (TWO_PHASE, TWO_PHASE_SESSION)
        url = self.job.database if two_phase else f"sqlite:///{self.job.folder}/items.db"
        # No pool: see `databases.SqlDatabase`.
        self.engine = sa.create_engine(url, poolclass=sa.NullPool)
        self.session: Session = sessionmaker(self.engine, twophase=two_phase)()
        zope.sqlalchemy.register(self.session, transaction_manager=self.tm)

    def mark(self, value: str) -> None:
        if self.engine is not None:
            self.session.add(Item(name=value))
            self.session.flush()
        elif self.job.kind != ALONE:
            self.connection.root()[value] = True

    def marks(self) -> set[str] | None:
        if self.job.kind == ALONE:
            return None
        if self.engine is None:
            return set(self.connection.root())
        with self.engine.connect() as connection:
            return set(connection.scalars(sa.select(Item.name)))

    def prepared(self) -> list[str]:
        """The two-phase transactions that wait for their coordinator."""
        if self.job.kind not in (TWO_PHASE, TWO_PHASE_SESSION):
            return []
        assert self.engine is not None
        with self.engine.connect() as connection:
            return list(connection.scalars(sa.text("SELECT gid FROM pg_prepared_xacts")))

    def coordinate(self, gids: list[str], *, commit: bool) -> None:
        """Decide about two-phase transactions that were left prepared."""
        assert self.engine is not None
        word = "COMMIT" if commit else "ROLLBACK"
        with self.engine.connect().execution_options(isolation_level="AUTOCOMMIT") as connection:
            for gid in gids:
                connection.execute(sa.text(f"{word} PREPARED '{gid}'"))

    def make(self) -> None:
        """Have all tables, and nothing in them."""
        if self.engine is not None:
            tables = [Base.metadata, witness_metadata]
            if self.job.kind in SESSION_KINDS:
                tables.append(metadata)
            for made in tables:
                made.create_all(self.engine)
        if self.job.kind not in SESSION_KINDS:
            if self.job.kind == POSTGRESQL_QUEUE:
                engine = sa.create_engine(self.job.database, poolclass=sa.NullPool)
                metadata.create_all(engine)
            self.queue.counts()

    def close(self) -> None:
        self.tm.abort()
        if self.engine is not None:
            self.session.close()
        elif self.job.kind != ALONE:
            self.connection.close()
        self.mailer.close()
        self._end.close()


class Refusal(Exception):
    """The word of a `Refuser`."""


class Refuser:
    """Votes after the databases and before the mail, and says no."""

    def sortKey(self) -> str:
        return "zz refuses"

    def tpc_vote(self, trans) -> None:
        raise Refusal

    def abort(self, trans) -> None:
        """Nothing to do."""

    tpc_begin = commit = tpc_finish = tpc_abort = abort


def transact(application: Application, name: str) -> None:
    """Commit one of `TRANSACTIONS`."""
    tm, mailer = application.tm, application.mailer
    begun = tm.begin()
    application.mark(name)
    for mail in TRANSACTIONS[name]:
        envelope = note(f"{application.job.run}-{mail.name}", recipients=mail.addresses)
        if mail.queued:
            mailer.enqueue(envelope, idempotency_key=mail.name if mail.key else None)
        else:
            mailer.send(envelope)
    if name == REFUSED:
        begun.join(Refuser())
    tm.commit()


def work(job: Committing) -> None:
    """What the process does: each transaction, and a line that says how it went."""
    said = os.open(job.said, os.O_WRONLY | os.O_APPEND | os.O_CREAT)
    application = Application(job)
    if job.synchronous:
        engine = application.queue.database.engine
        sa.event.listen(engine, "checkout", lambda c, *_: _set_synchronous(c, job.synchronous))
    for name in job.transactions:
        try:
            transact(application, name)
        except Exception as error:
            os.write(said, f"failed: {name}: {type(error).__name__}\n".encode())
            application.tm.abort()
            application.queue.flush(PATIENCE)  # or it would be in the way of the next at random
        else:
            os.write(said, f"acknowledged: {name}\n".encode())
    application.close()


def _set_synchronous(connection, how: str) -> None:
    connection.execute(f"PRAGMA synchronous = {how}")


# -- from the outside


class Committed(Ended):
    """How a process ended that was to commit."""

    job: Committing

    @property
    def acknowledged(self) -> list[str]:
        return self.said("acknowledged: ")

    @property
    def failed(self) -> list[str]:
        return [line.partition(":")[0] for line in self.said("failed: ")]

    @property
    def in_flight(self) -> str | None:
        """The transaction about which nothing has been said."""
        told = [*self.acknowledged, *self.failed]
        return next((name for name in self.job.transactions if name not in told), None)


class Bench:
    """Runs jobs of one kind, each in a folder of its own, and checks what they leave."""

    def __init__(self, zygote: Zygote, server, kind: str, database: str = "") -> None:
        self.zygote, self.server, self.kind, self.database = zygote, server, kind, database
        self._base = Path(tempfile.mkdtemp(prefix="txmkill", dir=MEMORY))
        self._template = self._base / "template"
        self._count = 0
        if kind in POSTGRESQL_KINDS:
            self._engine = sa.create_engine(database, poolclass=sa.NullPool)

    def close(self) -> None:
        shutil.rmtree(self._base)

    def job(self, **options) -> Committing:
        """A job in new databases, in which all the tables are."""
        if not self._template.exists():
            self._template.mkdir()
            made = Application(self._job(self._template))
            made.make()
            made.close()
        if self.kind in POSTGRESQL_KINDS:
            self._empty()
        self._count += 1
        folder = self._base / f"r{self._count}"
        made = shutil.ignore_patterns("mail.db*" if options.get("fresh") else "")
        shutil.copytree(self._template, folder, ignore=made)
        return self._job(folder, **options)

    def _job(self, folder: Path, **options) -> Committing:
        made = {"folder": str(folder), "server": self.server.url, "database": self.database}
        return Committing(kind=self.kind, **made, **options)

    def _empty(self) -> None:
        with self._engine.connect().execution_options(isolation_level="AUTOCOMMIT") as connection:
            for gid in connection.scalars(sa.text("SELECT gid FROM pg_prepared_xacts")).all():
                connection.execute(sa.text(f"ROLLBACK PREPARED '{gid}'"))
            there = set(sa.inspect(connection).get_table_names())
            of_ours = [*Base.metadata.tables, *witness_metadata.tables, *metadata.tables]
            names = [name for name in of_ours if name in there and name != "txmail_version"]
            connection.execute(sa.text(f"TRUNCATE {', '.join(names)}"))

    def run(self, **options) -> Committed:
        """Run a job. Options are those of `Committing`, and `inject`."""
        inject = options.pop("inject", "")
        trace = options.pop("trace", CALLS)
        return self.zygote.run(self.job(**options), trace, inject)

    def settle(self) -> None:
        """Wait until nobody does anything any more for a process that has ended."""
        self.server.wait_closed(PATIENCE)
        if self.kind in POSTGRESQL_KINDS:
            wait_forgotten(self._engine)

    def check(self, ended: Committed, *, commit: bool = True) -> Left:
        """Start anew, have all decided, and check that nothing is lost, torn or sent for nothing.

        `commit` is what the coordinator makes of transactions that were left prepared.
        """
        self.settle()
        left = self._restarted(ended, commit)
        if "sending" in left.batches and self.kind in SESSION_KINDS:
            # It had no time to say that it lives, and so nobody knows yet that it is dead.
            left = self._restarted(ended, commit, later=DEAD_AFTER_S + 1)
        left.check()
        assert not left.faults, "\n".join([*left.faults, *ended.lines, ended.log[-2000:]])
        shutil.rmtree(ended.job.folder)
        return left

    def _restarted(self, ended: Committed, commit: bool, later: float = 0.0) -> Left:
        application = Application(ended.job, later)
        try:
            if gids := application.prepared():
                assert len(gids) == 1
                # Nobody who knows of a refusal commits.
                application.coordinate(gids, commit=commit and ended.in_flight != REFUSED)
            left = self._left(application, ended)
            assert application.queue.resolve() == []
        finally:
            application.close()
        return left

    def _left(self, application: Application, ended: Committed) -> Left:
        for decision in application.queue.resolve():
            if decision.state == "unknown":
                # Nobody but a person knows what became of a `Refuser`.
                assert ended.job.kind == ALONE, decision
                application.queue.decide(decision.batch, committed=False, actor="test")
        with application.queue.database.read() as connection:
            batches = list(connection.scalars(sa.select(batch.c.state)))
            rows = connection.execute(
                sa.select(
                    message.c.message_id,
                    delivery.c.recipient,
                    delivery.c.state,
                    delivery.c.duplicate,
                    delivery.c.due,
                    batch.c.state,
                )
                .join_from(delivery, message, message.c.id == delivery.c.message)
                .join(batch, batch.c.id == message.c.batch, isouter=True)
            ).all()
        return Left(ended, application.marks(), batches, self._held(ended), _by_mail(rows))

    def _held(self, ended: Committed) -> Counter[str]:
        """How many copies of each mail of the job the server has."""
        senders = [received.sender.partition("@")[0] for received in self.server.messages]
        mine = f"{ended.job.run}-"
        return Counter(s.removeprefix(mine) for s in senders if s.startswith(mine))


@dataclass(frozen=True)
class Row:
    """One delivery."""

    recipient: str
    state: str
    duplicate: int
    due: int | None
    batch: str | None


def _by_mail(rows) -> dict[str, list[Row]]:
    found: dict[str, list[Row]] = {}
    for message_id, *rest in rows:
        name = message_id[1:].partition("@")[0].rpartition("-")[2]
        found.setdefault(name, []).append(Row(*rest))
    return found


@dataclass
class Left:
    """What is there after a process has ended and all has been decided."""

    ended: Committed
    marks: set[str] | None
    batches: list[str]
    #: copies at the server, by mail
    held: Counter[str]
    rows: dict[str, list[Row]]
    faults: list[str] = field(default_factory=list)

    def check(self) -> None:
        """Collect what may not be."""
        for state in self.batches:
            self._want(state in ("published", "discarded"), f"a batch is still {state}")
        for name in self.ended.job.transactions:
            committed = self.committed(name)
            acknowledged = name in self.ended.acknowledged
            self._want(committed or not acknowledged, f"{name} was acknowledged and is gone")
            self._want(name != REFUSED or not committed, f"{name} is there")
            for mail in TRANSACTIONS[name]:
                self._want(self.held[mail.name] <= 1, f"{mail.name} is at the server twice")
                if committed:
                    self._check_committed(name, mail)
                else:
                    self._check_gone(name, mail)
            if self.marks is None and not committed:
                held = [self.held[mail.name] for mail in TRANSACTIONS[name]]
                self._want(all(held) or not any(held), f"{name} is torn: {held}")

    def committed(self, name: str) -> bool:
        """Whether a transaction has committed; of mail alone, whether any of it has."""
        if self.marks is not None:
            return name in self.marks
        live = ("ready", "deferred", "sent", "in_doubt", "sending")
        return any(r.state in live for m in TRANSACTIONS[name] for r in self.rows.get(m.name, ()))

    def _check_committed(self, name: str, mail: Mail) -> None:
        rows = self.rows.get(mail.name, [])
        found = sorted(row.recipient for row in rows)
        self._want(found == mail.addresses, f"{mail.name} of {name} is there for {found} only")
        for row in rows:
            # A witness knows nothing of what was sent: that is in doubt, and says so.
            doubtful = row.state == "in_doubt" and row.duplicate and row.due is not None
            if mail.queued:
                right = row.state == "ready" and not row.duplicate
            elif row.state == "sent":
                right = self.held[mail.name] == 1
            elif name in self.ended.acknowledged:
                right = False
            else:
                right = bool(doubtful) and name in (self.ended.in_flight, *self.ended.failed)
            self._want(right, f"{row}, of {name}, and the server has it {self.held[mail.name]}x")

    def _check_gone(self, name: str, mail: Mail) -> None:
        held = self.held[mail.name]
        # What was sent before the transaction failed cannot be called back.
        may_be_out = not mail.queued and name in (self.ended.in_flight, *self.ended.failed)
        self._want(not held or (may_be_out and name != REFUSED), f"{mail.name} of {name} is out")
        for row in self.rows.get(mail.name, ()):
            kept = row.state == "sent" and held == 1
            thrown_away = row.state in ("staged", "cancelled") and row.batch == "discarded"
            self._want(kept or thrown_away, f"{row}, of {name}, which has not committed")

    def _want(self, right: bool, fault: str) -> None:
        if not right:
            self.faults.append(fault)


if __name__ == "__main__":
    serve(Committing, work)
