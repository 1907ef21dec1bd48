"""A worker that can be killed anywhere, and what has to be true afterwards.

It is made by a `killing.Zygote` and has something of everything to do: see `MAILS`. Then another
worker, to whom it is an hour later, finds what the first has left, and a third one, after another
hour, tries again what is to be tried again. `Bench.check` says what may not be after each.
"""

from __future__ import annotations

import shutil
import tempfile
from collections import Counter
from contextlib import closing, contextmanager
from dataclasses import dataclass
from pathlib import Path

import sqlalchemy as sa
import transaction
from clocks import START, Clock
from commits import note
from killing import CALLS, MEMORY, PATIENCE, Ended, Job, Zygote, serve, wait_forgotten
from many import CHUNKING
from queues import OWN_POSTGRESQL, OWN_SQLITE, Application
from workers import put

from txmail import transport_from_url
from txmail.queue import schema
from txmail.queue.database import listener as listening
from txmail.queue.queue import Queue
from txmail.testing import ScriptedServer
from txmail.testing.server import EXTENSIONS
from txmail.worker import run_once
from txmail.worker.router import Route

#: What a server offers: messages in a stream, or one behind the other.
OFFERS = {"stream": CHUNKING, "pipeline": EXTENSIONS}
#: Few in a claim, so that there are several.
BATCH = 4
#: Seconds between the first worker and the second, and between that and the third. A lease and the
#: pause before what is in doubt or deferred is tried again are over then, and a message is not.
HOUR = 3600.0
#: Who is told to come again, and who is not there.
LATER, NOBODY = "later@example.net", "nobody@example.net"


@dataclass(frozen=True)
class Mail:
    """One message, to these recipients, and what becomes of it."""

    recipients: tuple[str, ...]
    priority: str = "normal"
    #: True if the server does not take it at first
    deferred: bool = False
    #: True if its time is over before anybody looks at it
    expired: bool = False

    def state(self, recipient: str, *, early: bool) -> str:
        """Of a delivery that nothing has happened to; `early`, when there is "later" still."""
        if self.expired:
            return "expired"
        if recipient == NOBODY:
            return "failed"
        return "deferred" if early and (self.deferred or recipient == LATER) else "sent"


#: By the name that its sender and its Message-ID have. The server of the second route is not there
#: for the first worker: what waits for it is given back.
MAILS = {
    "one": Mail(("one@example.net",)),
    "two": Mail(("two@example.net", "three@example.net")),
    "greylisted": Mail(("four@example.net", LATER)),
    "refused": Mail((NOBODY,)),
    "partly": Mail(("five@example.net", NOBODY)),
    "full": Mail(("six@example.net",), deferred=True),
    "late": Mail(("seven@example.net",), expired=True),
    "urgent": Mail(("eight@example.net",), "high"),
    "hurried": Mail(("nine@example.net", "ten@example.net"), "high"),
    "other": Mail(("one@other.example",)),
    "another": Mail(("two@other.example",)),
    "third": Mail(("three@other.example",)),
    "bulk": Mail(("eleven@example.net",), "bulk"),
}

#: A recipient of a message, by the message's name.
Key = tuple[str, str]


@dataclass(frozen=True, kw_only=True)
class Working(Job):
    """A job: to send what is in a queue."""

    queue: str
    #: the mail servers of the two routes
    server: str
    other: str


def routes(server: str, other: str) -> list[Route]:
    """Of the first worker and of those after it."""
    return [
        Route.to("other", transport_from_url(other), domains=["other.example"]),
        Route.to("default", transport_from_url(server)),
    ]


def work(job: Working) -> None:
    """What the process does."""
    listening.PATIENCE = PATIENCE  # for the thread that strace attaches to
    with closing(Queue(job.queue, clock=Clock(START + 1))) as queue, attended(queue):
        run_once(queue, routes(job.server, job.other), batch=BATCH)


