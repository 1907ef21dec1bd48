"""A process with a queue that can be killed at any step, and what somebody else sees of its mail.

A step is whatever leaves a trace outside of the process, or follows one: a transaction of the
queue, a session opened and asked, each outcome that it hands out, a witness's note, a phase of
another data manager. A process that was killed there writes nothing any more, whatever its handlers
still try; what it had open (a transaction of a database, a connection to the server) ends as the
operating system would end it. Its row in the queue becomes that of a process that is not there.
"""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Callable, Iterable
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field

import sqlalchemy as sa
from databases import Recorder
from zope.interface import implementer

from txmail.exceptions import QueueUnavailable
from txmail.interfaces import ISession, ITransport, IWitness
from txmail.queue.background import Background
from txmail.queue.process_identity import process_id

#: states of a delivery of which somebody will try to send it
PROMISED = frozenset(["ready", "sending", "deferred"])


class Killed(BaseException):
    """The process ends here."""


class Life:
    """One process, from its start to its end: counts steps, and dies at the one it was told."""

    def __init__(self) -> None:
        self.dead = False
        #: steps until it dies; None is never
        self.dies_in: int | None = None
        #: what goes wrong with the next writes of the queue: "", "before" or "after" the commit
        self.failures: list[str] = []

    def step(self) -> None:
        """Die here, if it is time; raises `Killed`, also ever after."""
        if not self.dead and self.dies_in is not None:
            self.dies_in -= 1
            self.dead = self.dies_in < 0
        if self.dead:
            raise Killed

    def attach(self, queue) -> None:
        """Have `queue` be this process's, and do in the background only what it is told to."""
        write = queue.database.write

        @contextmanager
        def mortal(*args, **options):
            self.step()
            failure = self.failures.pop(0) if self.failures else ""
            if failure == "before":
                raise QueueUnavailable("the disk was pulled out")
            with write(*args, **options) as connection:
                yield connection
                self.step()
            if failure == "after":
                raise QueueUnavailable("the disk was pulled out at the last moment")
            self.step()

        queue.database.write = mortal
        queue.host.background = Later(self)


class Later(Background):
    """What is to be done in the background is done when it is waited for."""

    def __init__(self, life: Life) -> None:
        super().__init__("a test", lambda: None, lambda: False)
        self._life = life
        self.tasks: list[Callable[[], object]] = []

    def do(self, task) -> None:
        """See `Background`."""
        self.tasks.append(task)

    def start(self) -> None:
        """See `Background`: there are no rounds here."""

    def flush(self, timeout=None) -> bool:
        """See `Background`."""
        if self._life.dead:
            self.tasks.clear()
        while self.tasks:
            with suppress(QueueUnavailable):
                self.tasks[0]()
                del self.tasks[0]
        return True


@implementer(ITransport)
class MortalTransport:
    """Another transport, used by a process that can die."""

    def __init__(self, transport, life: Life) -> None:
        self._transport = transport
        self._life = life
        self.name = transport.name
        self.asks_server = transport.asks_server

    def open(self, **options):
        """See `ITransport`."""
        self._life.step()
        return MortalSession(self._transport.open(**options), self._life)

    def close(self) -> None:
        """See `ITransport`."""
        self._transport.close()


@implementer(ISession)
class MortalSession:
    """Another session, used by a process that can die."""

    def __init__(self, session, life: Life) -> None:
        self._session = session
        self._life = life
        self.host = session.host

    fresh = property(lambda self: self._session.fresh)
    restartable = property(lambda self: self._session.restartable)

    def preflight(self, envelopes, **options):
        """See `ISession`."""
        self._life.step()
        return self._session.preflight(envelopes, **options)

    def send(self, envelopes, **options):
        """See `ISession`."""
        self._life.step()
        for outcome in self._session.send(envelopes, **options):
            self._life.step()
            yield outcome
        self._life.step()

    def unsettled(self):
        """See `ISession`."""
        return self._session.unsettled()

    def close(self, *, dirty: bool = False) -> None:
        """See `ISession`."""
        self._session.close(dirty=dirty or self._life.dead)


