"""What a scenario runs on: a mail server, a mailer, a ZODB and an SQLite database; all real.

`Setup` opens and measures them. `Shop` is the application: what it does in a transaction.
"""

from __future__ import annotations

import email
import email.policy
import re
import sqlite3
import time
from collections.abc import Iterator, Mapping
from contextlib import ExitStack, closing, contextmanager
from pathlib import Path
from typing import Any, Self

import transaction
import zope.sqlalchemy
from persistent.mapping import PersistentMapping
from sqlalchemy import ForeignKey, create_engine, event, insert
from sqlalchemy.orm import DeclarativeBase, Mapped, Session, mapped_column, sessionmaker
from ZODB.DB import DB
from ZODB.FileStorage import FileStorage

from ...common.ascii_text import ascii_upper
from ...mailer import mailer_from_settings
from ...message import Message
from ...queue.queue import Queue
from ...testing import ScriptedServer

#: What was measured, or is promised, by the words in which it is shown.
Values = Mapping[str, object]

#: Customers 1 to 50 are known to the shop.
CUSTOMERS = 50
SENDER = "shop@example.com"

# What `Setup.measure` measures, in the words in which it is shown.
MAILS = "mails at the server"
CONNECTIONS = "connections to the server"
EHLOS = "EHLO commands"
DATAS = "DATA commands"
ROWS = "invoices in SQLite"
OBJECTS = "invoices in the ZODB"

_NUMBER = re.compile(r"Invoice ([0-9]+)", re.ASCII)


class Base(DeclarativeBase):
    """The SQLite database."""


class Customer(Base):
    """A customer; `number` is all that a demonstration needs."""

    __tablename__ = "customer"

    number: Mapped[int] = mapped_column(primary_key=True)


class Invoice(Base):
    """An invoice. SQLite looks at COMMIT, not before, whether its customer exists."""

    __tablename__ = "invoice"

    number: Mapped[int] = mapped_column(primary_key=True)
    customer: Mapped[int] = mapped_column(
        ForeignKey(Customer.number, deferrable=True, initially="DEFERRED")
    )


def address(customer: int) -> str:
    """The address of a customer."""
    return f"buyer{customer}@example.com"


class Shop:
    """An application in one transaction; all three methods do nothing until it commits."""

    def __init__(self, session: Session, invoices: Any, mailer: Any) -> None:
        self.session = session
        self.invoices = invoices
        self.mailer = mailer

    def bill(self, number: int, customer: int | None = None) -> None:
        """Write invoice `number` into both databases and mail it to `customer`."""
        self.session.add(Invoice(number=number, customer=customer or number))
        self.keep(number)
        self.mail(number, customer)

    def keep(self, number: int) -> None:
        """Write an invoice into the ZODB alone."""
        self.invoices[number] = f"Invoice {number}"

    def mail(self, number: int, customer: int | None = None) -> None:
        """Send invoice `number`, when the transaction commits."""
        to = address(customer or number)
        self.mailer.send(Message(f"Invoice {number}", [to], f"Please pay invoice {number}."))