@contextmanager
def attended(queue: Queue):
    """Hear of new mail meanwhile, as a worker does that goes on when nothing is due."""

    def listener() -> None:
        """The run looks by itself."""

    queue.subscribe(listener)
    try:
        yield
    finally:
        queue.unsubscribe(listener)


@contextmanager
def servers(extensions):
    """The servers of the two routes, as the first worker finds them."""
    with ScriptedServer(extensions=extensions) as server, ScriptedServer() as other:
        refuse(server)
        server.on("RCPT", "450 4.2.0 come again", matching=f"<{LATER}>", times=None)
        server.on(".", "452 4.3.1 no room", matching="full@example.com", times=None)
        other.on("connect", "421 4.3.2 closed", times=None)
        yield server, other


def refuse(server) -> None:
    server.clear()
    server.refuse(NOBODY)


@dataclass(frozen=True)
class Row:
    """One delivery."""

    state: str
    begun: int
    duplicate: int
    due: int | None
    reply: str | None


class Bench:
    """Runs jobs with a queue in a file of SQLite or in the PostgreSQL at `database`."""

    def __init__(self, zygote: Zygote, offer: str, database: str = "") -> None:
        self.zygote, self.database, self._offer = zygote, database, offer
        self._base = Path(tempfile.mkdtemp(prefix="txmkill", dir=MEMORY))
        self._count = 0
        self._url = database or f"sqlite:///{self._base}/template/mail.db"
        self._make()

    def _make(self) -> None:
        """Have a queue with all of `MAILS`."""
        (self._base / "template").mkdir()
        if self.database:
            schema.metadata.create_all(sa.create_engine(self._url, poolclass=sa.NullPool))
        self._fill()
        self._application(self._url).watch_moves()

    def _fill(self) -> None:
        with closing(Queue(self._url, clock=Clock())) as queue:
            application = self._application(self._url, queue)
            for name, mail in MAILS.items():
                envelope = note(name, recipients=mail.recipients)
                expires = Clock().at(0.5) if mail.expired else None
                put(application, envelope, priority=mail.priority, expires=expires)

    def _application(self, url: str, queue: Queue | None = None) -> Application:
        engine = sa.create_engine(url, poolclass=sa.NullPool)
        kind = OWN_POSTGRESQL if self.database else OWN_SQLITE
        return Application(kind, queue, None, engine, None, transaction.TransactionManager())

    def _refill(self) -> None:
        engine = sa.create_engine(self._url, poolclass=sa.NullPool)
        with engine.begin() as connection:
            for table in reversed(schema.metadata.sorted_tables):
                if table is not schema.version:
                    connection.execute(table.delete())
        self._fill()

    def close(self) -> None:
        shutil.rmtree(self._base)

    def run(self, **options) -> Left:
        """Run a job. Options are those of `Working`, `trace` and `inject`."""
        inject = options.pop("inject", "")
        trace = options.pop("trace", CALLS)
        self._count += 1
        folder = self._base / f"r{self._count}"
        if self.database:
            self._refill()
            folder.mkdir()
        else:
            shutil.copytree(self._base / "template", folder)
        url = self.database or f"sqlite:///{folder}/mail.db"
        with servers(OFFERS[self._offer]) as (server, other):
            made = {"queue": url, "server": server.url, "other": other.url}
            ended = self.zygote.run(Working(folder=str(folder), **made, **options), trace, inject)
            left = Left(ended, self._application(url), server, other)
            try:
                left.look()
            except AssertionError as fault:
                fault.add_note(ended.log[-2000:])
                raise
        shutil.rmtree(folder)
        return left


