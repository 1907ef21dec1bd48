"""Queues of every kind, each beside the database of an application, and what is in them.

Each has triggers that note every move of a delivery or a batch that `txmail.queue.states` does not
allow; at the end of a test there must be none.
"""

from __future__ import annotations

import contextlib
import socket
import threading
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
import sqlalchemy as sa
from databases import POSTGRESQL, SQLITE, TWO_PHASE, SqlDatabase

from txmail import Mailer, transport_from_url
from txmail.integrations.session_queue import session_queue
from txmail.integrations.sqlalchemy import SqlWitness, witness_metadata
from txmail.queue import schema
from txmail.queue.queue import Queue
from txmail.queue.states import BATCH_MOVES, MOVES, BatchState, State

OWN_SQLITE = "a file of its own"
OWN_POSTGRESQL = "a PostgreSQL of its own"
IN_SQLITE = "the session of SQLite"
IN_POSTGRESQL = "the session of PostgreSQL"
IN_TWO_PHASE = "the two-phase session"

OWN_QUEUES = (OWN_SQLITE, OWN_POSTGRESQL)
SESSION_QUEUES = (IN_SQLITE, IN_POSTGRESQL, IN_TWO_PHASE)
QUEUES = (*OWN_QUEUES, *SESSION_QUEUES)
#: data managers that sort before all databases, between the last of them and us, and after us
FIRST, BETWEEN, LAST = "!", "~t", "~~~"
#: which manager fails, and in which phase
FAILURES = [
    *[(BETWEEN, phase) for phase in ("begin", "commit")],
    *[(key, phase) for phase in ("vote", "finish") for key in (FIRST, BETWEEN, LAST)],
]

#: the database of the application that is beside a queue, or around it
_DATABASES = {
    OWN_SQLITE: SQLITE,
    OWN_POSTGRESQL: TWO_PHASE,
    IN_SQLITE: SQLITE,
    IN_POSTGRESQL: POSTGRESQL,
    IN_TWO_PHASE: TWO_PHASE,
}
#: the database in which all queues of PostgreSQL are, one test after the other
_DATABASE = "queues"

_NEW = {
    "delivery": {State.STAGED, State.READY},
    "batch": {BatchState.STAGED, BatchState.SENDING, BatchState.PUBLISHING, BatchState.PUBLISHED},
}
_MOVES = {"delivery": MOVES, "batch": BATCH_MOVES}


class Application:
    """An application with a queue. Its mailers send to `server`."""

    def __init__(self, kind, queue, database, engine, server, tm) -> None:
        self.kind = kind
        self.queue = queue
        self.database = database
        self.engine = engine
        self.door: Door | None = None
        self._server = server
        self._tm = tm
        self._mailers: list[Mailer] = []

    @property
    def in_session(self) -> bool:
        return self.kind in SESSION_QUEUES

    @property
    def one_phase(self) -> bool:
        """True if the application's database commits in its own vote, before ours."""
        return _DATABASES[self.kind] != TWO_PHASE

    def mailer(self, url=None, **options) -> Mailer:
        """A mailer with the queue, unless there is another `queue` among `options`."""
        options = {"queue": self.queue, "transaction_manager": self._tm, **options}
        mailer = Mailer(transport_from_url(url or self._server.url), **options)
        self._mailers.append(mailer)
        return mailer

    # -- what somebody else sees

    def read(self, statement) -> list:
        """The rows of `statement`, seen from outside. Tables may be missing yet: no rows."""
        with self.engine.connect() as connection:
            if not sa.inspect(connection).has_table("txmail_delivery"):
                return []
            return list(connection.execute(statement).all())

    def deliveries(self) -> dict[str, sa.Row]:
        """What is written of each recipient, each of which has had one message."""
        d, m = schema.delivery.c, schema.message.c
        columns = [d[name] for name in d.keys() if name not in ("id", "message")]  # noqa: SIM118
        rows = self.read(
            sa.select(d.id, d.message, m.message_id, m.content, m.sender, *columns)
            .join_from(schema.delivery, schema.message, m.id == d.message)
            .order_by(d.id)
        )
        found = {row.recipient: row for row in rows}
        assert len(found) == len(rows)
        return found

    def states(self) -> dict[str, str]:
        """The state of each recipient's delivery, when all that was to be written is."""
        assert self.queue.flush(20)
        return {recipient: row.state for recipient, row in self.deliveries().items()}

    def ready(self) -> list[str]:
        """Who is to get mail."""
        return sorted(r for r, state in self.states().items() if state == State.READY)

    def batches(self) -> list[str]:
        """The states of all batches."""
        return [row.state for row in self.read(sa.select(schema.batch.c.state))]

    def is_empty(self) -> bool:
        """True if nothing is left of any mail, when all that was to be written is."""
        assert self.queue.flush(20)
        tables = (schema.message, schema.delivery, schema.batch, schema.attempt)
        return not any(self.read(sa.select(table)) for table in tables)

    def attempts(self, recipient: str) -> list[sa.Row]:
        """The history of a recipient's delivery."""
        id_ = self.deliveries()[recipient].id
        return self.read(sa.select(schema.attempt).where(schema.attempt.c.delivery == id_))

    # -- moves

    def watch_moves(self) -> None:
        """Have the database write down what is not allowed."""
        with self.engine.begin() as connection:
            connection.exec_driver_sql("CREATE TABLE illegal (move TEXT)")
            for table, moves in _MOVES.items():
                _watch(connection, table, moves)

    def illegal_moves(self) -> list[str]:
        with self.engine.connect() as connection:
            if not sa.inspect(connection).has_table("illegal"):
                return []
            return list(connection.scalars(sa.text("SELECT move FROM illegal")))

    def close(self) -> None:
        self._tm.abort()
        for mailer in self._mailers:
            mailer.close()
        self.queue.close()
        try:
            assert self.illegal_moves() == []
        finally:
            self.database.close()
            self.engine.dispose()
            if self.door is not None:
                self.door.close()