class Setup:
    """What one scenario runs on, in a folder of its own; a context that closes all of it.

    `catcher`
        The mail server, a `ScriptedServer`: it accepts and keeps every message, unless told
        otherwise.
    `manager`
        The transaction manager of the mailer and both databases.
    `sqlite_commits`
        When the shop's transactions reached SQLite's COMMIT, as `time.monotonic` seconds.
    `mailer`
        An ordinary mailer for the catcher's URL.

    Raises OSError if the folder, a database or the server cannot be opened.
    """

    def __init__(self, folder: Path) -> None:
        self.manager = transaction.TransactionManager(explicit=True)
        self.sqlite_commits: list[float] = []
        self._sqlite, self._zodb = folder / "shop.sqlite", folder / "shop.fs"
        self._queue = folder / "queue" / "mail.db"
        with ExitStack() as opened:
            folder.mkdir()
            self.catcher = opened.enter_context(ScriptedServer())
            settings = {"mail.url": self.catcher.url, "mail.default_sender": SENDER}
            self.mailer = mailer_from_settings(settings).bind(transaction_manager=self.manager)
            opened.callback(lambda: self.mailer.close())
            self._sessions = self._open_sqlite(opened)
            self._db = self._open_zodb(opened)
            self._opened = opened.pop_all()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *exc_info: object) -> None:
        self._opened.close()

    def open_queue(self) -> Queue:
        """From now on the mailer has a queue, in a database of its own. See `txmail.queue`."""
        settings = {
            "mail.url": self.catcher.url,
            "mail.queue_url": f"sqlite:///{self._queue}",
            "mail.default_sender": SENDER,
        }
        self.mailer.close()
        self.mailer = mailer_from_settings(settings).bind(transaction_manager=self.manager)
        queue = self.mailer.queue
        assert queue is not None
        return queue

    def _open_sqlite(self, opened: ExitStack) -> sessionmaker[Session]:
        engine = create_engine(f"sqlite:///{self._sqlite}")
        opened.callback(engine.dispose)
        event.listen(engine, "connect", _enforce_foreign_keys)
        with engine.begin() as connection:
            Base.metadata.create_all(connection)
            customers = [{"number": number} for number in range(1, CUSTOMERS + 1)]
            connection.execute(insert(Customer), customers)
        event.listen(engine, "commit", lambda _: self.sqlite_commits.append(time.monotonic()))
        sessions = sessionmaker(engine)
        zope.sqlalchemy.register(sessions, transaction_manager=self.manager)
        return sessions

    def _open_zodb(self, opened: ExitStack) -> Any:
        db = DB(FileStorage(str(self._zodb)))
        opened.callback(db.close)
        with db.transaction() as connection:
            connection.root()["invoices"] = PersistentMapping()
        return db

    # What an application does

    @contextmanager
    def shop(self) -> Iterator[Shop]:
        """A `Shop` whose session and ZODB connection follow `manager`, begun or not."""
        connection = self._db.open(self.manager)
        try:
            with self._sessions() as session:
                yield Shop(session, connection.root()["invoices"], self.mailer)
        finally:
            connection.close()

    @contextmanager
    def transaction(self) -> Iterator[Shop]:
        """A transaction: committed at the end; aborted if anything, the commit too, raises."""
        with self.shop() as shop:
            self.manager.begin()
            try:
                yield shop
                self.manager.commit()
            except BaseException:
                self.manager.abort()
                raise

    def rival_writes(self, number: int) -> None:
        """Commit an invoice to the ZODB as another process would, in a transaction of its own."""
        with self._db.transaction() as connection:
            connection.root()["invoices"][number] = "somebody else's"

    # What is measured, when all is over

    def measure(self) -> Values:
        """Look at the catcher and, through connections of their own, into both databases.

        Ends the connections first, so that nothing can arrive later.
        """
        self.mailer.close()
        self.catcher.wait_closed()
        connections = self.catcher.connections
        verbs = [ascii_upper(command.split(" ")[0]) for command in self.catcher.commands]
        return {
            MAILS: len(self.catcher.messages),
            CONNECTIONS: len(connections),
            EHLOS: verbs.count("EHLO"),
            DATAS: verbs.count("DATA"),
            ROWS: len(self.rows()),
            OBJECTS: len(self.objects()),
        }

    def mailed(self) -> list[int]:
        """The invoice numbers in the subjects of the mails that arrived, in their order."""
        subjects = (
            email.message_from_bytes(message.content, policy=email.policy.default)["Subject"]
            for message in self.catcher.messages
        )
        return [int(found[1]) for found in map(_NUMBER.fullmatch, subjects) if found]

    def rows(self) -> list[int]:
        """The invoice numbers in SQLite, read without SQLAlchemy."""
        with closing(sqlite3.connect(self._sqlite)) as connection:
            found = connection.execute("SELECT number FROM invoice ORDER BY number")
            return [number for (number,) in found]

    def objects(self) -> list[int]:
        """The invoice numbers in the ZODB, read from its file anew."""
        with closing(DB(FileStorage(str(self._zodb), read_only=True))) as db:
            connection = db.open(transaction.TransactionManager())
            return sorted(connection.root()["invoices"])


def _enforce_foreign_keys(connection: Any, _: object) -> None:
    connection.execute("PRAGMA foreign_keys = ON")