class Left:
    """What there is after a worker has ended; `look` has others go on, and says what may not be."""

    def __init__(self, ended: Ended, application: Application, server, other) -> None:
        self.ended = ended
        self.killed, self.log = ended.killed, ended.log
        self.application = application
        self._servers = server, other
        #: what it had begun with and has told nobody of
        self.begun: set[Key] = set()

    def look(self) -> None:
        for server in self._servers:
            server.wait_closed(PATIENCE)
        if self.application.kind == OWN_POSTGRESQL:
            wait_forgotten(self.application.engine)
        server, other = self._servers
        self._check_left()
        before = self.copies()
        other.clear()
        self._work(HOUR)
        self._check_found(before)
        refuse(server)
        self._work(2 * HOUR)
        self._check_end(before)
        assert self.application.illegal_moves() == []

    def _work(self, later: float) -> None:
        url = self.application.engine.url.render_as_string(hide_password=False)
        with closing(Queue(url, clock=Clock(START + later))) as queue:
            made = routes(*(server.url for server in self._servers))
            run_once(queue, made)
        for route in made:
            route.transport.close()
        for server in self._servers:
            server.wait_closed(PATIENCE)

    # -- what there is

    def rows(self) -> dict[Key, Row]:
        d, m = schema.delivery.c, schema.message.c
        found = self.application.read(
            sa.select(m.message_id, d.recipient, d.state, d.begun, d.duplicate, d.due, d.reply)
            .select_from(schema.delivery)
            .join(schema.message, m.id == d.message)
        )
        return {(row[0][1:].partition("@")[0], row[1]): Row(*row[2:]) for row in found}

    def copies(self) -> Counter[Key]:
        """How often the servers have it, with all the octets that were enqueued each time."""
        found: Counter[Key] = Counter()
        for server in self._servers:
            for message in server.messages:
                name = message.sender.partition("@")[0]
                assert message.content == note(name).content, f"{name} has changed"
                found.update((name, recipient) for recipient in message.recipients)
        return found

    # -- what has to be

    def _check_left(self) -> None:
        """Right after the first: what the server has is ``sent``, or was begun."""
        rows, copies = self.rows(), self.copies()
        assert rows.keys() == {(name, r) for name, mail in MAILS.items() for r in mail.recipients}
        assert copies.keys() <= rows.keys()
        for key, row in rows.items():
            name, recipient = key
            assert not row.duplicate, (key, row)
            if row.begun:
                assert row.state == "sending", (key, row)
                assert copies[key] <= 1, (key, row)
                self.begun.add(key)
            else:
                assert copies[key] == (row.state == "sent"), (key, row)
                over = MAILS[name].state(recipient, early=True)
                if self.killed:
                    assert row.state in ("ready", "sending", over), (key, row)
                else:
                    given_back = recipient.endswith("@other.example")
                    assert row.state == ("ready" if given_back else over), (key, row)

    def _check_found(self, before: Counter[Key]) -> None:
        """After the second: what was begun is in doubt, and nothing else; all else is sent."""
        copies = self.copies()
        for key, row in self.rows().items():
            name, recipient = key
            if key in self.begun:
                assert (row.state, row.duplicate) == ("in_doubt", 1), (key, row)
                assert row.due is not None, (key, row)
                assert row.due > (START + HOUR) * 1000, (key, row)
                assert "gone" in (row.reply or ""), (key, row)
                assert copies[key] == before[key], (key, row)
            else:
                assert row.state == MAILS[name].state(recipient, early=True), (key, row)
                assert not row.duplicate, (key, row)
                assert copies[key] == (row.state == "sent"), (key, row)

    def _check_end(self, before: Counter[Key]) -> None:
        """After the third: all is over, and who may have it twice is marked."""
        copies = self.copies()
        for key, row in self.rows().items():
            name, recipient = key
            assert row.state == MAILS[name].state(recipient, early=False), (key, row)
            assert not row.begun, (key, row)
            assert row.duplicate == (key in self.begun), (key, row)
            more = before[key] if key in self.begun else 0
            assert copies[key] == (row.state == "sent") + more, (key, row)


if __name__ == "__main__":
    serve(Working, work)