def _watch(connection, table, moves) -> None:
    legal = [f"'{a}>{b}'" for a, targets in moves.items() for b in targets]
    legal += [f"'{state}>{state}'" for state in moves]
    new = ", ".join(f"'{state}'" for state in _NEW[table])
    for name, what, move, wrong in [
        ("moved", "UPDATE", "OLD.state || '>' || NEW.state", f"NOT IN ({', '.join(legal)})"),
        ("made", "INSERT", "NEW.state", f"NOT IN ({new})"),
    ]:
        note = f"INSERT INTO illegal SELECT '{table} ' || {move} WHERE {move} {wrong};"
        head = f"CREATE TRIGGER {name}_{table} AFTER {what} ON txmail_{table} FOR EACH ROW"
        if connection.dialect.name == "sqlite":
            connection.exec_driver_sql(f"{head} BEGIN {note} END")
        else:
            connection.exec_driver_sql(
                f"CREATE FUNCTION {name}_{table}() RETURNS trigger LANGUAGE plpgsql AS "
                f"$$ BEGIN {note} RETURN NULL; END $$"
            )
            connection.exec_driver_sql(f"{head} EXECUTE FUNCTION {name}_{table}()")


@contextlib.contextmanager
def queue_factory(request, tmp_path: Path, tm) -> Iterator[Callable[..., Application]]:
    """Make applications by the kind of their queues: what the fixture `make_queue` is.

    Options are those of `Queue`. With `witness`, a queue of its own can ask the application's
    database what became of a transaction. With `door`, there is a `Door` before its PostgreSQL.
    """
    made: list[Application] = []

    def make(kind: str, *, witness: bool = False, door: bool = False, **options) -> Application:
        folder = tmp_path / str(len(made))
        folder.mkdir()
        url = f"sqlite:///{folder}/items.sqlite"
        if _DATABASES[kind] != SQLITE:
            url = _postgresql(request)
        database = SqlDatabase(url, tm, twophase=_DATABASES[kind] == TWO_PHASE)
        if kind in SESSION_QUEUES:
            if kind == IN_SQLITE:
                schema.metadata.create_all(database.engine)
            queue = session_queue(database.session, **options)
            engine = database.engine
        else:
            if witness:
                witness_metadata.drop_all(database.engine)
                witness_metadata.create_all(database.engine)
                options["witnesses"] = [SqlWitness(database.session)]
            if kind == OWN_SQLITE:
                url = f"sqlite:///{folder}/mail.db"
            before = Door(url) if door else None
            queue = Queue(before.url if before else url, **options)
            engine = sa.create_engine(url, poolclass=sa.NullPool)
            if kind == OWN_SQLITE:
                queue.database.prepare()
        server = request.getfixturevalue("server")
        made.append(Application(kind, queue, database, engine, server, tm))
        if door:
            made[-1].door = before
        if "sqlite" in url:
            made[-1].watch_moves()
        return made[-1]

    with contextlib.ExitStack() as stack:
        yield lambda *args, **options: _closed(stack, make(*args, **options))


def _closed(stack: contextlib.ExitStack, application: Application) -> Application:
    stack.callback(application.close)
    return application