@implementer(IWitness)
class MortalWitness:
    """Another witness, used by a process that can die."""

    def __init__(self, witness, life: Life) -> None:
        self._witness = witness
        self._life = life
        self.name = witness.name

    def begin(self, transaction, batch) -> None:
        """See `IWitness`."""
        self._witness.begin(transaction, batch)

    def note(self, transaction, transaction_manager, batch):
        """See `IWitness`."""
        self._life.step()
        return self._witness.note(transaction, transaction_manager, batch)

    def ask(self, batch, noted):
        """See `IWitness`."""
        return self._witness.ask(batch, noted)


def other(life: Life, key: str, fails: str = "") -> Recorder:
    """Somebody else who takes part, under the sort key `key`; raises `Failure` in `fails`."""
    phases = ("begin", "commit", "vote", "finish")
    return Recorder(key, fails=fails, do=dict.fromkeys(phases, life.step))


@dataclass(frozen=True)
class Seen:
    """One delivery, as somebody who reads the tables sees it."""

    #: of the message's row
    id: int
    message: str
    recipient: str
    state: str
    due: int | None
    duplicate: bool
    reply: str | None
    key: str | None
    content: bytes

    @property
    def promised(self) -> bool:
        """True if it will be sent, or sent again, without anybody's doing anything."""
        return self.state in PROMISED or (self.state == "in_doubt" and self.due is not None)


@dataclass(frozen=True)
class SeenBatch:
    """One batch, with the Message-IDs that are in it."""

    number: int
    state: str
    process: str | None
    reason: str | None
    messages: frozenset[str] = field(default=frozenset())


_DELIVERIES = sa.text(
    "SELECT m.id, m.message_id, d.recipient, d.state, d.due, d.duplicate, d.reply,"
    " m.idempotency_key, m.content FROM txmail_delivery d"
    " LEFT JOIN txmail_message m ON m.id = d.message ORDER BY d.id"
)
_BATCHES = sa.text(
    "SELECT b.id, b.state, b.process, b.reason, m.message_id FROM txmail_batch b"
    " LEFT JOIN txmail_message m ON m.batch = b.id ORDER BY b.created, b.id"
)


class Reader:
    """Reads the tables over connections of its own."""

    def __init__(self, engine: sa.Engine) -> None:
        self.engine = engine

    def deliveries(self) -> list[Seen]:
        """All there are."""
        with self.engine.connect() as connection:
            return [
                Seen(*row[:5], bool(row[5]), *row[6:8], bytes(row[8] or b""))
                for row in connection.execute(_DELIVERIES)
            ]

    def batches(self) -> list[SeenBatch]:
        """All there are."""
        with self.engine.connect() as connection:
            rows = connection.execute(_BATCHES).all()
        messages: dict[tuple, set[str]] = {}
        for *what, message in rows:
            messages.setdefault(tuple(what), set()).update([message] if message else [])
        return [SeenBatch(*what, frozenset(found)) for what, found in messages.items()]

    def bury(self, name: str) -> None:
        """What this process has written was written by one that is dead, and is called `name`."""
        with self.engine.begin() as connection:
            connection.execute(
                sa.text(
                    "UPDATE txmail_process SET id = :name, pid = :pid, started = 1 WHERE id = :mine"
                ),
                {"name": name, "pid": dead_pid(), "mine": process_id()},
            )
            connection.execute(
                sa.text("UPDATE txmail_batch SET process = :name WHERE process = :mine"),
                {"name": name, "mine": process_id()},
            )


_dead: list[int] = []


def dead_pid() -> int:
    """The number of a process that was there and is no more."""
    if not _dead:
        child = subprocess.Popen([sys.executable, "-c", ""])
        child.wait()
        _dead.append(child.pid)
    return _dead[0]


def arrived(messages: Iterable) -> dict[tuple[bytes, str], int]:
    """How often each content has arrived for each recipient at a `ScriptedServer`."""
    found: dict[tuple[bytes, str], int] = {}
    for message in messages:
        for recipient in message.recipients:
            key = (message.content, recipient)
            found[key] = found.get(key, 0) + 1
    return found
