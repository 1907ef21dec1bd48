"""A16, A18: a route whose login was refused waits for another password, and for nothing else."""

from __future__ import annotations

import json
import logging
import threading

import pytest
from commits import note
from queues import OWN_QUEUES, OWN_SQLITE, kinds
from secrecy import has
from thin import one_in

sa = pytest.importorskip("sqlalchemy")

from workers import Heard, another, change, put, put_many, wait_for, working  # noqa: E402

from txmail import transport_from_url  # noqa: E402
from txmail.cli import main  # noqa: E402
from txmail.queue import schema  # noqa: E402
from txmail.queue.inspect import read_health  # noqa: E402
from txmail.secret import Secret  # noqa: E402
from txmail.testing import ScriptedServer  # noqa: E402
from txmail.transports import login_limit as login_counts  # noqa: E402
from txmail.transports.failover import FailoverTransport  # noqa: E402
from txmail.worker import Route, dispatcher, login_watch, run_once  # noqa: E402

USER, RIGHT, WRONG = "ann", "pencil & paper", "a-wrong-password"
HOUR = 3600.0
SLOW = login_counts.ITERATIONS
STOPPED = "needs a person, no try before it has another password"

#: what `give` returns
given = {"password": ""}


def give() -> str:
    return given["password"]


@pytest.fixture(autouse=True)
def quick(monkeypatch, caplog):
    caplog.set_level(logging.INFO, "txmail")
    monkeypatch.setattr(dispatcher, "ROUND", 0.05)
    monkeypatch.setattr(dispatcher, "POLL", 0.05)
    monkeypatch.setattr(login_watch, "LOOK", 0.01)
    monkeypatch.setattr(login_watch, "FIRST_PAUSE", 0.01)
    monkeypatch.setattr(login_counts, "ITERATIONS", 10)


@pytest.fixture
def guarded():
    with ScriptedServer(credentials={USER: RIGHT}, login_required=True) as server:
        yield server


class Source:
    """Where a password comes from, and new transports that ask there: as other processes have."""

    def __init__(self, kind, path, monkeypatch):
        self.kind, self._path, self._patch = kind, path, monkeypatch
        self._made = []

    def say(self, password):
        if self.kind == "file":
            self._path.write_text(password + "\n")
        elif self.kind == "env":
            self._patch.setenv("TXMAIL_TEST_PASSWORD", password)
        given["password"] = password

    @property
    def text(self):
        return {
            "file": f"file:{self._path}",
            "env": "env:TXMAIL_TEST_PASSWORD",
            "function": f"{__name__}:give",
        }[self.kind]

    def url(self, server):
        return f"smtp://{USER}@127.0.0.1:{server.port}?auth_in_clear=yes&password_from={self.text}"

    def transport(self, server):
        self._made.append(transport_from_url(self.url(server)))
        return self._made[-1]

    def close(self):
        for transport in self._made:
            transport.close()


@pytest.fixture
def make_source(tmp_path, monkeypatch):
    made = []

    def make(kind="file", name="password"):
        made.append(Source(kind, tmp_path / name, monkeypatch))
        return made[-1]

    yield make
    for source in made:
        source.close()


@pytest.fixture
def source(make_source):
    return make_source()


def tries(server):
    """How many logins a server has seen."""
    return sum(line.startswith("AUTH") for c in server.connections for line in c.commands)


def refused(app, server, source, clock, *, count=3):
    """A queue with mail, whose only route was refused its login by a run that has ended."""
    source.say(WRONG)
    put_many(app, "n", count)
    before = tries(server)
    run_once(app.queue, source.transport(server), clock=clock)
    assert tries(server) == before + 1
    assert app.queue.counts() == {"ready": count}


# -- a worker that runs


@pytest.mark.representative(every=3)
@pytest.mark.parametrize("origin", ["file", "env", "function"])
@kinds(*OWN_QUEUES)
def test_a16_a_running_worker_notices_another_password(app, guarded, make_source, clock, origin):
    """Kind: what somebody has mended is waited out by whoever was told that it is broken."""
    source = make_source(origin)
    source.say(WRONG)
    put_many(app, "n", 3)
    with (
        Heard("txmail") as heard,
        working(app.queue, source.transport(guarded), clock=clock) as worker,
    ):
        heard.wait_for(STOPPED)
        worker.wait_rounds(5)
        assert tries(guarded) == 1
        source.say(RIGHT)
        clock.advance(1.0)
        wait_for(lambda: app.queue.counts() == {"sent": 3}, "it waits for the end of its pause")
        heard.wait_for("route default works again")
    assert tries(guarded) == 2
    (row,) = app.read(sa.select(schema.route))
    assert (row.state, row.logins) == ("closed", None)