class Door:
    """A TCP port before the PostgreSQL at `url`, which can be shut and opened again."""

    def __init__(self, url: str) -> None:
        parsed = sa.make_url(url)
        self._behind = f"{parsed.query['host']}/.s.PGSQL.{parsed.port or 5432}"
        self._sockets: list[socket.socket] = []
        self._mute: set[socket.socket] = set()
        self._listener = socket.create_server(("127.0.0.1", 0))
        self._address = self._listener.getsockname()
        open_ = parsed.set(host="127.0.0.1", port=self._address[1], query={})
        self.url = open_.render_as_string(hide_password=False)
        #: the reply to what has these octets in it does not arrive, and the connection ends
        self.swallow = b""
        #: what has these octets in it does not arrive, and the connection ends
        self.refuse = b""
        #: what has these octets in it arrives when `released` is set; the connection ends before
        self.delay = b""
        self.released = threading.Event()
        #: the reply to what has these octets in it does not arrive, and nobody hears of that
        self.silence = b""
        #: called when the connection is about to be ended for one of these
        self.happened = lambda: None
        self._listen()

    def _listen(self) -> None:
        threading.Thread(target=self._serve, args=(self._listener,), daemon=True).start()

    def _serve(self, listener: socket.socket) -> None:
        while True:
            try:
                outside, _ = listener.accept()
                inside = socket.socket(socket.AF_UNIX)
                inside.connect(self._behind)
            except OSError:
                return
            self._sockets += [outside, inside]
            for source, target in [(outside, inside), (inside, outside)]:
                arguments = (source, target, source is outside)
                threading.Thread(target=self._pump, args=arguments, daemon=True).start()

    def _pump(self, source: socket.socket, target: socket.socket, asks: bool) -> None:
        with contextlib.suppress(OSError):
            while octets := source.recv(65536):
                if asks and self.swallow and self.swallow in octets:
                    self.swallow = b""
                    self.happened()
                    source.shutdown(socket.SHUT_RDWR)
                    # The server gets to do what it was told before it sees the end.
                if asks and self.refuse and self.refuse in octets:
                    self.refuse = b""
                    self.happened()
                    break
                if asks and self.delay and self.delay in octets:
                    self.delay = b""
                    self.happened()
                    source.shutdown(socket.SHUT_RDWR)
                    self.released.wait(20)
                if asks and self.silence and self.silence in octets:
                    self.silence = b""
                    self._mute.add(source)
                if target not in self._mute:
                    target.sendall(octets)
        for end in (source, target):
            with contextlib.suppress(OSError):
                end.shutdown(socket.SHUT_RDWR)

    def stop(self) -> None:
        """Nobody gets in any more."""
        with contextlib.suppress(OSError):
            self._listener.shutdown(socket.SHUT_RDWR)
        self._listener.close()

    def shut(self) -> None:
        """Like a server that has stopped: nobody gets in, and who was in is thrown out."""
        self.stop()
        for end in self._sockets:
            with contextlib.suppress(OSError):
                end.shutdown(socket.SHUT_RDWR)

    def open(self) -> None:
        """Let them in again, at the same port."""
        self._listener = socket.create_server(self._address)
        self._listen()

    def close(self) -> None:
        self.shut()
        for end in self._sockets:
            end.close()


#: by the URL of a server
_prepared: dict[str, str] = {}


def _postgresql(request) -> str:
    """The URL of a database with the tables of an empty queue."""
    server = request.getfixturevalue("postgresql_url")
    url = _prepared.get(server)
    if url is None:
        url = _prepared[server] = postgresql_database(server, _DATABASE)
        engine = sa.create_engine(url, poolclass=sa.NullPool)
        schema.metadata.create_all(engine)
        Application(OWN_POSTGRESQL, None, None, engine, None, None).watch_moves()
        return url
    engine = sa.create_engine(url, poolclass=sa.NullPool)
    with engine.begin() as connection:
        for table in reversed(schema.metadata.sorted_tables):
            if table is not schema.version:
                connection.execute(table.delete())
        connection.exec_driver_sql("DELETE FROM illegal")
    return url


def postgresql_database(server: str, name: str) -> str:
    """The URL of a new database `name` on the server at `server`."""
    engine = sa.create_engine(server, poolclass=sa.NullPool, isolation_level="AUTOCOMMIT")
    with engine.connect() as connection:
        connection.exec_driver_sql(f"CREATE DATABASE {name}")
    return sa.make_url(server).set(database=name).render_as_string(hide_password=False)


def kinds(*wanted: str) -> pytest.MarkDecorator:
    """Run a test with a queue of each of these kinds, made by `application`."""
    return pytest.mark.parametrize("kind", wanted or QUEUES)
