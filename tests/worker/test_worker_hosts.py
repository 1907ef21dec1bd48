"""Workers on two hosts and one PostgreSQL, and a cable that breaks."""

from __future__ import annotations

import threading
import time

import pytest

sa = pytest.importorskip("sqlalchemy")

from hosts import (  # noqa: E402
    IMPATIENT,
    NETWORK,
    Claims,
    application,
    check_copies,
    cluster,
    settled,
    two_hosts,
    workers_in,
)
from workers import PATIENCE, put_many, wait_for  # noqa: E402

from txmail.testing import Callback, ScriptedServer, then  # noqa: E402

LEASE = "{'lease': 3.0}"
#: Messages a second.
RATE = 20


@pytest.fixture(scope="module")
def hosts():
    with two_hosts() as hosts:
        yield hosts


@pytest.fixture(scope="module")
def postgresql(hosts):
    with cluster() as own:
        own.open_to(NETWORK)
        yield own


@pytest.fixture
def server():
    """Where both hosts reach it."""
    with ScriptedServer(host="0.0.0.0") as server:
        yield server


@pytest.fixture
def app(postgresql, server, tm):
    with application(postgresql.new_database(), server, tm) as app:
        yield app


@pytest.fixture
def start(postgresql, app, server, tmp_path):
    """Start a worker on a host."""
    with workers_in(tmp_path) as workers:

        def start(host, options=LEASE, setup=IMPATIENT):
            return workers.start(
                postgresql.url_at(host.us, app.engine.url.database),
                f"smtp://{host.us}:{server.port}?tls=off",
                options=options,
                setup=setup,
                wrapper=host.wrapper,
            )

        start.workers = workers
        yield start


def end(process):
    process.stdin.close()
    assert process.wait(PATIENCE) == 0


@pytest.mark.sweep
def test_what_a_host_was_sending_when_it_was_cut_off_is_taken_over_and_flagged(
    hosts, app, server, start
):
    reached, goes_on = threading.Event(), threading.Event()
    server.on(".", then(Callback(lambda: (reached.set(), goes_on.wait(PATIENCE)))))
    audit = Claims(app)
    wanted = put_many(app, "before", 100)
    start(hosts[0])
    assert reached.wait(PATIENCE)
    hosts[0].cut()
    try:
        other = start(hosts[1])
        wait_for(settled(app), "nobody takes it over")
        doubtful = [r for r, row in app.deliveries().items() if row.state == "in_doubt"]
        assert wanted[0] in doubtful
        assert len(server.messages) >= 100 - len(doubtful)
        taken = set(audit.by_process())
    finally:
        hosts[0].mend()
        goes_on.set()
    wanted += put_many(app, "after", 50)
    wait_for(settled(app), "they do not go on")
    end(other)
    # Nobody but the one that was cut off is there now.
    wanted += put_many(app, "alone", 20)
    wait_for(settled(app), "it has not come back")
    start.workers.stop()
    assert set(audit.by_process()) == taken
    # Who was cut off has got an answer in the end, and that is not his to write any more.
    rows = app.deliveries()
    assert {rows[recipient].state for recipient in doubtful} == {"in_doubt"}
    audit.check()
    check_copies(app, wanted, server)


@pytest.mark.sweep
def test_a_host_that_was_cut_off_in_the_middle_of_a_claim_keeps_nothing(hosts, app, server, start):
    audit = Claims(app)
    wanted = put_many(app, "before", 100)
    with audit.held() as somebody_waits:
        start(hosts[0])
        wait_for(somebody_waits, "it does not claim")
        hosts[0].cut()
    try:
        other = start(hosts[1])
        wait_for(lambda: len(server.messages) == 100, "nobody takes it over")
    finally:
        hosts[0].mend()
    end(other)
    wanted += put_many(app, "alone", 20)
    wait_for(lambda: len(server.messages) == 120, "it has not come back")
    start.workers.stop()
    assert len(audit.by_process()) == 2
    audit.check()
    check_copies(app, wanted, server)
    assert not any(row.duplicate for row in app.deliveries().values())


@pytest.mark.sweep
def test_the_cable_of_a_host_that_breaks_again_and_again_harms_nobody(hosts, app, server, start):
    server.on("MAIL", then(Callback(lambda: time.sleep(0.01))), times=None)
    audit = Claims(app)
    wanted = put_many(app, "n", 600)
    for host in hosts:
        start(host)
    for number in range(4):
        host = hosts[number % 2]
        before = len(server.messages)
        wait_for(lambda n=before: len(server.messages) >= min(n + 50, 500), "nothing is sent")
        host.cut()
        try:
            wait_for(lambda n=before: len(server.messages) >= min(n + 100, 550), "nobody is left")
        finally:
            host.mend()
    wait_for(settled(app), "they do not go on")
    start.workers.check()
    start.workers.stop()
    audit.check()
    check_copies(app, wanted, server)


@pytest.mark.sweep
def test_the_rate_of_a_route_is_that_of_both_hosts_together(hosts, app, server, start):
    audit = Claims(app)
    limited = f"transport = [Route.to('default', transport, rate={RATE})]"
    for host in hosts:
        start(host, setup=limited)
    started = time.monotonic()
    put_many(app, "n", RATE * 5)
    server.wait_for(lambda: len(server.messages) == RATE * 5, timeout=PATIENCE)
    # The first second's worth may go at once; a slow machine only takes longer.
    assert time.monotonic() - started >= 4.0
    assert len(audit.by_process()) == 2