@kinds(OWN_SQLITE)
def test_a16_each_other_password_is_tried_once_and_none_is_no_password(app, guarded, source, clock):
    source.say(WRONG)
    put_many(app, "n", 3)
    with (
        Heard("txmail") as heard,
        working(app.queue, source.transport(guarded), clock=clock) as worker,
    ):
        heard.wait_for(STOPPED)
        passwords = ["", "another", "", "and-another", "another-one"]
        for number, password in enumerate(passwords[: 6 // one_in(3)]):
            before = tries(guarded)
            source.say(password)
            if password:
                wait_for(lambda n=before: tries(guarded) == n + 1, f"{number} was not tried")
            worker.wait_rounds(4)
            assert tries(guarded) == before + bool(password)
        source.say(RIGHT)
        wait_for(lambda: app.queue.counts() == {"sent": 3}, "the right one was not tried")


@pytest.mark.representative(every=2)
@kinds(*OWN_QUEUES)
def test_a16_of_all_hosts_one_tries_the_other_password(app, guarded, source, clock):
    source.say(WRONG)
    put_many(app, "n", 3)
    queue = another(app)
    with (
        Heard("txmail") as heard,
        working(app.queue, source.transport(guarded), clock=clock) as one,
    ):
        heard.wait_for(STOPPED)
        one.wait_rounds(3)
        with working(queue, source.transport(guarded), clock=clock) as two:
            two.wait_rounds(3)
            source.say("another-wrong-one")
            wait_for(lambda: tries(guarded) == 2, "nobody has tried it")
            for worker in (one, two, one, two):
                worker.wait_rounds(4)
            assert tries(guarded) == 2
            source.say(RIGHT)
            wait_for(lambda: app.queue.counts() == {"sent": 3}, "nobody has tried it")
    queue.close()


# -- a worker that begins


@kinds(*OWN_QUEUES)
def test_a18_the_same_password_is_never_tried_again(app, guarded, source, clock):
    """Kind: each process that begins has its own tries, and together they lock the account."""
    refused(app, guarded, source, clock)
    for seconds in (0.0, 61.0, 901.0, HOUR, 24 * HOUR):
        clock.advance(seconds)
        run_once(app.queue, source.transport(guarded), clock=clock)
        with working(app.queue, source.transport(guarded), clock=clock) as worker:
            worker.wait_rounds(4)
    assert tries(guarded) == 1
    assert app.queue.counts() == {"ready": 3}


@pytest.mark.parametrize("way", ["run", "once"])
@kinds(*OWN_QUEUES)
def test_a18_another_password_is_tried_at_once(app, guarded, source, clock, way):
    refused(app, guarded, source, clock)
    source.say(RIGHT)
    if way == "once":
        assert run_once(app.queue, source.transport(guarded), clock=clock) == 3
    else:
        with working(app.queue, source.transport(guarded), clock=clock):
            wait_for(lambda: app.queue.counts() == {"sent": 3}, "it waits for the pause")
    assert tries(guarded) == 2


@kinds(OWN_SQLITE)
def test_a18_a_worker_that_begins_with_the_same_notices_another(app, guarded, source, clock):
    refused(app, guarded, source, clock)
    with Heard("txmail") as heard, working(app.queue, source.transport(guarded), clock=clock):
        heard.wait_for("route default is paused until it has another password: 535")
        assert tries(guarded) == 1
        source.say(RIGHT)
        wait_for(lambda: app.queue.counts() == {"sent": 3}, "it waits for the pause")


@pytest.mark.parametrize(
    "reply",
    ["535 5.7.8 no", "534 5.7.9 stronger", "550 go away", "554 5.7.0 no", "501 5.5.2 what"],
)
@kinds(OWN_SQLITE)
def test_a18_whatever_a_refusal_is_called_it_is_one(app, guarded, source, clock, reply):
    """Kind: what something is was told by how a server words it."""
    source.say(RIGHT)
    guarded.on("AUTH", reply, times=None)
    put(app, note("a"))
    for _ in range(3):
        run_once(app.queue, source.transport(guarded), clock=clock)
        clock.advance(HOUR)
    assert tries(guarded) == 1
    assert [json.loads(row.logins).keys() for row in app.read(sa.select(schema.route))] == [
        {f"{USER}@127.0.0.1:{guarded.port}"}
    ]


@pytest.mark.parametrize("stage", ["connect", "EHLO", "AUTH", "MAIL"])
@kinds(OWN_SQLITE)
def test_a18_what_is_no_refused_login_is_none(app, guarded, source, clock, stage):
    source.say(RIGHT)
    guarded.on(stage, "454 4.7.0 not tried again for 5 min", times=None)
    put(app, note("a"))
    run_once(app.queue, source.transport(guarded), clock=clock)
    assert [row.logins for row in app.read(sa.select(schema.route))] in ([None], [])
    guarded.clear()
    clock.advance(HOUR)
    assert run_once(app.queue, source.transport(guarded), clock=clock) == 1
    assert app.queue.counts() == {"sent": 1}


# -- several


@pytest.mark.representative(every=2)
@kinds(*OWN_QUEUES)
def test_a18_a_route_waits_for_its_own_password(app, guarded, make_source, server, clock):
    one, two = make_source(name="one"), make_source(name="two")
    one.say(WRONG), two.say(WRONG)

    def ways():
        return [
            Route.to("one", one.transport(guarded), domains=["one.example"]),
            Route.to("two", two.transport(guarded), domains=["two.example"]),
            Route.to("default", transport_from_url(server.url)),
        ]

    put(app, *(note("a", recipients=[f"a@{d}.example"]) for d in ("one", "two", "three")))
    run_once(app.queue, ways(), clock=clock)
    assert app.queue.counts() == {"ready": 2, "sent": 1}
    assert tries(guarded) == 2
    two.say(RIGHT)
    assert run_once(app.queue, ways(), clock=clock) == 1
    assert [m.recipients for m in guarded.messages] == [("a@two.example",)]
    assert tries(guarded) == 3
    with working(app.queue, ways(), clock=clock) as worker:
        worker.wait_rounds(3)
        assert tries(guarded) == 3
        one.say(RIGHT)
        wait_for(lambda: app.queue.counts() == {"sent": 3}, "it waits for the pause")


@pytest.mark.representative(every=2)
@pytest.mark.parametrize("which", [0, 1])
@kinds(OWN_SQLITE)
def test_a18_of_several_servers_each_waits_for_its_own_password(
    app, guarded, make_source, clock, which
):
    with ScriptedServer(credentials={USER: RIGHT}, login_required=True) as other:
        servers = [guarded, other]
        sources = [make_source(name="one"), make_source(name="two")]

        def way():
            some = zip(sources, servers, strict=True)
            return FailoverTransport([source.transport(server) for source, server in some])

        for source in sources:
            source.say(f"{WRONG} {source.text}")
        put_many(app, "n", 3)
        for _ in range(3):
            run_once(app.queue, way(), clock=clock)
            clock.advance(HOUR)
        assert [tries(server) for server in servers] == [1, 1]
        with working(app.queue, way(), clock=clock) as worker:
            worker.wait_rounds(3)
            sources[which].say(RIGHT)
            wait_for(lambda: app.queue.counts() == {"sent": 3}, "it waits for the pause")
        assert [tries(server) for server in servers] == ([2, 1], [1, 2])[which]


@kinds(OWN_SQLITE)
def test_a18_a_server_that_was_down_is_tried_without_the_login_that_was_refused(
    app, guarded, source, clock
):
    source.say(WRONG)
    put_many(app, "n", 3)
    with ScriptedServer() as other:
        other.on("connect", "421 4.3.2 down", times=None)

        def way():
            return FailoverTransport([source.transport(guarded), transport_from_url(other.url)])

        run_once(app.queue, way(), clock=clock)
        other.clear()
        clock.advance(61.0)
        with working(app.queue, way(), clock=clock):
            wait_for(lambda: app.queue.counts() == {"sent": 3}, "it waits for the pause")
        assert len(other.messages) == 3
    assert tries(guarded) == 1


@kinds(*OWN_QUEUES)
def test_a18_a_login_that_is_refused_beside_a_server_that_works_is_tried_once(
    app, guarded, server, source, clock
):
    def way():
        return FailoverTransport([source.transport(guarded), transport_from_url(server.url)])

    source.say(WRONG)
    for number in range(4):
        put(app, note(f"n{number}"))
        assert run_once(app.queue, way(), clock=clock) == 1
        clock.advance(61.0)
    assert tries(guarded) == 1
    source.say(RIGHT)
    put(app, note("last"))
    assert run_once(app.queue, way(), clock=clock) == 1
    assert (len(server.messages), len(guarded.messages)) == (4, 1)


@kinds(OWN_SQLITE)
def test_a16_a_source_that_hangs_holds_up_nobody(
    app, guarded, server, make_source, clock, monkeypatch
):
    """A worker that begins asks for the password, and it need not get an answer."""
    monkeypatch.setattr(login_watch, "FIRST_LOOK", 0.05)
    source = make_source("function")
    refused(app, guarded, source, clock)
    asked, free = threading.Event(), threading.Event()

    def hang():
        asked.set()
        free.wait(30)
        return WRONG

    monkeypatch.setitem(globals(), "give", hang)
    ways = [
        Route.to("hangs", source.transport(guarded), domains=["hangs.example"]),
        Route.to("default", transport_from_url(server.url)),
    ]
    change(app, schema.route.update().values(name="hangs"))
    put(app, note("a"))
    with working(app.queue, ways, clock=clock):
        assert asked.wait(30)
        wait_for(lambda: server.messages, "it waits for the password")
        free.set()


# -- what the queue keeps, and says


@kinds(*OWN_QUEUES)
def test_a16_the_queue_keeps_nothing_to_guess_a_password_by(app, guarded, source, clock):
    """Kind: a digest of a password is one for whoever has a list of passwords."""
    refused(app, guarded, source, clock)
    everything = "".join(
        repr(list(app.read(sa.select(table)))) for table in schema.metadata.sorted_tables
    )
    assert not has(everything, WRONG)
    (row,) = app.read(sa.select(schema.route))
    (octet,) = json.loads(row.logins).values()
    account = f"{USER}@127.0.0.1"
    assert 0 <= octet <= 255
    guesses = [f"guess {number}" for number in range(3000)]
    fitting = [g for g in guesses if login_counts.octet_of(Secret(g), account) == octet]
    assert len(fitting) > 1
    assert login_counts.octet_of(Secret(WRONG), account) == octet


def test_a16_a_digest_takes_long_to_make():
    assert SLOW >= 600_000


@kinds(OWN_SQLITE)
def test_a18_a_route_of_few_connections_forgets_no_refusal(app, guarded, server, source, clock):
    def way():
        some = FailoverTransport([source.transport(guarded), transport_from_url(server.url)])
        return [Route.to("few", some, connections=1)]

    source.say(WRONG)
    ways = way()
    for number in range(3):
        put(app, note(f"n{number}"))
        assert run_once(app.queue, ways, clock=clock) == 1
        assert server.connections[-1].commands[-1] == "QUIT"
        ways[0].transport._resting.clear()
    assert tries(guarded) == 1


@kinds(OWN_SQLITE)
def test_a18_health_says_what_a_route_waits_for(app, guarded, source, clock):
    refused(app, guarded, source, clock)
    (route,) = read_health(app.queue.database).routes
    assert route.needs_password
    assert "route default is paused until it has another password, 3 delivery(s) wait" in str(route)


def test_a19_the_command_keeps_the_pause_until_there_is_another_password(
    tmp_path, guarded, source, capsys, make_queue
):
    """Kind: a cron job tries a password until the account is locked."""
    app = make_queue(OWN_SQLITE)
    source.say(WRONG)
    put_many(app, "n", 3)
    url = app.engine.url.render_as_string(hide_password=False)
    once = ["worker", "--once", "--queue-url", url, "--url", source.url(guarded)]
    for _ in range(4):
        assert main(once) == 1
        said = capsys.readouterr().err
        assert "route default is paused until it has another password" in said
    assert tries(guarded) == 1
    source.say(RIGHT)
    assert main(once) == 0
    assert app.queue.counts() == {"sent": 3}
    assert tries(guarded) == 2
